"""DiffSynth 2.x's own two tasks: `sft:data_process` writes a cache by the host's loop, `sft:train` reads it.

The cache is that of `precompute`, but for the clips' tensors, which the host writes to `<process>/<n>.pth`. What the
recipe draws (length, reference, prefix, dropouts, noise) is drawn in training, not here. Trade-off against `omniavatar
precompute`: no resuming.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import gather_object
from rich.progress import Progress
from torch.utils.data import DataLoader, Dataset

from .. import host
from ..data.cache_writer import CacheWriter, reserved_cache
from ..data.clips import ClipFacts, ClipSettings, ClipSource, reason_of
from ..data.encode import CacheOptions, RawClip, read_raw_clip
from ..data.precompute import BegunCache, PrecomputeReport, begin
from ..data.recipe import Recipe
from ..data.video_clip import VideoClip
from ..generation.pipeline import OmniAvatarPipeline
from ..system.tensor_files import read_pickle
from .loader import only_sample

Processed = dict[str, Any]


class _RawClips(Dataset[Any]):
    """The clips as they are read, or, in a string, why one cannot be."""

    load_from_cache = False

    def __init__(self, begun: BegunCache) -> None:
        # Without the writer, which holds the networks: they do not belong into worker processes.
        self.usable, self.settings = begun.usable, begun.writer.settings
        self.references = begun.writer.options.references

    def __len__(self) -> int:
        return len(self.usable)

    def __getitem__(self, number: int) -> tuple[int, VideoClip, ClipFacts, RawClip | str]:
        index, clip, facts = self.usable[number]
        try:
            return index, clip, facts, read_raw_clip(clip, facts, self.settings, self.references)
        except Exception as error:
            return index, clip, facts, reason_of(error)


class DataProcessAccelerator(Accelerator):
    """The Accelerator that the host's loop gets; of its loader it exchanges what does not reach any worker process."""

    def prepare_data_loader(self, data_loader: DataLoader[Any], *args: Any, **kwargs: Any) -> DataLoader[Any]:
        """Prepare the loader as accelerate does."""
        data_loader.collate_fn = only_sample
        return super().prepare_data_loader(data_loader, *args, **kwargs)


class _Encoder(host.DiffusionTrainingModule):
    """What the host's loop calls with each clip, and whose result it writes to a file."""

    def __init__(self, writer: CacheWriter) -> None:
        super().__init__()
        self.writer = writer

    def forward(self, data: tuple[int, VideoClip, ClipFacts, RawClip | str]) -> Processed:
        index, clip, facts, raw = data
        if isinstance(raw, str):
            return {"index": index, "fault": raw}
        self.writer.encoded += 1
        return {"index": index, "entry": self.writer.entry(clip, facts), "tensors": self.writer.encode(clip, raw)}


def process_data(
    pipe: OmniAvatarPipeline,
    clips: Sequence[ClipSource],
    *,
    settings: ClipSettings,
    recipe: Recipe,
    accelerator: Accelerator,
    args: argparse.Namespace,
) -> PrecomputeReport:
    """Write a cache to `args.output_path` with the host's `launch_data_process_task`. Every process must call it.

    Raises:
        StaleCacheError, ValueError: as `precompute`.
    """
    folder = Path(args.output_path)
    with reserved_cache(folder, accelerator.state):
        begun = begin(pipe, clips, folder, settings, recipe, CacheOptions(), accelerator.state)
        return _process(begun, folder, accelerator, args)


def _process(begun: BegunCache, folder: Path, accelerator: Accelerator, args: argparse.Namespace) -> PrecomputeReport:
    if accelerator.is_main_process:
        for old in folder.glob("*/*.pth"):
            old.unlink()
    accelerator.wait_for_everyone()
    with Progress(disable=True) as bar:
        texts = begun.writer.write_texts((clip.prompt for _, clip, _ in begun.usable), bar)
    host.launch_data_process_task(
        accelerator, _RawClips(begun), _Encoder(begun.writer), host.ModelLogger(str(folder)), args=args
    )
    names = {index: clip.name for index, clip, _ in begun.usable}
    entries, faults = _collect(folder, names, accelerator.process_index)
    return begun.finish(texts, entries, faults)


def _collect(
    folder: Path, names: dict[int, str], process: int
) -> tuple[list[tuple[int, dict[str, Any]]], list[tuple[int, str, str]]]:
    """Entries and faults of a process's files. Of a clip that several did, to even their shares, one file stays."""
    written: dict[int, Processed] = {}
    for path in sorted((folder / str(process)).glob("*.pth")):
        content = read_pickle(path)
        written[content["index"]] = content | {"file": path.relative_to(folder).as_posix()}
    kept: dict[int, int] = {}
    for number, indices in enumerate(gather_object([[*written]])):
        for index in indices:
            kept.setdefault(index, number)
    entries, faults = [], []
    for index, content in written.items():
        if kept[index] != process or "fault" in content:
            (folder / content["file"]).unlink()
        if kept[index] == process and "fault" in content:
            faults.append((index, names[index], content["fault"]))
        elif kept[index] == process:
            entries.append((index, content["entry"] | {"file": content["file"]}))
    return entries, faults
