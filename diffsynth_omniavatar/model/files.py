"""Which files make up a model, and where they lie: in a folder, at paths of their own, or on a hub.

Plain paths: nothing here reads a file or imports torch or DiffSynth.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

PathOrPaths = str | Path | Iterable[str | Path]

HUB_FOLDER = "models"
"""Where DiffSynth puts downloads; the environment variable DIFFSYNTH_MODEL_BASE_PATH names another on 2.x."""
BASE_WEIGHTS = "diffusion_pytorch_model*.safetensors"
HUB_FILE = re.compile(r"(?P<repository>[\w.-]+/[\w.-]+):(?P<pattern>.+)")
"""A file of a hub: OWNER/NAME:FILE."""
STRENGTH = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")
SHARD = re.compile(r"(?P<stem>.+)-\d{5}-of-(?P<count>\d{5})\.")

SMALL_FAMILY = {
    "dit": "diffusion_pytorch_model.safetensors",
    "text_encoder": "text_encoder.safetensors",
    "vae": "vae.safetensors",
    "tokenizer": "tokenizer",
    "wav2vec2": "wav2vec2",
    "omniavatar": "omniavatar",
}
"""Part -> its name in the folder of a small family (`small_family`)."""
NANO_FOLDER = Path(__file__).parent.parent / "nano" / "weights"
"""The trained small model that is part of this package: I2V, a full checkpoint in the place of "omniavatar"."""
NANO_I2V = NANO_FOLDER / SMALL_FAMILY["omniavatar"] / "model.safetensors"
NANO_V2V = NANO_FOLDER / "omniavatar_v2v" / "model.safetensors"
"""Its V2V checkpoint, a LoRA on the I2V one."""
PUBLISHED = ("14B", "1.3B")
NANO_MODELS = ("nano", "nano-v2v")
MODELS = (*PUBLISHED, *NANO_MODELS)


@dataclass(frozen=True)
class HubFiles:
    """Files of a hub repository, which DiffSynth downloads when they are first needed."""

    repository: str
    pattern: str
    """Glob inside the repository."""
    gigabytes: float = 0.0
    """About how large they are; 0 if that is not known."""
    copy: str | None = None
    """Where DiffSynth 2.x takes them from instead: repository/file."""

    def downloaded(self) -> list[Path]:
        """The files that are already there."""
        folder = Path(os.environ.get("DIFFSYNTH_MODEL_BASE_PATH", HUB_FOLDER))
        patterns = [f"{self.repository}/{self.pattern}", *([self.copy] if self.copy is not None else [])]
        return [Path(path) for pattern in patterns for path in sorted(glob.glob(str(folder / pattern)))]


def hub_file(name: str) -> HubFiles | None:
    """The file of a hub that OWNER/NAME:FILE names; None if the name is that of a path."""
    match = None if Path(name).exists() else HUB_FILE.fullmatch(name)
    return None if match is None else HubFiles(match["repository"], match["pattern"])


def parse_lora(text: str) -> tuple[str, float]:
    """FILE[:STRENGTH] -> file and strength, by default 1. What follows the last colon is one only if it is a number."""
    name, _, last = text.rpartition(":")
    return (name, float(last)) if name and STRENGTH.fullmatch(last) else (text, 1.0)


Source = tuple[Path, ...] | HubFiles

TOKENIZER = HubFiles("Wan-AI/Wan2.1-T2V-1.3B", "google/umt5-xxl/", 0.03)


@dataclass(frozen=True)
class ModelFiles:
    """The parts of a model and where each lies.

    Attributes:
        sources: "dit", "text_encoder", "vae", "tokenizer", "omniavatar", "wav2vec2" -> paths or `HubFiles`.
        is_small_family: whether the folder is one of a small family, which the host has to be told of.
    """

    sources: Mapping[str, Source]
    is_small_family: bool = False

    def missing(self) -> dict[str, Path]:
        """The paths that are not there, by part (the first of each). Files of a hub are never missing."""
        absent: dict[str, Path] = {}
        for part, source in self.sources.items():
            for path in () if isinstance(source, HubFiles) else _with_all_shards(source):
                if not path.exists():
                    absent.setdefault(part, path)
        return absent


def _with_all_shards(paths: tuple[Path, ...]) -> Iterator[Path]:
    """The paths, and the other shards of those that are numbered: a download may have stopped half-way."""
    for path in paths:
        yield path
        match = SHARD.match(path.name)
        if match is None:
            continue
        for number in range(1, int(match["count"]) + 1):
            yield path.with_name(f"{match['stem']}-{number:05d}-of-{match['count']}{path.suffix}")


def hub_files(model: str) -> dict[str, Source]:
    """The released files of a published size, "14B" or "1.3B"."""
    converted = "DiffSynth-Studio/Wan-Series-Converted-Safetensors"
    shared = "Wan-AI/Wan2.1-T2V-1.3B"
    return {
        "dit": HubFiles(f"Wan-AI/Wan2.1-T2V-{model}", BASE_WEIGHTS, 57 if model == "14B" else 6),
        "text_encoder": HubFiles(
            shared, "models_t5_umt5-xxl-enc-bf16.pth", 11, f"{converted}/models_t5_umt5-xxl-enc-bf16.safetensors"
        ),
        "vae": HubFiles(shared, "Wan2.1_VAE.pth", 0.5, f"{converted}/Wan2.1_VAE.safetensors"),
        "tokenizer": TOKENIZER,
        "omniavatar": HubFiles(f"OmniAvatar/OmniAvatar-{model}", "*", 2.5 if model == "14B" else 0.7),
        "wav2vec2": HubFiles("facebook/wav2vec2-base-960h", "*", 1.2),
    }


def _folder_files(folder: Path, model: str) -> dict[str, Source]:
    """The layout that OmniAvatar's own README asks for."""
    wan = folder / f"Wan2.1-T2V-{model}"
    return {
        "dit": tuple(sorted(wan.glob(BASE_WEIGHTS))) or (wan / BASE_WEIGHTS,),
        "text_encoder": (wan / "models_t5_umt5-xxl-enc-bf16.pth",),
        "vae": (wan / "Wan2.1_VAE.pth",),
        "tokenizer": (wan / "google" / "umt5-xxl",),
        "omniavatar": (folder / f"OmniAvatar-{model}",),
        "wav2vec2": (folder / "wav2vec2-base-960h",),
    }


