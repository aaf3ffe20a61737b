"""Which DiffSynth-Studio is installed, and whether this package knows it; found out without importing it.

| generation | versions | pipeline module |
| --- | --- | --- |
| `wan_video_new` | 1.1.9 | `diffsynth.pipelines.wan_video_new` |
| `wan_video` | 2.1.x | `diffsynth.pipelines.wan_video` |
"""

from __future__ import annotations

import importlib.metadata

SUPPORTED_VERSIONS = "1.1.9 and 2.1.x"


class UnsupportedHostError(ImportError):
    """The installed DiffSynth-Studio is missing or is a version that this package does not know."""


def host_version() -> str:
    """The version of the installed `diffsynth` distribution.

    Raises:
        UnsupportedHostError: no such distribution is installed.
    """
    try:
        return importlib.metadata.version("diffsynth")
    except importlib.metadata.PackageNotFoundError as error:
        raise UnsupportedHostError(
            f"DiffSynth-Studio is not installed; supported versions are {SUPPORTED_VERSIONS}. "
            "Run `pip install 'diffsynth>=2.1,<2.2'`."
        ) from error


def host_generation(version: str) -> str:
    """The name of the host module for a DiffSynth version: "wan_video_new" or "wan_video".

    Raises:
        UnsupportedHostError: the version is neither 1.1.9 nor 2.1.x.
    """
    if version == "1.1.9":
        return "wan_video_new"
    if version.split(".")[:2] == ["2", "1"]:
        return "wan_video"
    raise UnsupportedHostError(
        f"DiffSynth-Studio {version} is installed, but the supported versions are {SUPPORTED_VERSIONS}. "
        "Run `pip install 'diffsynth>=2.1,<2.2'`, or `pip install 'diffsynth-omniavatar[classic]'` for 1.1.9."
    )


def check_transformers(version: str, transformers_version: str) -> None:
    """Whether a supported DiffSynth can be imported beside a version of transformers.

    Raises:
        UnsupportedHostError: DiffSynth 1.1.9 beside transformers 5, which fails without saying why.
    """
    if host_generation(version) == "wan_video_new" and int(transformers_version.split(".")[0]) >= 5:
        raise UnsupportedHostError(
            f"DiffSynth-Studio {version} cannot be imported beside transformers {transformers_version}. "
            "Run `pip install 'transformers<5'`."
        )
