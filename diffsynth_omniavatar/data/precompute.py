"""Writes caches: what the frozen networks make of the clips, so that training loads none of them.

    omniavatar precompute metadata.csv cache --models_folder pretrained_models
    accelerate launch -m diffsynth_omniavatar precompute ...        the same on all GPUs and machines (shared folder)

The pipeline's own units encode, so a cached sample is what a live one becomes. What is there and fits is kept: a run
that was stopped goes on, and clips can be added. `sources.Cache` has the layout.

Trade-off: the reference is one of a clip's few encoded frames (8 by default) instead of any; latents and audio rows are
those of its longest sample.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from .. import __version__, host
from ..atomic import write_atomically, write_text_atomically
from ..generation.pipeline import OmniAvatarPipeline
from ..generation.pixels import encode_video
from ..generation.units import MaskedVideoUnit, ReferenceSequenceUnit, ReferenceUnit
from ..media.images import to_video
from ..media.timeline import SAMPLES_PER_FRAME, audio_rows
from ..media.video import iter_frames
from ..model.config import PRESETS
from ..model.files import HubFiles, Source, model_files
from ..model.speech_encoder import AudioEncoder
from .dataset import Scan, add_data_arguments, data_of, scan_clips
from .sources import (
    CACHE_FORMAT,
    CACHE_INDEX,
    ClipFacts,
    ClipSettings,
    ClipSource,
    PreparedClip,
    Recipe,
    StaleCacheError,
    VideoClip,
    file_sha256,
    mask_key,
    read_index,
    reference_start,
    text_key,
)

logger = logging.getLogger(__name__)

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
REFERENCES = 8
PROGRESS_COLUMNS = (
    TextColumn("{task.description} of this process"),
    BarColumn(),
    MofNCompleteColumn(),
    TimeElapsedColumn(),
    TextColumn("left"),
    TimeRemainingColumn(),
)
UNUSED_WEIGHT = "masked_spec_embed"
"""A weight of wav2vec2 that only its own training uses; files lack it, and then it is random."""
READERS = 2
"""Threads that read clips ahead of the encoding."""
SLOWEST_PROCESS = timedelta(days=7)
"""How long processes wait for the last one."""
SHAPE = "shape"
"""Metadata of a text's file: the shape [L, D] of the whole embedding."""


@dataclass(frozen=True, kw_only=True)
class PrecomputeReport:
    """What a run of `precompute` did, over all processes."""

    encoded: int
    kept: int
    """Clips that were in the cache already."""
    faults: tuple[tuple[str, str], ...]
    """Name and reason of the clips that could not be encoded."""


@dataclass(frozen=True, kw_only=True)
class CacheOptions:
    """How a cache is made."""

    references: int = REFERENCES
    """Reference frames a clip, evenly spaced over its whole length."""
    audio_dtype: torch.dtype = torch.bfloat16
    """Of the audio features; the others have the pipeline's. A bfloat16 model sees no difference to float32."""
    tiled: bool = False
    """Run the VAE in tiles: less memory, shifted colours."""

    def __post_init__(self) -> None:
        if self.references < 1 or self.audio_dtype not in DTYPES.values():
            raise ValueError(
                f"references is {self.references} and audio_dtype {self.audio_dtype}; wanted 1 or more, and one of "
                f"{', '.join(DTYPES)}"
            )


# ------------------------------------------------------------------------------------------------------------- networks


