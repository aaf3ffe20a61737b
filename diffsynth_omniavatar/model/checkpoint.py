"""OmniAvatar checkpoints: their files, detection, reading and writing.

A checkpoint is a flat dict of tensors in one of two forms:

* LoRA: `blocks.N....lora_{A,B}[.default].weight`, `patch_embedding.*`, `audio_proj.*`, `audio_cond_projs.*`, to be
  put on a Wan transformer (the released files);
* full: all weights of the denoiser.

It is a `.pt` or `.safetensors` file, a list of such files, or a folder with one, and its `config.json` may stand
beside it. Inside this package the keys have one spelling: no prefix and no adapter name.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from ..system.atomic import write_text_atomically
from ..system.tensor_files import (
    DamagedFileError,
    open_safetensors,
    read_pickle,
    read_safetensors,
    write_pickle,
    write_safetensors,
)
from .checkpoint_presets import preset_of_file
from .config import CheckpointConfig, LoRAConfig, LoRAKind
from .files import HubFiles, ModelFiles, Source

logger = logging.getLogger(__name__)

Form = Literal["lora", "full"]

SAFETENSORS_CONFIG = "omniavatar_config"
"""Metadata entry of a safetensors file that holds the content of its config.json."""
EXTRA_MODULES = ("patch_embedding.", "audio_proj.", "audio_cond_projs.")
"""What a LoRA checkpoint holds besides the low-rank parts."""
WEIGHT_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")
KEY_PREFIXES = ("diffusion_model.", "module.", "model.", "pipe.dit.", "dit.")
SCALE = ".weight_scale"
"""Ending of the key of the factors of a layer in 8 bits; see `quantized_files`."""
LORA_KEY = re.compile(
    r"^(?P<module>.+)\.(?:(?P<lora>lora_(?:[AB]|magnitude_vector))\.(?:[^.]+\.)?weight"
    r"|(?P<lycoris>(?:lokr|hada)_w[12](?:_[ab])?)(?:\.[^.]+)?)$"
)
"""Keys of LoRA and DoRA, which are layers, and of LoKr and LoHa, which are tensors; with an adapter's name or not."""


class CheckpointError(ValueError):
    """A file is no OmniAvatar checkpoint or does not fit the model; the message names the file and every fault."""


@dataclass(frozen=True)
class Checkpoint:
    """A loaded checkpoint.

    Attributes:
        tensors: by key, in the one spelling.
        form: "lora" or "full".
        config: what its config.json says, completed from the shapes.
        source: the path, for messages.
    """

    tensors: dict[str, Tensor]
    form: Form
    config: CheckpointConfig
    source: str

    @property
    def in_dim(self) -> int:
        """Input channels of the denoiser."""
        return self.tensors["patch_embedding.weight"].shape[1]

    @property
    def lora_modules(self) -> list[str]:
        """Names of the adapted modules."""
        return sorted(adapted_modules(self.tensors))


def weight_files(path: str | Path | Iterable[str | Path]) -> list[Path]:
    """The weight files that `path` means: a file, files (a hub download), or a folder with a checkpoint.

    In a folder `pytorch_model.pt` comes first, then a single safetensors file or its shards, then a single .pt file.

    Raises:
        FileNotFoundError: nothing is there.
        CheckpointError: the folder has several candidates, or the list no weights, or a file is known as one that
            cannot be used.
    """
    files = _named_files(path)
    for file in files:
        preset = preset_of_file(file)
        if preset is not None and preset.conventions is None:
            raise CheckpointError(f"{file}: {preset.reason}.")
    return files


def _named_files(path: str | Path | Iterable[str | Path]) -> list[Path]:
    if not isinstance(path, (str, Path)):
        files = [Path(entry) for entry in path]
        named = [file for file in files if file.name == "pytorch_model.pt"]
        weights = named or [file for file in files if file.suffix in WEIGHT_SUFFIXES]
        if not weights:
            raise CheckpointError(f"None of {[str(file) for file in files]} is a {' or '.join(WEIGHT_SUFFIXES)} file.")
        return sorted(weights)
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist.")
    if path.is_file():
        return [path]
    if (path / "pytorch_model.pt").is_file():
        return [path / "pytorch_model.pt"]
    for suffix in WEIGHT_SUFFIXES:
        found = sorted(path.glob(f"*{suffix}"))
        shards = [file for file in found if re.search(r"-\d{5}-of-\d{5}$", file.stem)]
        if len(found) == 1 or (found and found == shards):
            return found
        if found:
            raise CheckpointError(f"{path} holds {[file.name for file in found]}; name the one to load.")
    raise FileNotFoundError(f"{path} holds no {' or '.join(WEIGHT_SUFFIXES)} file.")


