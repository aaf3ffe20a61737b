"""Looks at the machine, the installed packages and a model's files, and tells what is missing and how to mend it.

It works where the rest of the package does not: every import that can fail is tried on its own.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import platform
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from .. import host
from ..host.versions import UnsupportedHostError
from ..model.blocks.memory_plan import GIB
from ..model.files import HUB_FOLDER, NANO_MODELS, HubFiles, ModelFiles, model_files, parse_lora
from ..system.messages import counted

PACKAGES = (
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "safetensors",
    "modelscope",
    "av",
    "soundfile",
    "soxr",
    "numpy",
)
ATTENTION = {
    "flash_attn_interface": "FlashAttention 3",
    "flash_attn": "FlashAttention 2",
    "sageattention": "SageAttention",
}
"""Packages that the host tries for attention, in its order, before torch's scaled_dot_product_attention."""
ENCODERS = ("libx264", "aac")
GPU_GIB = {"14B": 43, "1.3B": 16}
"""Peak of GPU memory when everything stays on it, measured at 400x720 with 105 frames a chunk."""


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        kind: "ok"; "note" for what works but could be better; "problem" for what is needed and missing.
        text: what was found.
        fix: what to do about it.
    """

    kind: Literal["ok", "note", "problem"]
    text: str
    fix: str = ""


def examine(
    model: str | None = None, folder: str | None = None, omniavatar: str | None = None, lora: str | None = None
) -> int:
    """Print a report and give the number of problems; the arguments are those of `findings`."""
    problems = 0
    for finding in findings(model, folder, omniavatar, lora):
        mark = {"ok": "      ok", "note": "    note", "problem": " PROBLEM"}[finding.kind]
        print(f"{mark}  {finding.text}")
        if finding.fix:
            print(f"{'fix':>8}  {finding.fix}")
        problems += finding.kind == "problem"
    print(f"{counted(problems, 'problem')}." if problems else "No problem found.")
    return problems


def findings(
    model: str | None = None, folder: str | None = None, omniavatar: str | None = None, lora: str | None = None
) -> Iterator[Finding]:
    """What there is to tell, each as it is found.

    Args:
        model: one of `files.MODELS` whose needs are looked at too; None with a `folder` means "14B".
        folder: where the model's files lie, see `files.model_files`; None for the hub.
        omniavatar: a checkpoint to describe.
        lora: a LoRA file of another program to describe.
    """
    yield from check_packages()
    yield from check_host()
    yield from check_attention()
    yield from check_encoders()
    yield from check_gpus(model)
    yield from check_room()
    if model is not None or folder is not None:
        size = model or "14B"
        yield from check_files(model_files(size, folder), size, folder)
    if omniavatar is not None:
        yield from check_checkpoint(omniavatar)
    if lora is not None:
        yield from check_lora(lora, model)


def check_packages() -> Iterator[Finding]:
    """Python and the packages, by the versions that are installed."""
    yield Finding("ok", f"Python {platform.python_version()} at {sys.executable}, {platform.platform()}")
    versions, missing = [], []
    for name in PACKAGES:
        try:
            versions.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
    yield Finding("ok", ", ".join(versions))
    if missing:
        yield Finding("problem", f"not installed: {', '.join(missing)}", f"pip install {' '.join(missing)}")


def check_host() -> Iterator[Finding]:
    """DiffSynth-Studio: its version, and whether it can be imported."""
    try:
        version, generation = host.VERSION, host.GENERATION
        _ = host.WanVideoPipeline  # imports the host
    except (UnsupportedHostError, importlib.metadata.PackageNotFoundError) as error:
        yield Finding("problem", *_text_and_fix(str(error)))
    except (ImportError, OSError) as error:
        yield Finding("problem", f"DiffSynth-Studio cannot be imported: {error}", "pip install 'diffsynth>=2.1,<2.2'")
    else:
        yield Finding("ok", f"DiffSynth-Studio {version}, generation {generation}")


def _text_and_fix(message: str) -> tuple[str, str]:
    text, _, fix = message.partition(" Run ")
    return text, fix.rstrip(".")


def check_attention() -> Iterator[Finding]:
    """The attention that the host will take."""
    found = [name for name in ATTENTION if importlib.util.find_spec(name) is not None]
    if found:
        yield Finding("ok", f"attention: {ATTENTION[found[0]]} ({found[0]})")
    else:
        yield Finding(
            "ok", f"attention: PyTorch's scaled_dot_product_attention ({', '.join(ATTENTION)} are not installed)"
        )


def check_encoders() -> Iterator[Finding]:
    """The encoders for the mp4 file in the FFmpeg that PyAV carries."""
    try:
        import av
    except (ImportError, OSError) as error:
        yield Finding("problem", f"PyAV cannot be imported: {error}", "pip install 'av>=17,<19'")
        return
    missing = [name for name in ENCODERS if name not in av.codecs_available]
    if missing:
        yield Finding(
            "problem", f"PyAV {av.__version__} has no encoder {', '.join(missing)}", "pip install --force-reinstall av"
        )
    else:
        yield Finding("ok", f"PyAV {av.__version__} encodes with {' and '.join(ENCODERS)}")


def check_gpus(model: str | None) -> Iterator[Finding]:
    """The GPUs and their memory."""
    try:
        import torch
    except (ImportError, OSError) as error:
        yield Finding("problem", f"PyTorch cannot be imported: {error}", "pip install --force-reinstall torch")
        return
    if not torch.cuda.is_available():
        build = (
            f"torch {torch.__version__} is built for CUDA {torch.version.cuda}"
            if torch.version.cuda
            else "torch has no CUDA"
        )
        yield Finding(
            "note",
            f"PyTorch sees no GPU ({build}): the published sizes are too slow without one",
            "look at nvidia-smi; if it lists a GPU, install the torch build for its driver",
        )
        return
    for index in range(torch.cuda.device_count()):
        free, total = (amount / GIB for amount in torch.cuda.mem_get_info(index))
        text = f"cuda:{index} {torch.cuda.get_device_name(index)}: {free:.1f} of {total:.1f} GiB free"
        if model is not None and free < GPU_GIB.get(model, 0):
            yield Finding(
                "note",
                f"{text}; {model} takes some {GPU_GIB[model]} GiB when all of it stays there",
                f"generate with --vram_limit {max(free - 2, 1):.0f}, which keeps weights in CPU memory",
            )
        else:
            yield Finding("ok", text)


def check_room() -> Iterator[Finding]:
    """Free disk space here and free CPU memory."""
    text = f"{shutil.disk_usage(Path.cwd()).free / GIB:.0f} GiB free on the disk of {Path.cwd()}"
    if importlib.util.find_spec("psutil") is not None:
        import psutil

        memory = psutil.virtual_memory()
        text += f", {memory.available / GIB:.0f} of {memory.total / GIB:.0f} GiB of CPU memory free"
    yield Finding("ok", text)


def check_files(files: ModelFiles, model: str, folder: str | None) -> Iterator[Finding]:
    """The files of a model: which are there, which are missing or will be downloaded."""
    missing = files.missing()
    to_download = 0.0
    for part, source in files.sources.items():
        if isinstance(source, HubFiles):
            there = source.downloaded()
            to_download += 0 if there else source.gigabytes
            text = (
                f"{there[0]}"
                if there
                else f"{source.repository} {source.pattern}, about {source.gigabytes:g} GB to download"
            )
            yield Finding("ok" if there else "note", f"{part}: {text}")
        elif part in missing:
            fix = _small_family_fix(part, model) if files.is_small_family else _download_command(part, model, folder)
            yield Finding("problem", f"{part}: {missing[part]} is missing", fix)
        else:
            more = f" and {len(source) - 1} more" if len(source) > 1 else ""
            yield Finding("ok", f"{part}: {source[0]}{more}")
    free = shutil.disk_usage(Path.cwd()).free / 1e9
    if to_download > free:
        yield Finding(
            "problem",
            f"{to_download:.0f} GB are to be downloaded to {HUB_FOLDER}/, but the disk has {free:.0f} GB free",
            "make room, or name a folder on another disk with --models_folder",
        )


def _small_family_fix(part: str, model: str) -> str:
    if model in NANO_MODELS:
        return "pip install --force-reinstall --no-deps diffsynth-omniavatar"
    return f"name it with --{part}"


def _download_command(part: str, model: str, folder: str | None) -> str:
    names = {"omniavatar": f"OmniAvatar/OmniAvatar-{model}", "wav2vec2": "facebook/wav2vec2-base-960h"}
    repository = names.get(part, f"Wan-AI/Wan2.1-T2V-{model}")
    return f"hf download {repository} --local-dir {Path(folder or '.') / repository.split('/')[1]}"


def check_checkpoint(path: str) -> Iterator[Finding]:
    """What an OmniAvatar checkpoint is."""
    try:
        from ..model.checkpoint import has_scales, load_checkpoint
    except ImportError as error:
        yield Finding("problem", f"{path} cannot be read: {error}")
        return
    try:
        checkpoint = load_checkpoint(path)
    except (ValueError, OSError) as error:
        yield Finding("problem", str(error), "give the folder or file of an OmniAvatar checkpoint")
        return
    lora, conventions = checkpoint.config.lora, checkpoint.config.conventions
    sizes = ", ".join(f"{height}x{width}" for height, width in conventions.image_sizes)
    form = (
        f"full weights{', layers in 8 bits' if has_scales(checkpoint.tensors) else ''}"
        if lora is None
        else f"{lora.name} of rank {lora.rank}, alpha {lora.alpha:g}, on {', '.join(lora.target_modules)}"
    )
    yield Finding("ok", f"{checkpoint.source}: {form}; {checkpoint.in_dim} input channels")
    yield Finding(
        "ok",
        f"its conventions: {conventions.leading_audio_rows} frame(s) before the sound, "
        f"first frame {conventions.first_frame}, "
        f"prefixes of {', '.join(map(str, conventions.prefix_frames)) or 'no'} frames, "
        f"up to {conventions.max_tokens} tokens, sizes {sizes}",
    )


def check_lora(name: str, model: str | None = None) -> Iterator[Finding]:
    """What a LoRA file of another program changes, of which sizes, and what of it is not used."""
    try:
        from ..generation.loading import local_lora
        from ..model.config import PRESETS
        from ..model.dit import state_dict_shapes
        from ..model.lora_files import lora_of, read_tensors
        from ..model.small_family import NANO
    except (ImportError, OSError, UnsupportedHostError) as error:
        yield Finding("problem", f"{name} cannot be read: {error}")
        return
    fits, faults = {}, {}
    try:
        path = local_lora(parse_lora(name)[0])
        tensors = read_tensors(path)
    except (ValueError, OSError) as error:
        yield Finding("problem", str(error), "give a .safetensors or .pt file, or OWNER/NAME:FILE of a hub")
        return
    for size, config in {**PRESETS, "nano": NANO.dit}.items():
        try:
            fits[size] = lora_of(tensors, state_dict_shapes(config), str(path))
        except ValueError as error:
            faults[size] = str(error)
    wanted = "nano" if model in NANO_MODELS else model or next(iter(fits), "14B")
    if wanted not in fits:
        yield Finding("problem", faults[wanted], "give a LoRA for Wan 2.1 text-to-video of this size")
        return
    lora = fits[wanted]
    yield Finding("ok", f"{path}: {lora.facts()}; it fits {' and '.join(fits)}")
    yield Finding("ok", f"it changes {', '.join(lora.layers())}")
    if lora.of_i2v:
        yield Finding("note", f"not used: {counted(len(lora.of_i2v), 'key')} of image-to-video models")
    if lora.of_patches:
        yield Finding("note", f"not used, as OmniAvatar has its own patch embedding: {', '.join(lora.of_patches)}")
    if lora.unknown:
        yield Finding("note", f"not used, as nothing is known of them: {', '.join(lora.unknown)}")
    if lora.has_dora:
        yield Finding("note", "a DoRA: it works only where OmniAvatar's LoRA is in the weights, and not as --base_lora")
