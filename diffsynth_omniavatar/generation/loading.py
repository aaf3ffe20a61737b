"""From the name of a model, a folder or single files to a pipeline.

    pipe = load_pipeline("14B", "pretrained_models")

It puts together the arguments of the host's `from_pretrained`, which one can also write by hand.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch

from .. import host
from ..model.blocks.process_grid import CfgParallel
from ..model.blocks.quantized import Method
from ..model.checkpoint import denoiser_shapes, needed_sources
from ..model.checkpoint_presets import preset_conventions
from ..model.config import PRESETS
from ..model.dit import state_dict_shapes
from ..model.files import HUB_FOLDER, HubFiles, ModelFiles, PathOrPaths, Source, hub_file, model_files
from ..model.lora_files import LoRASource, lora_of, read_header, with_strength
from ..model.part_files import check_parts
from ..model.small_family import register_family
from ..system.messages import counted
from .pipeline import OmniAvatarPipeline

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
MODELS_FOLDER_FLAG = "a folder that has the files (--models_folder)"
DOWNLOAD_SOURCES = ("modelscope", "huggingface")
OWN_PARTS = ("omniavatar", "wav2vec2", "LoRA")
"""What this package adds to Wan's files."""
LORA_FLAG = "a file that you have (--lora)"


def choose_device(device: str | None) -> str:
    """The device to run on: the one asked for, or else the GPU if there is one.

    Raises:
        ValueError: PyTorch sees no such device.
    """
    if device is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        kind, index = torch.device(device).type, torch.device(device).index
        count = torch.get_device_module(kind).device_count() if kind != "meta" else 0
    except (RuntimeError, AttributeError) as error:
        raise ValueError(
            f"device {device!r}: there is no such kind of device; wanted cuda, cuda:1, cpu, ..."
        ) from error
    if (index or 0) >= count:
        seen = "no GPU" if kind == "cuda" and not count else f"{counted(count, f'{kind} device')}"
        raise ValueError(f"device {device!r}: PyTorch sees {seen}; `omniavatar doctor` tells more, device 'cpu' works.")
    return device


def choose_dtype(dtype: str | torch.dtype | None, device: str) -> torch.dtype:
    """The number format of the weights: the one asked for, or else bfloat16 on a GPU and float32 on a CPU.

    Raises:
        ValueError: no such format.
    """
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype is None:
        return torch.float32 if device == "cpu" else torch.bfloat16
    if dtype not in DTYPES:
        raise ValueError(f"dtype {dtype!r}: wanted one of {', '.join(DTYPES)}.")
    return DTYPES[dtype]


def pipeline_arguments(files: ModelFiles, download_source: str | None = None) -> dict[str, Any]:
    """The keyword arguments `model_configs` and `tokenizer_config` of `from_pretrained` for these files.

    Args:
        files: what `model_files` gives.
        download_source: "modelscope" or "huggingface"; None takes OmniAvatar and wav2vec2 from Hugging Face, where they
            are published, and Wan from where the host does.

    Raises:
        FileNotFoundError: files are missing; the message lists them.
        ValueError: there is no such source.
    """
    if download_source not in (None, *DOWNLOAD_SOURCES):
        raise ValueError(f"download_source is {download_source!r}, wanted {' or '.join(DOWNLOAD_SOURCES)}.")
    sources = needed_sources(files)
    if files.is_small_family:
        register_family()
    tokenizer = host_config("tokenizer", sources.pop("tokenizer"), download_source)
    configs = [host_config(part, source, download_source) for part, source in sources.items()]
    return {"model_configs": configs, "tokenizer_config": tokenizer}


def host_config(part: str, source: Source, download_source: str | None = None) -> Any:
    """The host's ModelConfig of a part of the model."""
    if not isinstance(source, HubFiles):
        paths = [str(path) for path in source]
        return host.ModelConfig(path=paths[0] if len(paths) == 1 else paths)
    download_source = download_source or os.environ.get("DIFFSYNTH_DOWNLOAD_SOURCE")
    if download_source is None and part in OWN_PARTS:
        download_source = "huggingface"
    return host.hub_config(source.repository, source.pattern, download_source)


@contextmanager
def named_downloads(sources: Iterable[Source], instead: str) -> Iterator[None]:
    """An OSError inside the block names the files that are still to be downloaded, and what to give `instead`."""
    try:
        yield
    except OSError as error:
        hub = [source for source in sources if isinstance(source, HubFiles) and not source.downloaded()]
        if not hub:
            raise
        names = ", ".join(f"{source.repository}/{source.pattern}" for source in hub)
        raise OSError(
            f"cannot download {names} to {HUB_FOLDER}/; without a network, name {instead}: {error}"
        ) from error