def _read_pickle(path: Path) -> dict[str, Tensor]:
    with _named_faults():
        content = read_pickle(path)
    for wrapper in ("state_dict", "module", "model_state", "model"):
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise CheckpointError(f"{path} holds {type(content).__name__}, wanted a flat dict of tensors.")
    return content


@contextmanager
def _named_faults() -> Iterator[None]:
    """A damaged file is a kind of faulty checkpoint."""
    try:
        yield
    except DamagedFileError as error:
        raise CheckpointError(str(error)) from error


def read_tensors(files: Iterable[Path]) -> dict[str, Tensor]:
    """All tensors of the files, on the CPU.

    Raises:
        CheckpointError: a file is damaged, or no dict of tensors. Pickles are never executed.
    """
    tensors: dict[str, Tensor] = {}
    for file in files:
        if file.suffix == ".safetensors":
            with _named_faults():
                tensors.update(read_safetensors(file))
        else:
            tensors.update(_read_pickle(file))
    return tensors


def read_shapes(files: Iterable[Path]) -> dict[str, list[int]]:
    """Names, as they are spelt, and shapes of all tensors of the files, without reading the tensors."""
    shapes: dict[str, list[int]] = {}
    for file in files:
        if file.suffix == ".safetensors":
            with _named_faults(), open_safetensors(file) as content:
                shapes.update({name: content.get_slice(name).get_shape() for name in content.keys()})  # noqa: SIM118
        else:
            shapes.update(shapes_of(_read_pickle(file)))
    return shapes


def read_config(files: list[Path]) -> CheckpointConfig:
    """What a safetensors file's metadata or else the config.json beside the first file says; if neither is there, what
    is known of a file of this name, or the defaults.
    """
    if files[0].suffix == ".safetensors":
        with _named_faults(), open_safetensors(files[0]) as content:
            metadata = content.metadata() or {}
        if SAFETENSORS_CONFIG in metadata:
            return CheckpointConfig.parse(metadata[SAFETENSORS_CONFIG], f"{files[0]}: {SAFETENSORS_CONFIG}")
    config_file = files[0].parent / "config.json"
    if config_file.is_file():
        return CheckpointConfig.load(config_file)
    preset = preset_of_file(files[0])
    if preset is None or preset.conventions is None:
        return CheckpointConfig()
    return CheckpointConfig(conventions=preset.conventions)


def needed_sources(files: ModelFiles) -> dict[str, Source]:
    """The parts of a model that are to be loaded: a full checkpoint stands for the base transformer too.

    Raises:
        FileNotFoundError: files are missing; the message lists them.
        CheckpointError: the checkpoint cannot be read.
    """
    sources, missing = dict(files.sources), files.missing()
    if "omniavatar" not in missing and _is_full(sources["omniavatar"]):
        sources.pop("dit", None)
        missing.pop("dit", None)
    if missing:
        listed = "; ".join(f"{part}: {path}" for part, path in missing.items())
        raise FileNotFoundError(
            f"Files of the model are missing: {listed}. `omniavatar doctor` tells where to get them."
        )
    return sources


def _is_full(source: Source) -> bool:
    if isinstance(source, HubFiles):
        return False
    return not any(LORA_KEY.match(key) for key in normalise_keys(read_shapes(_files_of(source))))


def _files_of(source: tuple[Path, ...]) -> list[Path]:
    return weight_files(source[0] if len(source) == 1 else source)


def read_facts(source: Source) -> CheckpointConfig | None:
    """What a checkpoint says of itself, read from its config and the header of its file, `in_dim` included.

    Returns:
        None for a checkpoint that is yet to be downloaded.

    Raises:
        CheckpointError: it cannot be read.
    """
    if isinstance(source, HubFiles):
        return None
    paths = _files_of(source)
    config = read_config(paths)
    if config.in_dim is not None:
        return config
    return replace(config, in_dim=_channels(normalise_keys(read_shapes(paths)), str(paths[0])))


def denoiser_shapes(source: tuple[Path, ...]) -> dict[str, list[int]] | None:
    """Shapes of all parameters of a denoiser's files by Wan's names; None if they have others.

    Raises:
        CheckpointError: a file cannot be read.
    """
    shapes = normalise_keys(read_shapes(_files_of(source)))
    return shapes if "blocks.0.self_attn.q.weight" in shapes else None