def encoder_pipeline(
    settings: ClipSettings,
    *,
    model_configs: Sequence[Any],
    tokenizer_config: Any,
    wav2vec2: str | Path,
    device: str | torch.device,
    dtype: torch.dtype = torch.bfloat16,
) -> OmniAvatarPipeline:
    """A pipeline without a denoiser: what `precompute` needs.

    Args:
        settings: of the samples.
        model_configs: the host's, of text encoder and VAE.
        tokenizer_config: the host's; None for the one that the host downloads.
        wav2vec2: folder of the speech encoder.
        device, dtype: of the networks; the speech encoder computes in float32 always.

    Raises:
        ValueError: `model_configs` lack one of the two, or have a denoiser.
    """
    options = {} if tokenizer_config is None else {"tokenizer_config": tokenizer_config}
    pipe = host.WanVideoPipeline.from_pretrained(
        torch_dtype=dtype, device=device, model_configs=list(model_configs), **options
    )
    missing = [name for name in ("text_encoder", "vae") if getattr(pipe, name) is None]
    if missing or pipe.dit is not None:
        raise ValueError(f"wanted model files of text encoder and VAE alone; missing: {', '.join(missing) or 'none'}")
    pipe = OmniAvatarPipeline.adopt(pipe, settings.conventions, AudioEncoder.from_pretrained(wav2vec2).to(device))
    # The units ask the denoiser which inputs it takes; its size makes no difference.
    pipe.dit = SimpleNamespace(config=replace(PRESETS["1.3B"], in_dim=settings.in_dim))  # type: ignore[assignment]
    return pipe


@torch.no_grad()
def network_key(network: nn.Module) -> str:
    """A short hash of a network's weights in bfloat16, by 64 numbers of each tensor, whatever the tensors are called.

    So the same weights have the same key on every device, in bfloat16 and float32, and under the host's wrappers.
    """
    samples = []
    for name, tensor in [*network.named_parameters(), *network.named_buffers()]:
        if name.endswith(UNUSED_WEIGHT):
            continue
        flat = tensor.detach().reshape(-1)
        places = torch.linspace(0, max(flat.numel() - 1, 0), min(flat.numel(), 64), dtype=torch.float64).long()
        values = flat[places.to(flat.device)].to("cpu", torch.bfloat16)
        samples.append(repr((list(tensor.shape), values.float().tolist())).encode())
    return hashlib.sha256(b"".join(sorted(samples))).hexdigest()[:16]


def cache_settings(
    pipe: OmniAvatarPipeline, settings: ClipSettings, recipe: Recipe, options: CacheOptions
) -> dict[str, Any]:
    """All on which the content of a cache depends besides the clips, as it stands in its index."""
    assert pipe.speech_encoder is not None
    sizes = settings.conventions.image_sizes
    return {
        "in_dim": settings.in_dim,
        "first_frame": settings.conventions.first_frame if settings.masked_video else None,
        "mouth_mask": mask_key(settings.mouth_mask) if settings.masked_video else None,
        "size": None if settings.size is None else list(settings.size),
        "image_sizes": None if settings.size is not None else [list(size) for size in sizes],
        "num_frames": recipe.num_frames,
        "max_tokens": recipe.max_tokens,
        "references": options.references,
        "tiled": options.tiled,
        "dtype": str(pipe.torch_dtype).removeprefix("torch."),
        "audio_dtype": str(options.audio_dtype).removeprefix("torch."),
        "audio_dim": pipe.speech_encoder.feature_dim,
        "vae": network_key(pipe.vae),
        "text_encoder": network_key(pipe.text_encoder),
        "speech_encoder": network_key(pipe.speech_encoder),
    }


# --------------------------------------------------------------------------------------------------------------- a clip


@dataclass(frozen=True)
class RawClip:
    """A clip as it is read, before it is encoded; frames are uint8 [frames, H, W, 3]."""

    target: Tensor
    references: Tensor
    reference_sequence: Tensor | None
    waveform: Tensor