def _small_family_files(folder: Path, v2v: bool) -> dict[str, Source]:
    """The layout of `SMALL_FAMILY`; the shipped I2V checkpoint stands for the base transformer too."""
    sources: dict[str, Source] = {part: (folder / name,) for part, name in SMALL_FAMILY.items()}
    i2v, of_v2v = (folder / path.relative_to(NANO_FOLDER) for path in (NANO_I2V, NANO_V2V))
    if v2v:
        sources |= {"dit": (i2v,), "omniavatar": (of_v2v,)}
    elif i2v.is_file() and not (folder / SMALL_FAMILY["dit"]).exists():
        sources["dit"] = (i2v,)
    return sources


def _given_paths(part: str, given: PathOrPaths) -> tuple[Path, ...]:
    paths = (Path(given),) if isinstance(given, (str, Path)) else tuple(Path(path) for path in given)
    if part == "dit" and len(paths) == 1 and paths[0].is_dir():
        return tuple(sorted(paths[0].glob(BASE_WEIGHTS))) or (paths[0] / BASE_WEIGHTS,)
    return paths


def model_files(
    model: str = "14B", folder: str | Path | None = None, parts: Mapping[str, PathOrPaths | None] | None = None
) -> ModelFiles:
    """Where the parts of a model lie.

    Args:
        model: the published size, "14B" or "1.3B"; or "nano" or "nano-v2v", the trained small models of this package.
        folder: None for the hub or the package; else a folder with upstream's layout (`Wan2.1-T2V-14B/`,
            `OmniAvatar-14B/`, `wav2vec2-base-960h/`), or one of a small family (`SMALL_FAMILY`).
        parts: single parts that lie elsewhere, by the names of `ModelFiles.sources`; None changes nothing.

    Raises:
        ValueError: no such model or part.
    """
    if model not in MODELS:
        raise ValueError(f"There is no model {model!r}; the models are {', '.join(MODELS)}.")
    if model in NANO_MODELS and folder is None:
        folder = NANO_FOLDER
    small = folder is not None and (model in NANO_MODELS or (Path(folder) / SMALL_FAMILY["vae"]).is_file())
    if folder is None:
        sources = hub_files(model)
    elif small:
        sources = _small_family_files(Path(folder), v2v=model == "nano-v2v")
    else:
        sources = _folder_files(Path(folder), model)
    for part, given in (parts or {}).items():
        if part not in SMALL_FAMILY:
            raise ValueError(f"There is no part {part!r} of a model; the parts are {', '.join(SMALL_FAMILY)}.")
        if given is not None:
            sources[part] = _given_paths(part, given)
    return ModelFiles(sources, small)
