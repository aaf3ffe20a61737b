# make demo, make test, make lint: all that they need besides Python 3.10.1 or later comes from the package index.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
# uv from the PATH if it works there, else one in an environment of its own.
UV := $(shell uv --version >/dev/null 2>&1 && echo uv || echo .venv-uv/bin/uv)
UV_FILE := $(filter .venv-uv/bin/uv,$(UV))
BIN := .venv/bin
# A process that has none left takes tests from the other one's end.
PYTEST := -m pytest -q -n 2 --dist worksteal

export UV_PYTHON_DOWNLOADS := never
export UV_NO_PROGRESS := 1
# Many short processes import the same packages: compiled once, those take half the time.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help demo page test test-page test-quick test-modern test-classic lint docs docs-commands clean

help:
	@echo "make demo   generate, fine-tune on a new person, generate again, dub: demo/report.html, in 4 minutes"
	@echo "make test   all tests, with DiffSynth-Studio 2.1 and 1.1.9"
	@echo "make page   a page in the browser: talk, dub, train, compare; without a GPU with the small model"
	@echo "make test-page   the page in chromium, in 5 minutes"
	@echo "make test-quick  of the rooms that differ from origin/main the quick tests, with 2.1"
	@echo "make lint   ruff, mypy and the table of modules"
	@echo "make docs   the pages as a site in build/site; links and anchors are checked"
	@echo "make docs-commands  runs the commands of README and docs that the small model can run, in 2 minutes"
	@echo "make clean  remove the environments and what was built"

demo: .venv/installed
	$(BIN)/omniavatar demo
	@echo "For the commands on that page: source .venv/bin/activate"

page: .venv/installed
	$(BIN)/omniavatar page

test: test-modern test-classic

# One thread a process: small tensors are slower with more, and two processes run.
# A video of each host is left for the other's tests to compare with.
HOST_VIDEOS := $(CURDIR)/build/host-videos

test-modern: .venv/installed
	rm -rf $(HOST_VIDEOS)
	OMP_NUM_THREADS=1 OMNIAVATAR_HOST_VIDEOS=$(HOST_VIDEOS) $(BIN)/python $(PYTEST)

test-classic: .venv-classic/installed
	OMP_NUM_THREADS=1 OMNIAVATAR_HOST_VIDEOS=$(HOST_VIDEOS) .venv-classic/bin/python $(PYTEST)

test-page: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m browser tests/browser

test-quick: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/python $(PYTEST) -m "not slow and not browser" $$($(BIN)/python tests/changed.py)

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q -s tests/test_layers.py

docs: .venv/installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet
	@echo "To look at it: python3 -m http.server --directory build/site"

docs-commands: .venv/installed
	OMP_NUM_THREADS=2 $(BIN)/python docs/run_commands.py

.venv-uv/bin/uv:
	$(PYTHON) -m venv .venv-uv
	.venv-uv/bin/pip install --quiet uv

.venv/installed: pyproject.toml $(UV_FILE)
	$(UV) venv --quiet --allow-existing --python $(PYTHON) .venv
	$(UV) pip install --quiet --compile-bytecode --python $(BIN)/python "diffsynth>=2.1,<2.2" --editable ".[test,dev]"
	touch $@

.venv/installed-docs: .venv/installed
	$(UV) pip install --quiet --python $(BIN)/python --editable ".[docs]"
	touch $@

.venv-classic/installed: pyproject.toml $(UV_FILE)
	$(UV) venv --quiet --allow-existing --python $(PYTHON) .venv-classic
	$(UV) pip install --quiet --compile-bytecode --python .venv-classic/bin/python --editable ".[classic,test]"
	touch $@

clean:
	rm -rf .venv .venv-classic .venv-uv .venv-wheel build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