def reference_places(frames: int, count: int) -> list[int]:
    """`count` frames evenly spaced over a clip, each in the middle of its part; fewer if the clip has fewer."""
    count = min(count, frames)
    return [(2 * place + 1) * frames // (2 * count) for place in range(count)]


def read_raw_clip(clip: VideoClip, facts: ClipFacts, settings: ClipSettings, references: int) -> RawClip:
    """All frames that are needed, in one pass through the video.

    Raises:
        ValueError, OSError: the clip cannot be read.
    """
    size, places = (facts.height, facts.width), reference_places(facts.frames, references)
    sequence = range(reference_start(facts), facts.frames) if settings.in_dim == 65 else range(0)
    wanted = {*range(facts.longest), *sequence, *(places if clip.reference is None else ())}
    frames = {
        place: frame for place, frame in enumerate(iter_frames(clip.video, 0, max(wanted) + 1, size)) if place in wanted
    }
    target = torch.stack([frames[place] for place in range(facts.longest)])
    if clip.reference is not None:
        pictures = clip.reference_image(target, 0, size)[None]
    else:
        pictures = torch.stack([frames[place] for place in places])
    return RawClip(
        target=target,
        references=pictures,
        reference_sequence=torch.stack([frames[place] for place in sequence]) if sequence else None,
        waveform=clip.waveform(facts.frames, facts.longest),
    )


@torch.no_grad()
def encode_clip(
    pipe: OmniAvatarPipeline,
    raw: RawClip,
    clip: VideoClip,
    settings: ClipSettings,
    options: CacheOptions,
) -> dict[str, Tensor]:
    """The tensors of a clip's file (`sources.CachedClip`), on the CPU, made by the pipeline's units."""
    frames, height, width = raw.target.shape[:3]
    tiles: dict[str, Any] = {"tiled": options.tiled, "tile_size": (30, 52), "tile_stride": (15, 26)}
    size: dict[str, Any] = {"height": height, "width": width, **tiles}
    pixels = to_video(raw.target[None])
    tensors = {"input_latents": encode_video(pipe, pixels, **tiles)[0]}
    references = ReferenceUnit().process(
        pipe,
        input_image=to_video(raw.references[:, None]),
        omni_reference_latents=None,
        omni_source_video=None,
        **size,
    )
    tensors["reference_latents"] = references["omni_reference_latents"]
    masked = MaskedVideoUnit().process(
        pipe,
        omni_source_video=pixels,
        omni_mouth_mask=clip.used_mask(settings),
        omni_prefix_video=None,
        omni_masked_latents=None,
        omni_mouth_mask_latents=None,
        num_frames=frames,
        **size,
    )
    if masked:
        tensors["masked_latents"] = masked["omni_masked_latents"][0]
        tensors["mouth_mask_latents"] = masked["omni_mouth_mask_latents"][:, :, :1]
    sequence = ReferenceSequenceUnit().process(
        pipe,
        omni_reference_video=None if raw.reference_sequence is None else to_video(raw.reference_sequence[None]),
        omni_reference_sequence_latents=None,
        num_frames=frames,
        **size,
    )
    if sequence:
        tensors["reference_sequence_latents"] = sequence["omni_reference_sequence_latents"][0]
    rows = pipe.encode_speech(raw.waveform, max(audio_rows(len(raw.waveform)), frames))[:frames]
    tensors["audio_features"] = rows.to(options.audio_dtype)
    tensors["waveform"] = raw.waveform
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


# -------------------------------------------------------------------------------------------------------------- writing


def _save(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    write_atomically(
        path,
        lambda temporary: save_file(dict(tensors), temporary, metadata=None if metadata is None else dict(metadata)),
    )


def _write_index(folder: Path, content: Mapping[str, Any]) -> None:
    text = json.dumps({"format": CACHE_FORMAT, "version": __version__, **content}, indent=1) + "\n"
    write_text_atomically(folder / CACHE_INDEX, text)


def _fingerprint(path: Path) -> dict[str, Any]:
    status = path.stat()
    size, time = status.st_size, status.st_mtime_ns
    return {"path": str(path.resolve()), "size": size, "mtime_ns": time, "sha256": file_sha256(path)}


def _refuse_other_cache(folder: Path, settings: Mapping[str, Any]) -> None:
    """StaleCacheError if the folder holds a cache that was made otherwise."""
    index = read_index(folder)
    if index is None:
        return
    differences = [
        f"{name} is {index['settings'].get(name)!r}, this run has {value!r}"
        for name, value in settings.items()
        if index["settings"].get(name) != value
    ]
    if differences:
        raise StaleCacheError(
            f"{folder} holds a cache that was made otherwise: {'; '.join(differences)}; "
            "give another folder, or remove it"
        )


class CacheWriter:
    """One process's part in writing a cache."""

    def __init__(
        self,
        pipe: OmniAvatarPipeline,
        folder: Path,
        settings: ClipSettings,
        recipe: Recipe,
        options: CacheOptions,
        state: PartialState,
    ) -> None:
        self.pipe = pipe
        self.folder = folder
        self.settings = settings
        self.options = options
        self.state = state
        self.cache_settings = cache_settings(pipe, settings, recipe, options)
        self.encoded = self.kept = 0

    def share(self, things: Sequence[Any]) -> Sequence[Any]:
        """The part of things that this process does."""
        return things[self.state.process_index :: self.state.num_processes]

    # texts

    def write_texts(self, prompts: Iterable[str], bar: Progress) -> dict[str, list[int]]:
        """Encode this process's share of the distinct prompts; gives the shape [L, D] of each by its key."""
        shapes = {}
        for prompt in bar.track(self.share(sorted({*prompts, ""})), description="texts"):
            path = self.folder / "text" / f"{text_key(prompt)}.safetensors"
            if not path.is_file():
                context = self.pipe.encode_prompt(prompt)[0].cpu()
                is_text = context.any(dim=1).nonzero()  # behind the text there are zeros up to L
                used = int(is_text[-1]) + 1 if len(is_text) else 0
                _save(path, {"context": context[:used].contiguous()}, {SHAPE: json.dumps(list(context.shape))})
            with safe_open(path, framework="pt") as content:
                shapes[text_key(prompt)] = json.loads(content.metadata()[SHAPE])
        return shapes

    def write_silence(self, longest: int) -> None:
        """Features of silence for every length of a sample."""
        path = self.folder / "silence.safetensors"
        if path.is_file():
            with safe_open(path, framework="pt") as content:
                if str(longest) in content.keys():  # noqa: SIM118
                    return
        silence = {}
        for frames in range(5, longest + 1, 4):
            rows = self.pipe.encode_speech(torch.zeros(frames * SAMPLES_PER_FRAME), frames)
            silence[str(frames)] = rows.to(self.options.audio_dtype).cpu()
        _save(path, silence)

    # clips

    def entry(self, clip: VideoClip, facts: ClipFacts) -> dict[str, Any]:
        """The clip's entry of the index. Its key stands for the content of the files and the settings."""
        files = {part: path for part, path in clip.files().items() if part != "mask" or self.settings.masked_video}
        sources = {part: _fingerprint(path) for part, path in files.items()}
        content = {part: source["sha256"] for part, source in sources.items()}
        key = json.dumps([CACHE_FORMAT, self.cache_settings, content], sort_keys=True)
        mask = clip.used_mask(self.settings)
        return {
            "name": clip.name,
            "key": hashlib.sha256(key.encode()).hexdigest()[:32],
            "text": text_key(clip.prompt),
            "prompt": clip.prompt,
            "frames": facts.frames,
            "num_frames": facts.longest,
            "references": 1 if clip.reference is not None else min(self.options.references, facts.frames),
            "height": facts.height,
            "width": facts.width,
            "mask": mask_key(mask) if self.settings.masked_video else None,
            "sources": list(sources.values()),
        }

    def write_clip(self, prepared: PreparedEntry) -> dict[str, Any]:
        """Encode a clip unless its file is there; gives its entry."""
        if prepared.raw is None:
            self.kept += 1
        else:
            _save(self.path(prepared.entry), self.encode(prepared.clip, prepared.raw))
            self.encoded += 1
        return prepared.entry

    def encode(self, clip: VideoClip, raw: RawClip) -> dict[str, Tensor]:
        """The tensors of a clip's file."""
        return encode_clip(self.pipe, raw, clip, self.settings, self.options)

    def path(self, entry: Mapping[str, Any]) -> Path:
        """The file of an entry."""
        return self.folder / "clips" / f"{entry['key']}.safetensors"

    def prepare(self, clip: VideoClip, facts: ClipFacts) -> PreparedEntry:
        """Hash and, if need be, read a clip; runs in a thread."""
        entry = self.entry(clip, facts)
        is_there = self.path(entry).is_file()
        raw = None if is_there else read_raw_clip(clip, facts, self.settings, self.options.references)
        return PreparedEntry(entry, clip, raw)

    def write_clips(
        self, clips: Sequence[tuple[int, VideoClip, ClipFacts]], bar: Progress
    ) -> tuple[list[tuple[int, dict[str, Any]]], list[tuple[int, str, str]]]:
        """Encode this process's share; gives entries and faults, each with the clip's place in the list."""
        entries, faults = [], []
        share = self.share(clips)
        ahead = _read_ahead(share, lambda job: self.prepare(job[1], job[2]))
        for (index, clip, _), future in bar.track(ahead, total=len(share), description="clips"):
            try:
                entries.append((index, self.write_clip(future.result())))
            except (ValueError, OSError) as error:
                faults.append((index, clip.name, str(error)))
                logger.warning("%s: %s", clip.name, error)
        return entries, faults


@dataclass(frozen=True)
class PreparedEntry:
    entry: dict[str, Any]
    clip: VideoClip
    raw: RawClip | None
    """None if the cache has the clip."""


def _read_ahead(jobs: Sequence[Any], read: Callable[[Any], Any]) -> Iterator[tuple[Any, Future[Any]]]:
    """The jobs in their order, each with what `read` makes of it in a thread; few are read ahead of use."""
    waiting: deque[tuple[Any, Future[Any]]] = deque()
    with ThreadPoolExecutor(READERS) as pool:
        for job in jobs:
            waiting.append((job, pool.submit(read, job)))
            if len(waiting) > READERS:
                yield waiting.popleft()
        while waiting:
            yield waiting.popleft()


# ----------------------------------------------------------------------------------------------------------- precompute


def precompute(
    pipe: OmniAvatarPipeline,
    clips: Sequence[ClipSource],
    folder: str | Path,
    *,
    settings: ClipSettings,
    recipe: Recipe,
    options: CacheOptions | None = None,
    show_progress: bool = True,
) -> PrecomputeReport:
    """Write a cache of clips, or complete one.

    Under `accelerate launch` every process must call it with the same arguments; each encodes its share into the
    folder, which all must see, and the main process writes the index when all are done.

    Args:
        pipe: with VAE, text encoder and speech encoder; `encoder_pipeline` makes one.
        clips: from `read_clips`; of prepared directories the video, sound and prompt are used.
        folder: of the cache; it may hold one that was made with the same settings, whose clips are kept.
        settings, recipe: of the samples. The limits on the length hold for the cache.
        options: how it is made.
        show_progress: draw a bar with the remaining time.

    Raises:
        StaleCacheError: the folder holds a cache that was made otherwise; the message names the differences.
        ValueError: no clip is usable, or the pipeline is for other settings.
    """
    state = PartialState(timeout=SLOWEST_PROCESS)
    begun = begin(pipe, clips, folder, settings, recipe, options or CacheOptions(), state)
    with Progress(*PROGRESS_COLUMNS, disable=not (show_progress and state.is_main_process)) as bar:
        texts = begun.writer.write_texts((clip.prompt for _, clip, _ in begun.usable), bar)
        entries, faults = begun.writer.write_clips(begun.usable, bar)
    return begun.finish(texts, entries, faults)


@dataclass(frozen=True)
class BegunCache:
    """A cache whose clips are still to be written."""

    writer: CacheWriter
    scan: Scan
    usable: list[tuple[int, VideoClip, ClipFacts]]

    def finish(
        self, texts: Mapping[str, Any], entries: Sequence[tuple[int, Any]], faults: Sequence[tuple[int, str, str]]
    ) -> PrecomputeReport:
        """Write the index from what all processes did; each gives its part, by the clips' places in the list."""
        parts = gather_object([(texts, entries, faults, self.writer.encoded, self.writer.kept)])
        return _finish(self.writer, self.scan, parts)


def begin(
    pipe: OmniAvatarPipeline,
    clips: Sequence[ClipSource],
    folder: str | Path,
    settings: ClipSettings,
    recipe: Recipe,
    options: CacheOptions,
    state: PartialState,
) -> BegunCache:
    """Look at all clips, and write an unfinished index and the features of silence; see `precompute`."""
    _check_pipeline(pipe, settings)
    writer = CacheWriter(pipe, Path(folder), settings, recipe, options, state)
    _refuse_other_cache(writer.folder, writer.cache_settings)
    videos = [_video_clip(clip) for clip in clips]
    scan = scan_clips(videos, settings, recipe)
    usable = [(index, videos[index], facts) for index, facts in enumerate(scan.facts) if facts is not None]
    if not usable:
        raise ValueError(f"none of {len(clips)} clips can be used: {scan.faults[0].clip}: {scan.faults[0].reason}")
    if state.is_main_process:
        _write_index(writer.folder, {"complete": False, "settings": writer.cache_settings, "texts": {}, "clips": []})
        writer.write_silence(max(facts.longest for _, _, facts in usable))
    return BegunCache(writer, scan, usable)


def _check_pipeline(pipe: OmniAvatarPipeline, settings: ClipSettings) -> None:
    if pipe.dit.config.in_dim != settings.in_dim:
        raise ValueError(f"the pipeline is for {pipe.dit.config.in_dim} channels, the settings for {settings.in_dim}")
    if settings.masked_video and pipe.conventions.first_frame != settings.conventions.first_frame:
        raise ValueError(
            f"the pipeline has first_frame {pipe.conventions.first_frame!r}, the settings "
            f"{settings.conventions.first_frame!r}"
        )


def _video_clip(clip: ClipSource) -> VideoClip:
    if isinstance(clip, PreparedClip):
        return clip.live_clip()
    if isinstance(clip, VideoClip):
        return clip
    raise ValueError(f"{clip.name} comes from a cache; give the list of clips that it was made of")


def _finish(writer: CacheWriter, scan: Scan, parts: Sequence[tuple[Any, ...]]) -> PrecomputeReport:
    """Write the index from what all processes did, clear away unfinished files, and sum up."""
    entries = dict(entry for part in parts for entry in part[1])
    texts = {key: shape for part in parts for key, shape in part[0].items()}
    faults = [(fault.index, fault.clip, fault.reason) for fault in scan.faults]
    faults = sorted(faults + [fault for part in parts for fault in part[2]])
    if writer.state.is_main_process:
        for unfinished in writer.folder.rglob(".*.safetensors"):  # of a run that was killed
            unfinished.unlink()
        settings = {**writer.cache_settings, "text_dim": next(iter(texts.values()))[1]}
        _write_index(
            writer.folder,
            {
                "complete": True,
                "settings": settings,
                "texts": dict(sorted(texts.items())),
                "faults": [{"name": name, "reason": reason} for _, name, reason in faults],
                "clips": [entries[index] for index in sorted(entries)],
            },
        )
    wait_for_everyone(writer.state)
    return PrecomputeReport(
        encoded=sum(part[3] for part in parts),
        kept=sum(part[4] for part in parts),
        faults=tuple((name, reason) for _, name, reason in faults),
    )


# ----------------------------------------------------------------------------------------------------- the command line

PARTS = ("text_encoder", "vae", "tokenizer", "wav2vec2")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `omniavatar precompute`."""
    add_data_arguments(parser)
    parser.add_argument("cache", metavar="CACHE", help="folder to write; one that is there is completed")
    parser.add_argument("--model", choices=["14B", "1.3B"], default="14B", help="published size (default: 14B)")
    parser.add_argument("--models_folder", help="folder of the model's files, see generate")
    for part in PARTS:
        parser.add_argument(f"--{part}", help=f"files or folder of the {part}, if elsewhere")
    parser.add_argument("--device", help="cuda, cpu, ...; by default the GPU of this process if there is one")
    parser.add_argument("--dtype", choices=list(DTYPES), default="bfloat16", help="of networks, latents and texts")
    parser.add_argument(
        "--audio_dtype", choices=list(DTYPES), default="bfloat16", help="of audio features in the cache"
    )
    parser.add_argument(
        "--references", type=int, default=REFERENCES, help=f"reference frames a clip (default: {REFERENCES})"
    )
    parser.add_argument("--tiled", action="store_true", help="run the VAE in tiles: less memory, shifted colours")


def device_of(wanted: str | None, state: PartialState) -> str:
    """The device of this process: as Accelerate has it, or as wanted; "cuda" is shared out among the processes."""
    if wanted == "cuda":
        return f"cuda:{state.local_process_index % torch.cuda.device_count()}"
    return str(state.device) if wanted is None else wanted


def wait_for_everyone(state: PartialState) -> None:
    """Wait for all processes. Accelerate's own way names a GPU for each of them; here several may share one."""
    if state.num_processes > 1:
        torch.distributed.barrier()


@contextmanager
def main_process_first(state: PartialState) -> Iterator[None]:
    """The main process runs what is inside before the others."""
    if not state.is_main_process:
        wait_for_everyone(state)
    yield
    if state.is_main_process:
        wait_for_everyone(state)


def run(args: argparse.Namespace) -> int:
    """`omniavatar precompute`: write a cache; the exit code is 1 if clips could not be encoded."""
    clips, settings, recipe = data_of(args)
    options = CacheOptions(references=args.references, audio_dtype=DTYPES[args.audio_dtype], tiled=args.tiled)
    # Processes that share a GPU cannot meet through NCCL: with a device named they meet on the CPU.
    state = PartialState(cpu=args.device is not None, timeout=SLOWEST_PROCESS)
    parts = {part: getattr(args, part) for part in PARTS}
    files = model_files(args.model, args.models_folder, parts)
    if files.is_small_family:
        from ..model.small_family import register_family

        register_family()
    sources = {part: files.sources[part] for part in PARTS}
    missing = [str(path) for part, path in files.missing().items() if part in PARTS]
    if missing:
        raise FileNotFoundError(f"files of the model are missing: {', '.join(missing)}")
    wav2vec2 = _config(sources["wav2vec2"])
    with main_process_first(state):  # so that one process downloads
        wav2vec2.download_if_necessary()
        pipe = encoder_pipeline(
            settings,
            model_configs=[_config(sources[part]) for part in ("text_encoder", "vae")],
            tokenizer_config=_config(sources["tokenizer"]),
            wav2vec2=_folder(wav2vec2.path),
            device=device_of(args.device, state),
            dtype=DTYPES[args.dtype],
        )
    report = precompute(pipe, clips, args.cache, settings=settings, recipe=recipe, options=options)
    if state.is_main_process:
        for name, reason in report.faults:
            print(f"{name}: {reason}")
        print(f"{args.cache}: {report.encoded} clips encoded, {report.kept} kept, {len(report.faults)} faults")
    return 1 if report.faults else 0


def _config(source: Source) -> Any:
    """The host's ModelConfig of a part."""
    if isinstance(source, HubFiles):
        return host.hub_config(source.repository, source.pattern, None)
    paths = [str(path) for path in source]
    return host.ModelConfig(path=paths[0] if len(paths) == 1 else paths)


def _folder(path: str | Sequence[str]) -> Path:
    """The folder of a part that is one: as it was given, or that of its downloaded files."""
    first = Path(path) if isinstance(path, str) else Path(path[0])
    return first if first.is_dir() else first.parent
