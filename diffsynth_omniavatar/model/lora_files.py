"""LoRA files of other programs: read, checked by their first bytes, and what of them a denoiser takes."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from ..system.digests import file_sha256
from ..system.messages import counted
from ..system.tensor_files import DamagedFileError, open_safetensors, read_pickle, read_safetensors
from .checkpoint import LORA_KEY, CheckpointError, is_omniavatar, normalise_keys
from .config import BaseLoRA
from .lora_alpha import stated_alphas
from .lora_changes import BIAS_PARTS, WEIGHT_PARTS, Change
from .lora_keys import ONLY_I2V, OWN_PATCHES, ModuleNames

SHOWN = 8
"""So many unknown keys are named in a line."""
LoRASource = str | Path | tuple[str | Path, float]
"""A file, or a file and its strength."""


@dataclass(frozen=True)
class LoRA:
    """What a denoiser takes of a LoRA file.

    Attributes:
        source: the file.
        changes: parameter, in Wan's names -> what is changed.
        strength: by which changes are multiplied.
        of_i2v: keys of parts that only image-to-video models have, passed over.
        of_patches: keys of the patch embedding, which OmniAvatar replaces, passed over.
        unknown: keys that nothing is known of.
    """

    source: str
    changes: Mapping[str, Change]
    strength: float = 1.0
    of_i2v: list[str] = field(default_factory=list)
    of_patches: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)

    def facts(self) -> str:
        """Form, rank, alpha, and how much is changed."""
        forms = Counter(change.form for change in self.changes.values())
        text = " and ".join(f"{form} of {counted(count, 'tensor')}" for form, count in forms.items())
        ranks = sorted({change.rank for change in self.changes.values() if change.rank is not None})
        if ranks:
            text += f", rank {_range(ranks)}"
            alphas = sorted({float(c.parts["alpha"]) for c in self.changes.values() if "alpha" in c.parts})
            text += f", alpha {_range(alphas)}" if alphas else ", no alpha (scale 1)"
        blocks = {name.split(".")[1] for name in self.changes if name.startswith("blocks.")}
        return f"{text}, in {counted(len(blocks), 'block')}"

    def layers(self) -> list[str]:
        """What is changed, without the numbers of blocks, in the order of the file."""
        names = (re.sub(r"^blocks\.\d+\.|\.weight$", "", name) for name in self.changes)
        return list(dict.fromkeys(names))

    def passed_over(self) -> str:
        """What is not used, as the end of a sentence; "" if nothing is left."""
        parts = [f"{counted(len(self.of_i2v), 'key')} of image-to-video models"] if self.of_i2v else []
        parts += [f"{', '.join(self.of_patches)} (OmniAvatar has its own)"] if self.of_patches else []
        if self.unknown:
            more = f" and {len(self.unknown) - SHOWN} more" if len(self.unknown) > SHOWN else ""
            keys = "unknown key" if len(self.unknown) == 1 else "unknown keys"
            parts += [f"{len(self.unknown)} {keys}: {', '.join(self.unknown[:SHOWN])}{more}"]
        return "; ".join(parts)

    def report(self) -> str:
        """One line: what is used, and what is not."""
        line = f"LoRA {self.source} with strength {self.strength:g}: {self.facts()}."
        return f"{line} Not used: {self.passed_over()}." if self.passed_over() else line

    @property
    def has_dora(self) -> bool:
        """Whether a change depends on the weights that it meets."""
        return any("dora" in change.parts for change in self.changes.values())


def _range(numbers: list[int] | list[float]) -> str:
    return f"{numbers[0]:g}" if len(numbers) == 1 else f"{numbers[0]:g} to {numbers[-1]:g}"


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors or .pt file, on the CPU; an alpha that stands beside them is among them.

    Raises:
        CheckpointError: it is damaged, no table of tensors, or has numbers that are not finite.
        OSError: it cannot be opened.
    """
    tensors = _read(path)
    faults = [
        key
        for key, tensor in tensors.items()
        if tensor.is_floating_point() and not torch.isfinite(tensor.to(torch.float32)).all()
    ]
    if faults:
        raise CheckpointError(f"{path}: {faults[0]} has numbers that are not finite.")
    return tensors | stated_alphas(Path(path), tensors)


def read_header(path: str | Path) -> dict[str, Tensor]:
    """What `read_tensors` gives, on the device "meta": the shapes alone, and of a safetensors file no more is read."""
    if Path(path).suffix != ".safetensors":
        return {key: tensor.to("meta") for key, tensor in _read(path).items()}
    try:
        with open_safetensors(path) as content:
            parts = {key: content.get_slice(key) for key in content.keys()}  # noqa: SIM118
            return {key: _meta(part.get_shape(), part.get_dtype()) for key, part in parts.items()}
    except DamagedFileError as error:
        raise CheckpointError(str(error)) from error


def _meta(shape: list[int], dtype: str) -> Tensor:
    """An empty tensor of a shape, of floats or not as safetensors names the format."""
    is_float = dtype.startswith(("F", "BF"))
    return torch.empty(shape, dtype=torch.float32 if is_float else torch.int64, device="meta")


def _read(path: str | Path) -> dict[str, Tensor]:
    try:
        content = read_safetensors(path) if Path(path).suffix == ".safetensors" else read_pickle(path)
    except DamagedFileError as error:
        raise CheckpointError(str(error)) from error
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict) or not all(isinstance(tensor, Tensor) for tensor in content.values()):
        raise CheckpointError(f"{path} holds no table of tensors; wanted a LoRA file.")
    if not all(isinstance(key, str) for key in content):
        raise CheckpointError(f"{path} holds tensors without names; wanted a LoRA file.")
    return content


