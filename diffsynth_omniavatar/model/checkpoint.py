"""OmniAvatar checkpoints: detection, strict loading, channel growth, LoRA, conversion.

A checkpoint is a flat dict of tensors in one of two forms:

* LoRA: `blocks.N....lora_{A,B}[.default].weight`, `patch_embedding.*`, `audio_proj.*`, `audio_cond_projs.*`, to be
  put on a Wan transformer (the released files);
* full: all weights of the denoiser.

It is a `.pt` or `.safetensors` file, a list of such files, or a folder with one, and its `config.json` may stand
beside it. Inside this module the keys have one spelling: no prefix and no adapter name.
"""

from __future__ import annotations

import json
import logging
import os
import re
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from .. import host
from .config import AUDIO_WINDOW, LATENT_CHANNELS, PRESETS, CheckpointConfig, LoRAConfig, OmniAvatarConfig
from .dit import OmniAvatarDiT, config_fields, state_dict_shapes

logger = logging.getLogger(__name__)

Form = Literal["lora", "full"]
Target = Literal["omniavatar", "lora", "merged"]

SAFETENSORS_CONFIG = "omniavatar_config"
"""Metadata entry of a safetensors file that holds the content of its config.json."""
EXTRA_MODULES = ("patch_embedding.", "audio_proj.", "audio_cond_projs.")
"""What a LoRA checkpoint holds besides the low-rank parts."""
WEIGHT_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")
KEY_PREFIXES = ("diffusion_model.", "module.", "model.", "pipe.dit.", "dit.")
LORA_KEY = re.compile(r"^(?P<module>.+)\.lora_(?P<part>[AB])\.(?:[^.]+\.)?weight$")
XAVIER_GAIN = 0.05
WAN_HEAD_WIDTH = 128

MERGED_HASHES: dict[str, tuple[str, int]] = {
    "2bf9513c7a3e908015f11a800fc9b820": ("1.3B", 33),
    "ff371243ce4d362b6012c29dc5fda0e5": ("1.3B", 49),
    "959e16c2c680898689a756808f122a39": ("1.3B", 65),
    "883a90b12576b9b8693a08cf690998dd": ("14B", 33),
    "5f50137dbdd202536e1d524015c46d1c": ("14B", 49),
    "2d122b4a8242aa070ca06cdf2b132dd4": ("14B", 65),
}
"""The host's hash of a full checkpoint of the published sizes -> (preset, input channels)."""


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
        return sorted({match["module"] for key in self.tensors if (match := LORA_KEY.match(key))})


# ---------------------------------------------------------------------------------------------------------------- files


def weight_files(path: str | Path | Iterable[str | Path]) -> list[Path]:
    """The weight files that `path` means: a file, files (a hub download), or a folder with a checkpoint.

    In a folder `pytorch_model.pt` comes first, then a single safetensors file or its shards, then a single .pt file.

    Raises:
        FileNotFoundError: nothing is there.
        CheckpointError: the folder has several candidates, or the list no weights.
    """
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
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (RuntimeError, UnpicklingError, EOFError, ValueError) as error:
        raise CheckpointError(f"{path} is no file of tensors, and nothing of it was executed: {error}") from error
    for wrapper in ("state_dict", "module", "model_state", "model"):
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise CheckpointError(f"{path} holds {type(content).__name__}, wanted a flat dict of tensors.")
    return content


