"""Writes caches: what the frozen networks make of the clips, so that training loads none of them.

    omniavatar precompute metadata.csv cache --models_folder pretrained_models
    accelerate launch -m diffsynth_omniavatar precompute ...        the same on all GPUs and machines (shared folder)

The pipeline's own units encode, so a cached sample is what a live one becomes. What is there and fits is kept: a run
that was stopped goes on, and clips can be added. `cache.Cache` has the layout.

Trade-off: the reference is one of a clip's few encoded frames (8 by default) instead of any; latents and audio rows are
those of its longest sample.
"""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import gather_object

from ..generation.loading import MODELS_FOLDER_FLAG, host_config, named_downloads
from ..generation.pipeline import OmniAvatarPipeline
from ..host.output import quiet_host
from ..model.checkpoint import read_facts
from ..model.files import MODELS, ModelFiles, model_files
from ..model.part_files import check_parts
from ..system.messages import counted
from ..system.output_folder import check_output_folder
from ..system.progress import progress_bar
from .cache import CachedClip
from .cache_writer import CacheWriter, plain_settings, refuse_other_cache, reserved_cache, write_index
from .clips import ClipFacts, ClipSettings, ClipSource, UnreadableClip
from .encode import REFERENCES, CacheOptions, encoder_pipeline
from .flags import DTYPES, add_data_arguments, data_of
from .prepared import PreparedClip
from .recipe import Recipe
from .scan import Scan, scan_clips
from .video_clip import VideoClip

logger = logging.getLogger(__name__)

SLOWEST_PROCESS = timedelta(days=7)
"""How long processes wait for the last one."""
PARTS = ("text_encoder", "vae", "tokenizer", "wav2vec2")
"""Parts of the model that encode clips."""


@dataclass(frozen=True, kw_only=True)
class PrecomputeReport:
    """What a run of `precompute` did, over all processes."""

    encoded: int
    kept: int
    """Clips that were in the cache already."""
    faults: tuple[tuple[str, str], ...]
    """Name and reason of the clips that could not be encoded."""


