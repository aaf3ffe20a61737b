"""What mkdocs builds the site from: the repository's pages, each where it lies there, so that links hold in both."""

from __future__ import annotations

import sys
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
PAGES = ("*.md", "docs/*.md", "benchmarks/*.md", "patches/*.md", "integrations/**/*.md", "diffsynth_omniavatar/**/*.md")
LINKED = (
    "docs/site.css", "Dockerfile", "compose.yaml", "LICENSE",
    "docs/pictures.py",
    "docs/*.svg", "docs/*.webp", "docs/**/*.png", "docs/**/*.webp",
    "examples/*", "diffsynth_omniavatar/media/faces/weights/*S*",
    "integrations/**/*.jpg", "integrations/**/*.json",
)  # fmt: skip
API = "docs/api.md"


def api_page() -> str:
    """The reference of the public names, for mkdocstrings."""
    sys.path.insert(0, str(ROOT))
    import diffsynth_omniavatar as omni

    entry = "::: diffsynth_omniavatar.{module}.{name}\n    options:\n      heading: {name}\n"
    entries = [entry.format(module=omni._MODULES[name], name=name) for name in omni.__all__]
    return "\n".join(["# Python", "`import diffsynth_omniavatar as omni` has these names.", *entries])


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """The theme's files, and the repository's in place of those of docs/ alone."""
    kept = [file for file in files if not file.abs_src_path or not file.abs_src_path.startswith(config.docs_dir)]
    paths = sorted({path for pattern in (*PAGES, *LINKED) for path in ROOT.glob(pattern) if path.is_file()})
    own = [File.generated(config, path.relative_to(ROOT).as_posix(), abs_src_path=str(path)) for path in paths]
    return Files([*kept, *own, File.generated(config, API, content=api_page())])