@contextmanager
def _open_safetensors(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as content:
            yield content
    except SafetensorError as error:
        raise CheckpointError(f"{path} is no valid safetensors file: {error}") from error


def read_tensors(files: Iterable[Path]) -> dict[str, Tensor]:
    """All tensors of the files, on the CPU.

    Raises:
        CheckpointError: a file is damaged, or no dict of tensors. Pickles are never executed.
    """
    tensors: dict[str, Tensor] = {}
    for file in files:
        if file.suffix == ".safetensors":
            with _open_safetensors(file) as content:
                tensors.update({name: content.get_tensor(name) for name in content.keys()})  # noqa: SIM118
        else:
            tensors.update(_read_pickle(file))
    return tensors


def read_shapes(files: Iterable[Path]) -> dict[str, list[int]]:
    """Names, as they are spelt, and shapes of all tensors of the files, without reading the tensors."""
    shapes: dict[str, list[int]] = {}
    for file in files:
        if file.suffix == ".safetensors":
            with _open_safetensors(file) as content:
                shapes.update({name: content.get_slice(name).get_shape() for name in content.keys()})  # noqa: SIM118
        else:
            shapes.update({name: list(tensor.shape) for name, tensor in _read_pickle(file).items()})
    return shapes


def read_config(files: list[Path]) -> CheckpointConfig:
    """What a safetensors file's metadata or else the config.json beside the first file says; defaults if neither is
    there.
    """
    if files[0].suffix == ".safetensors":
        with _open_safetensors(files[0]) as content:
            metadata = content.metadata() or {}
        if SAFETENSORS_CONFIG in metadata:
            return CheckpointConfig.from_dict(json.loads(metadata[SAFETENSORS_CONFIG]), str(files[0]))
    config_file = files[0].parent / "config.json"
    return CheckpointConfig.load(config_file) if config_file.is_file() else CheckpointConfig()


def normal_key(key: str) -> str:
    """The one spelling of a key: no prefix, no adapter name."""
    while prefix := next((prefix for prefix in KEY_PREFIXES if key.startswith(prefix)), None):
        key = key.removeprefix(prefix)
    match = LORA_KEY.match(key)
    return f"{match['module']}.lora_{match['part']}.weight" if match else key


def is_omniavatar(names: Iterable[str]) -> bool:
    """Whether keys in the one spelling belong to an OmniAvatar checkpoint."""
    return "audio_proj.proj.weight" in set(names)


# -------------------------------------------------------------------------------------------------------------- reading


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
    in_dim = tensors["patch_embedding.weight"].shape[1] if "patch_embedding.weight" in tensors else None
    if in_dim is None:
        raise CheckpointError(f"{source} has no patch_embedding.weight.")
    if config.in_dim is not None and config.in_dim != in_dim:
        raise CheckpointError(f"{source} takes {in_dim} channels, but its config.json says in_dim {config.in_dim}.")
    config = replace(config, in_dim=in_dim)
    if not is_lora:
        return replace(config, lora=None), tensors
    alphas = {key: tensors[key].item() for key in tensors if key.endswith(".alpha")}
    tensors = {key: tensor for key, tensor in tensors.items() if key not in alphas}
    rank = _lora_rank(tensors, source)
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
    found = {re.sub(r"^blocks\.\d+\.(?:self_attn\.|cross_attn\.)?", "", module) for module in _modules(tensors)}
    lora = LoRAConfig(rank=rank, alpha=alpha, target_modules=targets or tuple(sorted(found)))
    return replace(config, lora=lora), tensors


def _modules(tensors: Mapping[str, Tensor]) -> set[str]:
    return {match["module"] for key in tensors if (match := LORA_KEY.match(key))}


def _lora_rank(tensors: Mapping[str, Tensor], source: str) -> int:
    faults, ranks = [], set()
    for module in sorted(_modules(tensors)):
        down, up = (tensors.get(f"{module}.lora_{part}.weight") for part in "AB")
        if down is None or up is None:
            faults.append(f"{module} has only one of lora_A and lora_B")
        elif down.shape[0] != up.shape[1]:
            faults.append(f"{module}: lora_A {list(down.shape)} and lora_B {list(up.shape)} do not fit")
        else:
            ranks.add(down.shape[0])
    if len(ranks) > 1:
        faults.append(f"the modules have different ranks {sorted(ranks)}")
    if faults:
        raise CheckpointError(f"{source}: {'; '.join(faults)}.")
    return ranks.pop()


def full_config(
    shapes: Mapping[str, Sequence[int]], stated: CheckpointConfig, source: str, num_heads: int | None = None
) -> OmniAvatarConfig:
    """The architecture of a full checkpoint, from its config.json or else from the shapes.

    Args:
        shapes: of all its tensors, keys in the one spelling.
        stated: its config.json.
        source: the path, for messages.
        num_heads: attention heads, if known; else heads of Wan's width 128.

    Raises:
        CheckpointError: the shapes do not tell it (the number of heads, if the head width is not Wan's 128).
    """
    try:
        dim, in_dim = shapes["patch_embedding.weight"][:2]
        if stated.model is not None:
            return replace(stated.model, in_dim=in_dim)
        sizes: dict[str, Any] = {
            "num_layers": 1 + max(int(key.split(".")[1]) for key in shapes if key.startswith("blocks.")),
            "ffn_dim": shapes["blocks.0.ffn.0.weight"][0],
            "text_dim": shapes["text_embedding.0.weight"][1],
            "freq_dim": shapes["time_embedding.0.weight"][1],
            **_audio_sizes(shapes),
        }
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"{source} is no full OmniAvatar checkpoint: {error} is missing.") from error
    if num_heads is None and dim % WAN_HEAD_WIDTH:
        raise CheckpointError(
            f"{source}: a width of {dim} does not tell the number of heads; put a config.json with omniavatar.model "
            "beside it."
        )
    return OmniAvatarConfig(dim=dim, num_heads=num_heads or dim // WAN_HEAD_WIDTH, in_dim=in_dim, **sizes)


def _audio_sizes(shapes: Mapping[str, Sequence[int]]) -> dict[str, int]:
    hidden, width = shapes["audio_proj.proj.weight"]
    return {"audio_dim": width // AUDIO_WINDOW, "audio_hidden_size": hidden}


def config_on_wan(wan: host.WanModel, in_dim: int, **audio_sizes: int) -> OmniAvatarConfig:
    """The architecture that a Wan transformer gets with `in_dim` input channels and an audio part."""
    block = wan.blocks[0]
    return OmniAvatarConfig(
        dim=wan.dim,
        ffn_dim=block.ffn[0].out_features,
        num_heads=block.num_heads,
        num_layers=len(wan.blocks),
        in_dim=in_dim,
        text_dim=wan.text_embedding[0].in_features,
        freq_dim=wan.freq_dim,
        eps=block.norm1.eps,
        patch_size=tuple(wan.patch_size),
        **audio_sizes,
    )


# -------------------------------------------------------------------------------------------------------------- loading


def grow_channels(weight: Tensor, in_dim: int) -> Tensor:
    """Give a patch embedding [D, c, 1, 2, 2] the channels up to `in_dim`, the new ones zero.

    Raises:
        CheckpointError: it already has more.
    """
    channels = weight.shape[1]
    if channels > in_dim:
        raise CheckpointError(f"A patch embedding of {channels} channels does not fit a model of {in_dim}.")
    grown = weight.new_zeros(weight.shape[0], in_dim, *weight.shape[2:])
    grown[:, :channels] = weight
    return grown


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, list[int]]:
    return {name: list(tensor.shape) for name, tensor in tensors.items()}


def grow_model(dit: OmniAvatarDiT, in_dim: int) -> None:
    """Give a loaded model more input channels, the new ones zero, in place."""
    weight = grow_channels(dit.patch_embedding.weight.data, in_dim)
    extras = {"patch_embedding.weight": weight, "patch_embedding.bias": dit.patch_embedding.bias.data}
    extras.update({key: t for key, t in dit.state_dict().items() if key.startswith(EXTRA_MODULES[1:])})
    OmniAvatarDiT.upgrade(dit, replace(dit.config, in_dim=in_dim))
    load_extras(dit, extras, weight.dtype, weight.device)


def _check_shapes(found: Mapping[str, Sequence[int]], wanted: Mapping[str, Sequence[int]], source: str) -> None:
    faults = [f"missing {name}" for name in wanted if name not in found]
    faults += [f"unknown {name}" for name in found if name not in wanted]
    faults += [
        f"{name} is {list(found[name])}, wanted {list(shape)}"
        for name, shape in wanted.items()
        if name in found and list(found[name]) != list(shape)
    ]
    if faults:
        shown = "; ".join(faults[:8]) + (f"; and {len(faults) - 8} more" if len(faults) > 8 else "")
        raise CheckpointError(f"{source} does not fit the model: {shown}.")


def apply_checkpoint(
    wan: host.WanModel,
    checkpoint: Checkpoint,
    *,
    in_dim: int | None = None,
    lora: Literal["fused", "adapters"] = "fused",
    dtype: torch.dtype,
    device: torch.device | str,
    hot_load: Callable[[OmniAvatarDiT, dict[str, Tensor], float], None] | None = None,
) -> OmniAvatarDiT:
    """Make a Wan transformer the checkpoint's model, in place.

    Args:
        wan: the base transformer.
        checkpoint: in LoRA form.
        in_dim: input channels to grow to (the new ones zero); None for the checkpoint's.
        lora: add the low-rank parts to the weights (`W + alpha / rank * B A`, summed in float32), or keep them as peft
            adapters named "default" that can be switched and trained.
        dtype, device: of the new modules and adapters.
        hot_load: the host's way to put LoRA on weights that cannot be added to (quantised or offloaded); used instead
            of fusing if given.

    Raises:
        CheckpointError: keys or shapes do not fit; the message names them.
    """
    if checkpoint.form != "lora":
        raise CheckpointError(f"{checkpoint.source} holds full weights and takes no base model; load it alone.")
    in_dim = in_dim or checkpoint.in_dim
    config = config_on_wan(wan, in_dim, **_audio_sizes(_shapes(checkpoint.tensors)))
    tensors = dict(checkpoint.tensors)
    tensors["patch_embedding.weight"] = grow_channels(tensors["patch_embedding.weight"], in_dim)
    _check_shapes(_shapes(tensors), _wanted_lora_shapes(wan, config, checkpoint), checkpoint.source)

    dit = OmniAvatarDiT.upgrade(wan, config)
    low_rank = {key: tensor for key, tensor in tensors.items() if LORA_KEY.match(key)}
    load_extras(dit, {key: tensor for key, tensor in tensors.items() if key not in low_rank}, dtype, device)
    settings = checkpoint.config.lora
    assert settings is not None
    if lora == "adapters":
        add_adapters(dit, settings, checkpoint.lora_modules, low_rank, dtype)
    elif hot_load is not None:
        hot_load(dit, low_rank, settings.scale)
    else:
        fuse_lora(dit, low_rank, settings.scale)
    return dit.eval()


def _wanted_lora_shapes(wan: host.WanModel, config: OmniAvatarConfig, checkpoint: Checkpoint) -> dict[str, list[int]]:
    """Keys and shapes that a LoRA checkpoint of these target modules must have."""
    assert checkpoint.config.lora is not None
    rank, targets = checkpoint.config.lora.rank, checkpoint.config.lora.target_modules
    wanted = {key: shape for key, shape in state_dict_shapes(config).items() if key.startswith(EXTRA_MODULES)}
    for name, layer in adapted_layers(wan, targets).items():
        wanted[f"{name}.lora_A.weight"] = [rank, layer.in_features]
        wanted[f"{name}.lora_B.weight"] = [layer.out_features, rank]
    return wanted


def adapted_layers(wan: nn.Module, targets: Iterable[str]) -> dict[str, nn.Linear]:
    """The linear layers of a transformer's blocks whose names end in one of `targets`, by name."""
    endings = tuple(f".{target}" for target in targets)
    # Blocks that the host keeps in main memory are wrapped.
    named = ((path.replace(".module.", "."), module) for path, module in wan.named_modules())
    return {
        name: module
        for name, module in named
        if isinstance(module, nn.Linear) and name.startswith("blocks.") and name.endswith(endings)
    }


def load_extras(
    dit: OmniAvatarDiT, tensors: Mapping[str, Tensor], dtype: torch.dtype, device: torch.device | str
) -> None:
    """Load the patch embedding and the audio modules, cast to `dtype` on `device`."""
    for module_name in ("patch_embedding", "audio_proj", "audio_cond_projs"):
        part = {
            key.removeprefix(f"{module_name}."): tensor.to(dtype=dtype, device=device)
            for key, tensor in tensors.items()
            if key.startswith(f"{module_name}.")
        }
        getattr(dit, module_name).load_state_dict(part, strict=True, assign=True)


@torch.no_grad()
def fuse_lora(dit: nn.Module, low_rank: Mapping[str, Tensor], scale: float) -> None:
    """Add `scale * B A` to the adapted weights, summing in float32."""
    for name in _modules(low_rank):
        weight = dit.get_parameter(f"{name}.weight")
        down, up = (low_rank[f"{name}.lora_{part}.weight"].to(weight.device, torch.float32) for part in "AB")
        weight.copy_(weight.float().add_(up @ down, alpha=scale))


def add_adapters(
    dit: OmniAvatarDiT,
    settings: LoRAConfig,
    modules: list[str],
    low_rank: Mapping[str, Tensor],
    dtype: torch.dtype,
) -> None:
    """Inject peft adapters named "default" at `modules` and load them strictly."""
    from peft import LoraConfig, inject_adapter_in_model

    # peft only divides alpha by the rank: any number will do.
    config = LoraConfig(r=settings.rank, lora_alpha=settings.alpha, target_modules=modules)  # type: ignore[arg-type]
    inject_adapter_in_model(config, dit)
    for name in modules:
        layer = dit.get_submodule(name)
        for part in "AB":
            adapter = getattr(layer, f"lora_{part}")["default"]
            adapter.load_state_dict({"weight": low_rank[f"{name}.lora_{part}.weight"]}, strict=True)
            adapter.to(dtype=dtype, device=layer.get_base_layer().weight.device)


@torch.no_grad()
def initialise_on_wan(
    wan: host.WanModel,
    in_dim: int,
    *,
    dtype: torch.dtype,
    device: torch.device | str,
    generator: torch.Generator | None = None,
    **audio_sizes: int,
) -> OmniAvatarDiT:
    """Start training from a Wan text-to-video transformer as upstream's loader does, in place.

    New matrices are `xavier_uniform_(gain=0.05)` and new vectors zero, so the audio has no effect at the first step.
    The patch embedding keeps the base's 16 channels; its others come from the xavier draw of the whole tensor.

    Source: `smart_load_weights` of upstream's inference code, with the fill before it.
    """
    base = {key: tensor.detach().clone() for key, tensor in wan.patch_embedding.state_dict().items()}
    config = config_on_wan(wan, in_dim, **audio_sizes)
    dit = OmniAvatarDiT.upgrade(wan, config)
    extras: dict[str, Tensor] = {}
    for key, shape in state_dict_shapes(config).items():
        if not key.startswith(EXTRA_MODULES):
            continue
        extras[key] = torch.zeros(shape)
        if len(shape) > 1:
            nn.init.xavier_uniform_(extras[key], gain=XAVIER_GAIN, generator=generator)
    extras["patch_embedding.weight"][:, :LATENT_CHANNELS] = base["weight"].float().cpu()
    extras["patch_embedding.bias"] = base["bias"].float().cpu()
    load_extras(dit, extras, dtype, device)
    return dit


# ------------------------------------------------------------------------------------------------- the host's detection


def add_merged_entries() -> None:
    """Tell the host's loader the full checkpoints of the published sizes."""
    for hash_, (preset, in_dim) in MERGED_HASHES.items():
        fields = config_fields(replace(PRESETS[preset], in_dim=in_dim))
        host.add_model_entry(hash_, "wan_video_dit", f"{__package__}.dit.build_dit", None, fields)


def add_full_entry(path: str | Path | Iterable[str | Path]) -> CheckpointConfig:
    """Tell the host's loader a full checkpoint of any size, so that it loads it like its own models.

    Raises:
        CheckpointError: keys or shapes are not those of a full checkpoint.
    """
    files = weight_files(path)
    raw, stated = read_shapes(files), read_config(files)
    shapes = normalise_keys(raw)
    config = full_config(shapes, stated, str(files[0]))
    _check_shapes(shapes, state_dict_shapes(config), str(files[0]))
    host.add_model_entry(
        host.model_hash(raw),
        "wan_video_dit",
        f"{__package__}.dit.build_dit",
        None if list(raw) == list(shapes) else f"{__name__}.normalise_keys",
        config_fields(config),
    )
    return replace(stated, model=config)


def normalise_keys(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """A state dict, or anything keyed like one, with its keys in the one spelling."""
    return {normal_key(key): state_dict[key] for key in state_dict}


# -------------------------------------------------------------------------------------------------------------- writing


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary file in the same folder, then rename it to `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def save_omniavatar(folder: str | Path, tensors: Mapping[str, Tensor], config: CheckpointConfig) -> None:
    """Write `pytorch_model.pt` and `config.json` as released (adapter keys spelt `lora_A.default.weight`)."""
    flat = {re.sub(r"\.lora_([AB])\.weight$", r".lora_\1.default.weight", key): t for key, t in tensors.items()}
    flat = {key: tensor.detach().contiguous().cpu() for key, tensor in flat.items()}
    write_atomically(Path(folder) / "pytorch_model.pt", lambda path: torch.save(flat, path))
    content = json.dumps(config.to_dict(), indent=2) + "\n"
    write_atomically(Path(folder) / "config.json", lambda path: _write_text(path, content))


def _write_text(path: Path, content: str) -> None:
    path.write_text(content, encoding="utf-8")


def save_safetensors(path: str | Path, tensors: Mapping[str, Tensor], config: CheckpointConfig) -> None:
    """Write a single file that carries its config.json in the metadata."""
    flat = {key: tensor.detach().contiguous().cpu() for key, tensor in tensors.items()}
    metadata = {"format": "pt", SAFETENSORS_CONFIG: json.dumps(config.to_dict())}
    write_atomically(Path(path), lambda temporary: save_file(flat, temporary, metadata=metadata))


def trained_tensors(dit: OmniAvatarDiT) -> dict[str, Tensor]:
    """The tensors of a LoRA checkpoint from a model with peft adapters: adapters, patch embedding, audio modules."""
    return {
        normal_key(key): tensor
        for key, tensor in dit.state_dict().items()
        if LORA_KEY.match(key) or key.startswith(EXTRA_MODULES)
    }


def lora_file_tensors(checkpoint: Checkpoint) -> tuple[dict[str, Tensor], LoRAConfig]:
    """The tensors of a LoRA file that DiffSynth and ComfyUI load with strength 1.

    DiffSynth 1.1.9 multiplies with 1 and the others with alpha / rank, so the scale is folded into B and alpha is
    the rank. The patch embedding and the audio modules stay in the file: those programs pass over them, and this
    package reads them.
    """
    lora = checkpoint.config.lora
    if lora is None:
        raise CheckpointError(f"{checkpoint.source} holds full weights; there is no LoRA in it to write.")
    tensors: dict[str, Tensor] = {}
    for key, tensor in checkpoint.tensors.items():
        is_up = key.endswith(".lora_B.weight")
        tensors[f"diffusion_model.{key}"] = (tensor.float() * lora.scale).to(tensor.dtype) if is_up else tensor
    for module in checkpoint.lora_modules:
        tensors[f"diffusion_model.{module}.alpha"] = torch.tensor(float(lora.rank))
    return tensors, replace(lora, alpha=float(lora.rank))


def merged_tensors(
    checkpoint: Checkpoint, base: str | Path | Iterable[str | Path]
) -> tuple[dict[str, Tensor], OmniAvatarConfig]:
    """All weights of the denoiser: the base's with the checkpoint's on top, in the base's number format.

    Args:
        checkpoint: in LoRA form.
        base: the Wan transformer's weight files; the config.json beside them, if any, tells the number of heads.
    """
    files = weight_files(base)
    tensors = normalise_keys(read_tensors(files))
    low_rank = {key: tensor for key, tensor in checkpoint.tensors.items() if LORA_KEY.match(key)}
    missing = [name for name in _modules(low_rank) if f"{name}.weight" not in tensors]
    if missing:
        raise CheckpointError(f"{checkpoint.source} adapts {missing[0]} and others, which {files[0]} does not have.")
    assert checkpoint.config.lora is not None
    for name in _modules(low_rank):
        weight = tensors[f"{name}.weight"]
        down, up = (low_rank[f"{name}.lora_{part}.weight"].float() for part in "AB")
        tensors[f"{name}.weight"] = weight.float().add_(up @ down, alpha=checkpoint.config.lora.scale).to(weight.dtype)
    dtype = tensors["patch_embedding.weight"].dtype
    extras = {key: tensor.to(dtype) for key, tensor in checkpoint.tensors.items() if key not in low_rank}
    tensors.update(extras)
    wan_config = files[0].parent / "config.json"
    heads = json.loads(wan_config.read_text(encoding="utf-8")).get("num_heads") if wan_config.is_file() else None
    config = full_config(_shapes(tensors), checkpoint.config, str(files[0]), heads)
    _check_shapes(_shapes(tensors), state_dict_shapes(config), f"{checkpoint.source} on {files[0]}")
    return tensors, config


def _grown(checkpoint: Checkpoint, in_dim: int) -> Checkpoint:
    weight = grow_channels(checkpoint.tensors["patch_embedding.weight"], in_dim)
    model = None if checkpoint.config.model is None else replace(checkpoint.config.model, in_dim=in_dim)
    config = replace(checkpoint.config, in_dim=in_dim, model=model)
    return replace(checkpoint, tensors={**checkpoint.tensors, "patch_embedding.weight": weight}, config=config)


def convert(
    source: str | Path,
    out: str | Path,
    to: Target,
    *,
    base: str | Path | Iterable[str | Path] | None = None,
    in_dim: int | None = None,
) -> Path:
    """Write a checkpoint in another form.

    Args:
        source: checkpoint of any form.
        out: a folder for "omniavatar", a .safetensors file for "lora" and "merged".
        to: "omniavatar" (pytorch_model.pt and config.json), "lora" (a LoRA file for DiffSynth and ComfyUI) or "merged"
            (all weights in one file).
        base: weight files of the Wan transformer, needed to merge a LoRA checkpoint.
        in_dim: grow the input channels (33 -> 49 -> 65), the new ones zero.

    Returns:
        The file written.

    Raises:
        CheckpointError: the conversion is not possible; the message says why.
    """
    checkpoint = load_checkpoint(source)
    if in_dim is not None:
        checkpoint = _grown(checkpoint, in_dim)
    out = Path(out)
    if to == "omniavatar":
        save_omniavatar(out, checkpoint.tensors, checkpoint.config)
        return out / "pytorch_model.pt"
    if out.suffix != ".safetensors":
        raise CheckpointError(f"{out} must end in .safetensors for --to {to}.")
    if to == "lora":
        tensors, lora = lora_file_tensors(checkpoint)
        save_safetensors(out, tensors, replace(checkpoint.config, lora=lora))
    elif checkpoint.form == "full":
        model = full_config(_shapes(checkpoint.tensors), checkpoint.config, checkpoint.source)
        save_safetensors(out, checkpoint.tensors, replace(checkpoint.config, model=model))
    elif base is None:
        raise CheckpointError(f"{source} is a LoRA checkpoint: name the Wan transformer to merge it into with --base.")
    else:
        tensors, merged = merged_tensors(checkpoint, base)
        save_safetensors(out, tensors, replace(checkpoint.config, lora=None, model=merged))
    return out