def local_lora(file: str | Path, download_source: str | None = None) -> Path:
    """The path of a LoRA file, which is downloaded if it is OWNER/NAME:FILE of a hub and not there yet.

    Raises:
        FileNotFoundError: there is no such file.
        OSError: it cannot be downloaded.
    """
    hub = hub_file(str(file))
    if hub is None:
        if not Path(file).is_file():
            raise FileNotFoundError(
                f"LoRA {file} is not there; wanted a .safetensors or .pt file, or one of a hub as OWNER/NAME:FILE."
            )
        return Path(file)
    if not hub.downloaded():
        with named_downloads([hub], LORA_FLAG):
            host_config("LoRA", hub, download_source).download_if_necessary()
    found = hub.downloaded()
    if len(found) != 1:
        raise FileNotFoundError(f"LoRA {file} means {counted(len(found), 'file')}, wanted one.")
    return found[0]


def check_loras(
    loras: Iterable[LoRASource], sources: Mapping[str, Source], model: str, download_source: str | None = None
) -> list[LoRASource]:
    """The paths and strengths of LoRA files, after a look at their headers and at those of the denoiser's files.

    Args:
        loras: files, or (file, strength).
        sources: the model's parts that are to be loaded.
        model: the published size, if the denoiser is yet to be downloaded.
        download_source: see `pipeline_arguments`.

    Raises:
        FileNotFoundError: a file is not there; OSError: it cannot be downloaded.
        ValueError: a file is damaged, no LoRA, or one of another size.
    """
    checked: list[LoRASource] = []
    given = [(one[0], one) if isinstance(one, tuple) else (one, one) for one in loras]
    shapes = _shapes_of_denoiser(sources, model) if given else None
    for file, one in given:
        path = local_lora(file, download_source)
        _, strength = with_strength(one)
        tensors = read_header(path)
        if shapes is not None:
            lora_of(tensors, shapes, str(path))
        checked.append((path, strength))
    return checked


def _shapes_of_denoiser(sources: Mapping[str, Source], model: str) -> Mapping[str, Sequence[int]] | None:
    """Of all its parameters, before it is loaded; None if its files do not name them as Wan does."""
    source = sources.get("dit", sources["omniavatar"])
    if isinstance(source, HubFiles):
        return state_dict_shapes(PRESETS[model])
    return denoiser_shapes(source)