def precompute(
    pipe: OmniAvatarPipeline,
    clips: Sequence[ClipSource],
    folder: str | Path,
    *,
    settings: ClipSettings,
    recipe: Recipe,
    options: CacheOptions | None = None,
    scan: Scan | None = None,
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
        scan: of the `video_clips` of these clips with these settings; None scans them here.
        show_progress: draw a bar with the remaining time.

    Raises:
        StaleCacheError: the folder holds a cache that was made otherwise; the message names the differences.
        ValueError: no clip is usable, the pipeline is for other settings, or another run writes to the folder.
        OSError: the cache cannot be written; what is done is kept.
    """
    state = processes(None)
    with reserved_cache(Path(folder), state):
        begun = begin(pipe, clips, folder, settings, recipe, options or CacheOptions(), state, scan)
        unit = "done" if state.num_processes == 1 else "of this process done"
        with progress_bar(unit, show_progress and state.is_main_process) as bar:
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
    scan: Scan | None = None,
) -> BegunCache:
    """Look at all clips, and write an unfinished index and the features of silence; see `precompute`.

    The folder has to be `reserved_cache`.
    """
    _check_pipeline(pipe, settings)
    writer = CacheWriter(pipe, Path(folder), settings, recipe, options, state)
    refuse_other_cache(writer.folder, writer.cache_settings)
    videos = video_clips(clips)
    scan = scan_usable(videos, settings, recipe) if scan is None else scan
    found = zip(range(len(videos)), videos, scan.facts, strict=True)
    usable = [(index, clip, facts) for index, clip, facts in found if facts is not None and isinstance(clip, VideoClip)]
    if state.is_main_process:
        write_index(writer.folder, {"complete": False, "settings": writer.cache_settings, "texts": {}, "clips": []})
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


def scan_usable(videos: Sequence[ClipSource], settings: ClipSettings, recipe: Recipe) -> Scan:
    """Look at clips; ValueError if none can be used."""
    scan = scan_clips(videos, settings, recipe)
    if scan.bad_clips == len(videos):
        raise ValueError(f"none of {len(videos)} clips can be used: {scan.faults[0].clip}: {scan.faults[0].told}")
    return scan


def video_clips(clips: Sequence[ClipSource]) -> list[ClipSource]:
    """The clips to encode: of prepared directories their videos, and as faults those that cannot be read.

    Raises:
        ValueError: a clip comes from a cache.
    """
    return [_video_clip(clip) for clip in clips]


def _video_clip(clip: ClipSource) -> ClipSource:
    if isinstance(clip, CachedClip):
        raise ValueError(f"{clip.name} comes from a cache; give the list of clips that it was made of")
    if not isinstance(clip, PreparedClip):
        return clip
    try:
        return clip.live_clip()
    except (ValueError, OSError) as error:
        return UnreadableClip(name=clip.name, reason=str(error))


def _finish(writer: CacheWriter, scan: Scan, parts: Sequence[tuple[Any, ...]]) -> PrecomputeReport:
    """Write the index from what all processes did, and sum up."""
    entries = dict(entry for part in parts for entry in part[1])
    texts = {key: shape for part in parts for key, shape in part[0].items()}
    faults = [(fault.index, fault.clip, fault.reason) for fault in scan.faults]
    faults = sorted(faults + [fault for part in parts for fault in part[2]])
    if writer.state.is_main_process:
        settings = {**writer.cache_settings, "text_dim": next(iter(texts.values()))[1]}
        write_index(
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


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `omniavatar precompute`."""
    add_data_arguments(parser)
    parser.add_argument(
        "--trajectories",
        action="store_true",
        help="instead, write trajectories of a teacher, for distillation: all other flags are then those of "
        "`omniavatar train`, --output_path the folder",
    )
    parser.add_argument("cache", metavar="CACHE", help="folder of the cache; an unfinished cache is completed")
    parser.add_argument(
        "--model",
        choices=MODELS,
        default="14B",
        help="released model, or the small one of this package: nano or nano-v2v (default: 14B)",
    )
    parser.add_argument("--models_folder", help="folder with the model's files, as for generate")
    parser.add_argument("--text_encoder", help="weights of the text encoder (default: from --models_folder)")
    parser.add_argument("--vae", help="weights of the VAE (default: from --models_folder)")
    parser.add_argument("--tokenizer", help="folder of the tokenizer (default: from --models_folder)")
    parser.add_argument("--wav2vec2", help="folder of wav2vec2-base-960h (default: from --models_folder)")
    parser.add_argument("--device", help="cuda, cpu, ... (default: this process's GPU if there is one)")
    parser.add_argument(
        "--dtype",
        choices=list(DTYPES),
        default="bfloat16",
        help="number format of networks, latents and text embeddings (default: bfloat16)",
    )
    parser.add_argument(
        "--audio_dtype",
        choices=list(DTYPES),
        default="bfloat16",
        help="number format of the audio features in the cache (default: bfloat16)",
    )
    parser.add_argument(
        "--references", type=int, default=REFERENCES, help=f"reference frames per clip (default: {REFERENCES})"
    )
    parser.add_argument(
        "--tiled", action="store_true", help="run the VAE in tiles: less memory, slightly shifted colours"
    )


def processes(device: str | None) -> PartialState:
    """The processes that were launched together, with this one's place among them.

    Processes that share a GPU cannot meet through NCCL: with a device named they meet on the CPU, as without any.

    Raises:
        ValueError: accelerate joins fewer than were launched, each of which would write the whole cache.
    """
    has_gpu = getattr(torch, "accelerator", torch.cuda).is_available()
    state = PartialState(cpu=device is not None or not has_gpu, timeout=SLOWEST_PROCESS)
    launched = int(os.environ.get("WORLD_SIZE") or 1)
    if state.num_processes != launched:
        raise ValueError(
            f"{launched} processes were launched (WORLD_SIZE), accelerate joins {state.num_processes}: name --device"
        )
    return state


def device_of(wanted: str | None, state: PartialState) -> str:
    """The device of this process: as Accelerate has it, or as wanted; "cuda" is shared out among the processes."""
    if wanted is not None:
        _check_device(wanted)
    if wanted == "cuda":
        return f"cuda:{state.local_process_index % torch.cuda.device_count()}"
    return str(state.device) if wanted is None else wanted


def _check_device(wanted: str) -> None:
    try:
        device = torch.device(wanted)
    except RuntimeError as error:
        raise ValueError(f"--device {wanted}: {error}") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"--device {wanted}: this machine has {torch.cuda.device_count()} CUDA devices")


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
    check_output_folder(args.cache)
    clips, settings, recipe = data_of(args)
    videos = video_clips(clips)
    files = model_files(args.model, args.models_folder, {part: getattr(args, part) for part in PARTS})
    if files.is_small_family:
        settings = _of_small_family(settings, files)
    options = CacheOptions(references=args.references, audio_dtype=DTYPES[args.audio_dtype], tiled=args.tiled)
    state = processes(args.device)
    device, dtype = device_of(args.device, state), DTYPES[args.dtype]
    refuse_other_cache(Path(args.cache), plain_settings(settings, recipe, options, dtype))
    if files.is_small_family:
        from ..model.small_family import register_family

        register_family()
    sources = {part: files.sources[part] for part in PARTS}
    missing = [str(path) for part, path in files.missing().items() if part in PARTS]
    if missing:
        raise FileNotFoundError(f"files of the model are missing: {', '.join(missing)}")
    check_parts(sources)
    scan = scan_usable(videos, settings, recipe)
    if state.is_main_process:
        for fault in scan.faults:
            logger.warning("%s: %s", fault.clip, fault.told)
    configs = {part: host_config(part, sources[part]) for part in PARTS}
    with (
        main_process_first(state),  # so that one process downloads
        quiet_host(args.debug),
        named_downloads(sources.values(), MODELS_FOLDER_FLAG),
    ):
        configs["wav2vec2"].download_if_necessary()
        pipe = encoder_pipeline(
            settings,
            model_configs=[configs["text_encoder"], configs["vae"]],
            tokenizer_config=configs["tokenizer"],
            wav2vec2=_folder(configs["wav2vec2"].path),
            device=device,
            dtype=dtype,
        )
    try:
        report = precompute(pipe, videos, args.cache, settings=settings, recipe=recipe, options=options, scan=scan)
    except KeyboardInterrupt as interrupt:
        raise KeyboardInterrupt(f"{args.cache} keeps what was done, and the same command goes on.") from interrupt
    if state.is_main_process:
        print(
            f"{args.cache}: {counted(report.encoded, 'clip')} encoded, {report.kept} "
            f"kept, {counted(len(report.faults), 'fault')}"
        )
    return 1 if report.faults else 0


def _of_small_family(settings: ClipSettings, files: ModelFiles) -> ClipSettings:
    """Faces as its checkpoint expects them: drawn people fill the picture in another way, so they are not checked."""
    if settings.faces == "checked":
        return replace(settings, faces="any")
    if settings.faces == "aligned" and (facts := read_facts(files.sources["omniavatar"])) is not None:
        return replace(settings, conventions=replace(settings.conventions, template=facts.conventions.template))
    return settings


def _folder(path: str | Sequence[str]) -> Path:
    """The folder of a part that is one: as it was given, or that of its downloaded files."""
    first = Path(path) if isinstance(path, str) else Path(path[0])
    return first if first.is_dir() else first.parent