def normal_key(key: str) -> str:
    """The one spelling of a key: no prefix, no adapter name."""
    while prefix := next((prefix for prefix in KEY_PREFIXES if key.startswith(prefix)), None):
        key = key.removeprefix(prefix)
    part = low_rank_part(key)
    return key if part is None else ".".join(part)


def low_rank_part(key: str) -> tuple[str, str] | None:
    """Module and part, like `lora_A.weight` or `lokr_w1`, of the key of a low-rank part; None for other keys."""
    match = LORA_KEY.match(key)
    if match is None:
        return None
    return match["module"], match["lycoris"] or f"{match['lora']}.weight"


def normalise_keys(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """A state dict, or anything keyed like one, with its keys in the one spelling."""
    return {normal_key(key): state_dict[key] for key in state_dict}


def shapes_of(tensors: Mapping[str, Tensor]) -> dict[str, list[int]]:
    """Name -> shape."""
    return {name: list(tensor.shape) for name, tensor in tensors.items()}


def adapted_modules(tensors: Mapping[str, Tensor]) -> set[str]:
    """Names of the modules that have a low-rank part."""
    return {part[0] for key in tensors if (part := low_rank_part(key))}


def has_scales(names: Iterable[str]) -> bool:
    """Whether keys are those of a checkpoint in 8 bits."""
    return any(name.endswith(SCALE) for name in names)


def is_omniavatar(names: Iterable[str]) -> bool:
    """Whether keys in the one spelling belong to an OmniAvatar checkpoint."""
    return "audio_proj.proj.weight" in set(names)


def load_checkpoint(path: str | Path | Iterable[str | Path]) -> Checkpoint:
    """Read a checkpoint and find out its form, sizes and conventions.

    Args:
        path: file, files or folder; a `config.json` in the same folder is read too.

    Raises:
        FileNotFoundError: nothing is there.
        CheckpointError: no OmniAvatar checkpoint, damaged, or its config.json contradicts it.
    """
    files = weight_files(path)
    source = str(files[0])
    tensors = normalise_keys(read_tensors(files))
    if not is_omniavatar(tensors):
        raise CheckpointError(f"{source} is no OmniAvatar checkpoint: it has no audio_proj.proj.weight.")
    config = read_config(files)
    is_lora = any(LORA_KEY.match(key) for key in tensors)
    config, tensors = _complete(config, tensors, source, is_lora)
    return Checkpoint(tensors=tensors, form="lora" if is_lora else "full", config=config, source=source)


def read_lora(path: str | Path | Iterable[str | Path]) -> LoRAConfig | None:
    """Rank, alpha and target modules of a checkpoint's low-rank part; None if it holds full weights."""
    return load_checkpoint(path).config.lora


def _complete(
    config: CheckpointConfig, tensors: dict[str, Tensor], source: str, is_lora: bool
) -> tuple[CheckpointConfig, dict[str, Tensor]]:
    """Fill in what the config does not say from the shapes; take `alpha` entries out of the tensors."""
    in_dim = _channels(shapes_of(tensors), source)
    faults = [
        f"{key} is {tensor.dtype}"
        for key, tensor in tensors.items()
        if not tensor.is_floating_point() and key.removesuffix(".weight") + SCALE not in tensors
    ]
    if faults:
        raise CheckpointError(f"{source}: {'; '.join(faults[:8])}; wanted floats.")
    if config.in_dim is not None and config.in_dim != in_dim:
        raise CheckpointError(f"{source} takes {in_dim} channels, but its config.json says in_dim {config.in_dim}.")
    config = replace(config, in_dim=in_dim)
    if not is_lora:
        return replace(config, lora=None), tensors
    large = [key for key, tensor in tensors.items() if key.endswith(".alpha") and tensor.numel() != 1]
    if large:
        raise CheckpointError(f"{source}: {large[0]} has the shape {list(tensors[large[0]].shape)}, wanted one number.")
    alphas = {key: tensors[key].item() for key in tensors if key.endswith(".alpha")}
    tensors = {key: tensor for key, tensor in tensors.items() if key not in alphas}
    kind, stated = _lora_kind(tensors), "lora" if config.lora is None else config.lora.kind
    if kind != stated:
        raise CheckpointError(f"{source} has low-rank parts of a {kind}, but its config.json, if any, says {stated}.")
    rank = _lora_rank(tensors, source, config.lora)
    if len(set(alphas.values())) > 1:
        raise CheckpointError(f"{source} has different alphas: {sorted(set(alphas.values()))}.")
    targets = config.lora.target_modules if config.lora is not None else None
    if config.lora is not None and config.lora.rank != rank:
        raise CheckpointError(f"{source} has LoRA rank {rank}, but its config.json says lora_rank {config.lora.rank}.")
    if alphas:
        alpha = next(iter(alphas.values()))
    elif config.lora is not None:
        alpha = config.lora.alpha
    else:
        alpha = rank / 2
        logger.warning("%s has no config.json: LoRA alpha is taken as %g, half its rank as released.", source, alpha)
    found = {re.sub(r"^blocks\.\d+\.(?:self_attn\.|cross_attn\.)?", "", module) for module in adapted_modules(tensors)}
    try:
        pattern = () if config.lora is None else config.lora.rank_pattern
        targets = targets or tuple(sorted(found))
        lora = LoRAConfig(rank=rank, alpha=alpha, target_modules=targets, kind=kind, rank_pattern=pattern)
    except ValueError as error:
        raise CheckpointError(f"{source}: {error}") from error
    return replace(config, lora=lora), tensors


def _channels(shapes: Mapping[str, list[int]], source: str) -> int:
    """Input channels of a checkpoint; CheckpointError if its shapes do not tell them."""
    for name, dimensions in (("patch_embedding.weight", 5), ("audio_proj.proj.weight", 2)):
        if name not in shapes:
            raise CheckpointError(f"{source} has no {name}.")
        if len(shapes[name]) != dimensions:
            raise CheckpointError(f"{source}: {name} has the shape {shapes[name]}, wanted {dimensions} dimensions.")
    return shapes["patch_embedding.weight"][1]


def _lora_kind(tensors: Mapping[str, Tensor]) -> LoRAKind:
    parts = {part[1] for key in tensors if (part := low_rank_part(key))}
    if any(part.startswith(("lokr", "hada")) for part in parts):
        return "lokr" if any(part.startswith("lokr") for part in parts) else "loha"
    return "dora" if "lora_magnitude_vector.weight" in parts else "lora"


def _lora_rank(tensors: Mapping[str, Tensor], source: str, said: LoRAConfig | None) -> int:
    """The rank; of layers with other ranks only if they are those that the config says."""
    if said is not None and _lora_kind(tensors) in ("lokr", "loha"):  # whose shapes alone do not tell it
        return said.rank
    faults, ranks = [], set()
    for module in sorted(adapted_modules(tensors)):
        down, up = (tensors.get(f"{module}.lora_{part}.weight") for part in "AB")
        if down is None or up is None:
            faults.append(f"{module} has only one of lora_A and lora_B")
        elif down.ndim != 2 or up.ndim != 2 or down.shape[0] != up.shape[1]:
            faults.append(f"{module}: lora_A {list(down.shape)} and lora_B {list(up.shape)} do not fit")
        elif said is not None and said.rank_pattern:
            if down.shape[0] != said.rank_of(module):
                faults.append(f"{module} has rank {down.shape[0]}, its config.json says {said.rank_of(module)}")
            ranks.add(said.rank)
        else:
            ranks.add(down.shape[0])
    if len(ranks) > 1:
        faults.append(f"the modules have different ranks {sorted(ranks)}")
    if faults:
        raise CheckpointError(f"{source}: {'; '.join(faults)}.")
    return ranks.pop()


def save_omniavatar(folder: str | Path, tensors: Mapping[str, Tensor], config: CheckpointConfig) -> None:
    """Write `pytorch_model.pt` and `config.json` as released (adapter keys spelt `lora_A.default.weight`).

    Raises:
        CheckpointError: the low-rank part is of another kind, or of several ranks, which that form does not have.
    """
    if config.lora is not None and not config.lora.is_plain:
        raise CheckpointError(
            f"OmniAvatar's form has a LoRA of one rank, this is a {config.lora.name} of rank {config.lora.rank} and "
            "others: --to merged."
        )
    flat = {re.sub(r"\.lora_([AB])\.weight$", r".lora_\1.default.weight", key): t for key, t in tensors.items()}
    flat = {key: tensor.detach().contiguous().cpu() for key, tensor in flat.items()}
    write_pickle(Path(folder) / "pytorch_model.pt", flat)
    content = json.dumps(config.to_dict(), indent=2) + "\n"
    write_text_atomically(Path(folder) / "config.json", content)


def save_safetensors(path: str | Path, tensors: Mapping[str, Tensor], config: CheckpointConfig) -> None:
    """Write a single file that carries its config.json in the metadata."""
    flat = {key: tensor.detach().contiguous().cpu() for key, tensor in tensors.items()}
    metadata = {"format": "pt", SAFETENSORS_CONFIG: json.dumps(config.to_dict())}
    write_safetensors(path, flat, metadata)