def load_pipeline(
    model: str = "14B",
    folder: str | os.PathLike[str] | None = None,
    *,
    dit: PathOrPaths | None = None,
    text_encoder: PathOrPaths | None = None,
    vae: PathOrPaths | None = None,
    tokenizer: PathOrPaths | None = None,
    omniavatar: PathOrPaths | None = None,
    wav2vec2: PathOrPaths | None = None,
    device: str | None = None,
    dtype: str | torch.dtype | None = None,
    lora: Literal["fused", "adapters"] = "fused",
    loras: Sequence[LoRASource] = (),
    in_dim: int | None = None,
    vram_limit: float | None = None,
    compile: bool = False,
    quantize: Method | None = None,
    keep_bf16: str | Sequence[str] = (),
    quantize_attention: bool = False,
    stream_weights: bool = False,
    use_usp: bool = False,
    cfg_parallel: CfgParallel = "auto",
    shard_weights: bool = False,
    download_source: str | None = None,
    checkpoint_preset: str | None = None,
    leading_audio_rows: int | None = None,
    first_frame: Literal["known", "masked"] | None = None,
) -> OmniAvatarPipeline:
    """Load a model.

    Args:
        model, folder: see `files.model_files`.
        dit, text_encoder, vae, tokenizer, omniavatar, wav2vec2: files or folders that take the place of the model's. An
            `omniavatar` checkpoint of full weights needs no `dit`.
        device: None for the GPU if there is one.
        dtype: "bfloat16", "float16", "float32" or a torch dtype; None for bfloat16 on a GPU, float32 on a CPU and for
            the small models.
        lora: "fused", or "adapters" to keep the checkpoint's LoRA as peft adapters.
        loras: LoRA files of other programs, or (file, strength), added to the weights after the checkpoint's:
            .safetensors, .pt, or OWNER/NAME:FILE of a hub. They stay there; what `add_lora` adds can be taken off.
        in_dim: add input channels up to this number (33, 49 or 65); the new ones start at zero. None keeps the
            checkpoint's.
        vram_limit: offload weights to CPU memory above this much GPU memory, in GiB; None keeps all on the device.
        download_source: see `pipeline_arguments`.
        compile: compute the denoiser's blocks in few compiled steps, in place of the host's own.
        quantize: hold the denoiser's layers in 8 bits after all LoRAs are in: "fp8" (products in float8, on Ada and
            Hopper), "int8" (products in int8), "fp8_weights" (only the memory); None keeps them as they are.
        keep_bf16: layers that stay, a list or text between commas: "first", "last" (block), "self_attn", "cross_attn",
            "ffn", "ffn.2", ...
        quantize_attention: self-attention in float8, on Hopper, by cuDNN.
        stream_weights: the weights of the denoiser's blocks and of the text encoder wait in CPU memory and are copied
            to the GPU just before use.
        use_usp: make a video by all processes that torchrun has started, each with a GPU of its own.
        cfg_parallel: with `use_usp`, "auto" lets GPUs make different passes of guidance where their numbers divide, and
            those of the same pass share its tokens; "off" lets all GPUs share the tokens of each pass.
        shard_weights: with `use_usp`, each GPU has a part of the denoiser's weights, too.
        checkpoint_preset: one of `checkpoint_presets.CHECKPOINT_PRESETS`, for a checkpoint without a config.json whose
            file has another name than the published one.
        leading_audio_rows, first_frame: `config.Conventions` with which the checkpoint was trained, where its
            config.json does not say so; None follows the checkpoint.

    Raises:
        FileNotFoundError: files are missing; the message lists them.
        OSError: files cannot be downloaded; the message names them.
        ValueError: an argument or a file does not fit; CheckpointError for the checkpoint.
    """
    parts = {
        "dit": dit,
        "text_encoder": text_encoder,
        "vae": vae,
        "tokenizer": tokenizer,
        "omniavatar": omniavatar,
        "wav2vec2": wav2vec2,
    }
    own = {"--compile": compile, "--use_usp": use_usp, "--quantize": quantize, "--stream_weights": stream_weights}
    own["--quantize_attention"] = quantize_attention
    flag = next((flag for flag, value in own.items() if value), None)
    if vram_limit is not None and flag is not None:
        raise ValueError(
            f"{flag} does not go with --vram_limit {vram_limit:g}, DiffSynth's own way to save memory: leave one out. "
            "--stream_weights saves memory, too."
        )
    if use_usp and (quantize_attention or stream_weights):
        raise ValueError("--use_usp does not go with --quantize_attention and --stream_weights: leave it or them out.")
    if shard_weights and not use_usp:
        raise ValueError("--shard_weights spreads the weights over the GPUs of --use_usp: add it.")
    preset = None if checkpoint_preset is None else preset_conventions(checkpoint_preset)
    device = choose_device(device)
    files = model_files(model, folder if folder is None else os.fspath(folder), parts)
    sources = needed_sources(files)
    check_parts(sources)
    loras = check_loras(loras, sources, model, download_source)
    if files.is_small_family and dtype is None:
        dtype = torch.float32
    arguments = {
        **pipeline_arguments(files, download_source),
        "device": device,
        "torch_dtype": choose_dtype(dtype, device),
        "omniavatar_lora": lora,
        "omniavatar_loras": loras,
        "omniavatar_channels": in_dim,
        "omniavatar_compile": compile,
        "omniavatar_quantize": quantize,
        "omniavatar_keep_bf16": keep_bf16,
        "omniavatar_quantize_attention": quantize_attention,
        "omniavatar_stream_weights": stream_weights,
        "omniavatar_cfg_parallel": cfg_parallel,
        "omniavatar_shard_weights": shard_weights,
        "use_usp": use_usp,
    }
    if vram_limit is not None and device == "cpu":
        raise ValueError(f"vram_limit {vram_limit:g}: there is no GPU memory to limit on the CPU; leave it out.")
    with named_downloads(files.sources.values(), MODELS_FOLDER_FLAG):
        if vram_limit is None:
            pipe = OmniAvatarPipeline.from_pretrained(**arguments)
        else:
            pipe = host.load_within(vram_limit, OmniAvatarPipeline.from_pretrained, arguments)
    stated = {"leading_audio_rows": leading_audio_rows, "first_frame": first_frame}
    for part in ("text_encoder", "vae"):
        if getattr(pipe, part) is None:
            raise ValueError(f"{part}: {files.sources[part]} is none that DiffSynth knows.")
    given = {name: value for name, value in stated.items() if value is not None}
    pipe.conventions = replace(preset or pipe.conventions, **given)
    return pipe


def nano_pipeline(
    mode: Literal["i2v", "v2v"] = "i2v", *, device: str | None = None, dtype: str | torch.dtype | None = None
) -> OmniAvatarPipeline:
    """The trained small model that is part of this package: drawn speakers at 128x128, 33 frames a chunk.

    Args:
        mode: "i2v" animates a portrait, "v2v" changes the mouth of a video.
        device, dtype: see `load_pipeline`. In bfloat16 its pictures are slightly coarser.

    Raises:
        ValueError: no such mode, device or dtype.
    """
    if mode not in ("i2v", "v2v"):
        raise ValueError(f"mode {mode!r}: wanted 'i2v' or 'v2v'.")
    return load_pipeline("nano" if mode == "i2v" else "nano-v2v", device=device, dtype=dtype)