@dataclass(frozen=True)
class ReadLoRA:
    """A LoRA file's tensors, and the strength that is wanted of it."""

    source: str
    tensors: Mapping[str, Tensor]
    strength: float = 1.0

    @classmethod
    def of(cls, given: LoRASource) -> ReadLoRA:
        """Read a file; raises as `read_tensors`, and ValueError for a strength that is no number."""
        path, strength = with_strength(given)
        return cls(str(path), read_tensors(path), strength)


def with_strength(given: LoRASource) -> tuple[Path, float]:
    """File and strength.

    Raises:
        ValueError: the strength is not a number.
    """
    path, strength = given if isinstance(given, tuple) else (given, 1.0)
    if not isinstance(strength, int | float) or isinstance(strength, bool) or not math.isfinite(strength):
        raise ValueError(f"LoRA {path}: strength is {strength!r}, wanted a number.")
    return Path(path), float(strength)


def base_lora(given: LoRASource) -> BaseLoRA:
    """What a checkpoint records of a LoRA in the weights that it was trained on."""
    path, strength = with_strength(given)
    return BaseLoRA(file=path.name, sha256=file_sha256(path), strength=strength)


def missing_base(recorded: Iterable[BaseLoRA], given: Iterable[LoRASource]) -> list[str]:
    """The LoRAs that a checkpoint was trained on and that are not among the given ones, each as FILE:STRENGTH and
    hash.
    """
    wanted = list(recorded)
    there = {(one.sha256, one.strength) for one in map(base_lora, given)} if wanted else set()
    return [str(one) for one in wanted if (one.sha256, one.strength) not in there]


def lora_of(
    tensors: Mapping[str, Tensor], wanted: Mapping[str, Iterable[int]], source: str, strength: float = 1.0
) -> LoRA:
    """What a denoiser takes of a LoRA file.

    Args:
        tensors: what `read_tensors` or `read_header` gives.
        wanted: shapes of all the denoiser's parameters, by Wan's names.
        source: the file, for messages.
        strength: see `LoRA`.

    Raises:
        CheckpointError: no key fits, a shape does not, or the file is an OmniAvatar checkpoint.
    """
    if is_omniavatar(normalise_keys(tensors)):
        raise CheckpointError(f"{source} is an OmniAvatar checkpoint, not a LoRA beside it: give it with --omniavatar.")
    names = ModuleNames(wanted)
    modules: dict[str, dict[str, str]] = {}
    of_i2v, of_patches, unknown = [], [], []
    for key, tensor in tensors.items():
        found = names.split(key)
        if found is None:
            unknown.append(key)
        elif ONLY_I2V.search(found[0]):
            of_i2v.append(key)
        elif found[0] == OWN_PATCHES:
            of_patches.append(key)
        elif found[1] != "alpha" and not tensor.is_floating_point():
            raise CheckpointError(f"{source}: {key} is {tensor.dtype}, wanted floats.")
        else:
            parts = modules.setdefault(found[0], {})
            if found[1] in parts:
                raise CheckpointError(f"{source}: {parts[found[1]]} and {key} are the same part.")
            parts[found[1]] = key
    changes: dict[str, Change] = {}
    for module, keys in modules.items():
        of_module = dict(_changes(module, {part: tensors[key] for part, key in keys.items()}, wanted))
        if not of_module or any(name not in wanted for name in of_module):
            unknown += keys.values()
            continue
        for name, change in of_module.items():
            _check(change, name, list(wanted[name]), source)
        changes |= of_module
    if not changes:
        raise CheckpointError(_no_match(source, tensors, [*of_i2v, *of_patches]))
    return LoRA(source, changes, strength, of_i2v, of_patches, sorted(unknown))


def _no_match(source: str, tensors: Mapping[str, Tensor], passed: list[str]) -> str:
    kind = "is no LoRA file of this model" if any(map(_looks_low_rank, tensors)) or passed else "is no LoRA file"
    example = f", like {next(iter(tensors))!r}" if tensors else ""
    only = f"; {counted(len(passed), 'key')} of image-to-video models or the patch embedding" if passed else ""
    return f"{source} {kind}: none of its {counted(len(tensors), 'key')} fits{example}{only}."


def _looks_low_rank(key: str) -> bool:
    return bool(LORA_KEY.match(key)) or any(word in key for word in ("lora_", "lokr_", "hada_", ".diff"))


def _changes(
    module: str, parts: Mapping[str, Tensor], wanted: Mapping[str, Iterable[int]]
) -> Iterator[tuple[str, Change]]:
    """Parameter -> what a module's parts change of it. They may be wanted or not."""
    found = set(parts)
    if module in wanted or "diff_m" in found:  # a parameter that is no layer's: `modulation`
        yield (module if module in wanted else f"{module}.modulation", Change(parts))
        return
    if any(part in WEIGHT_PARTS or part.startswith(("lokr_", "hada_")) for part in found):
        yield f"{module}.weight", Change(parts)
    if found & set(BIAS_PARTS):
        yield f"{module}.bias", Change(parts, of_bias=True)


def _check(change: Change, name: str, shape: list[int], source: str) -> None:
    """Raise CheckpointError if a change does not fit its parameter; nothing is computed."""
    try:
        change.of_shapes().applied(torch.empty(shape, device="meta"), 1.0)
    except ValueError as error:
        raise CheckpointError(f"{source}: {name} {error}.") from error
