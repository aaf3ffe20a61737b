"""Measures videos: groups of figures for each clip, and what clips say together.

found = evaluate([ClipFiles(generated=Path("talk.mp4"), reference=Path("real.mp4"))], ["lips", "picture"])
found.summary(), found.clips[0].values
"""

from __future__ import annotations

import logging
import math
import statistics
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from ..system.workers import Tell, work_through
from .clip import PROTOCOL, ClipFiles, open_all
from .distribution import Features
from .groups import GROUPS
from .measure import ClipResult, Measuring, Seen
from .networks import Networks, missing_for
from .together import SET_GROUPS, Together

logger = logging.getLogger(__name__)

ALL_GROUPS = (*GROUPS, *SET_GROUPS)

LOWER_IS_BETTER = frozenset(
    "lmd sync_d lpips lpips_face flicker frozen_share colour_drift fid fid_face fvd fvd_videomae".split()  # noqa: SIM905
)
HIGHER_IS_BETTER = frozenset(
    "sync_c stable_sync csim psnr psnr_face psnr_outside ssim ssim_face ssim_outside "  # noqa: SIM905
    "openness_heard_r openness_r width_r sharpness".split()
)
"""Which end of a figure is the better one; of all others neither."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What was measured on several clips."""

    clips: Sequence[ClipResult]
    values: Mapping[str, float] = field(default_factory=dict)
    """Figures of all clips together: FID, FVD."""
    missing: Mapping[str, str] = field(default_factory=dict)
    """Groups that could not be measured at all, and what brings them."""
    failed: Mapping[str, str] = field(default_factory=dict)
    """Clips that could not be read, and why."""
    warnings: Sequence[str] = ()
    """What else to know before these figures are compared."""
    protocol: Mapping[str, object] = field(default_factory=lambda: dict(PROTOCOL))

    def summary(self) -> dict[str, dict[str, float | str]]:
        """Of each figure its mean, median, the worst value and its clip (only where one end is better), and the number
        of clips that have it."""
        found: dict[str, dict[str, float | str]] = {}
        for name in dict.fromkeys(name for clip in self.clips for name in clip.values):
            known = [(clip.values[name], clip.files.name) for clip in self.clips if _is_known(clip.values.get(name))]
            if not known:
                continue
            numbers = [value for value, _ in known]
            row: dict[str, float | str] = {
                "mean": statistics.fmean(numbers),
                "median": statistics.median(numbers),
                "clips": len(known),
            }
            if name in LOWER_IS_BETTER | HIGHER_IS_BETTER:
                value, clip_name = (max if name in LOWER_IS_BETTER else min)(known)
                row |= {"worst": value, "worst_clip": clip_name}
            found[name] = row
        return found


def _is_known(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def check_groups(names: Sequence[str]) -> list[str]:
    """The names, if all are groups; an empty list stands for all.

    Raises:
        ValueError: there is no such group.
    """
    unknown = [name for name in names if name not in ALL_GROUPS]
    if unknown:
        raise ValueError(f"there are no figures {', '.join(unknown)}; wanted some of {', '.join(ALL_GROUPS)}")
    return list(names) or list(ALL_GROUPS)


def evaluate(
    clips: Sequence[ClipFiles],
    groups: Sequence[str] = (),
    networks: Networks | None = None,
    *,
    workers: int = 1,
    on_clip: Callable[[int, ClipResult | str], None] | None = None,
) -> Evaluation:
    """Measure clips. One that cannot be read is listed, and the others are measured.

    Args:
        clips: their files.
        groups: names out of `ALL_GROUPS`; none for all. Those whose package or weights are missing are listed so.
        networks: where weights lie, and the device.
        workers: processes that measure; a script that wants several must call this under `if __name__ == "__main__"`.
        on_clip: called for each clip with its place and result, or why it failed, in the order in which they get done.
            Files that cannot be opened are told before anything is measured.

    Raises:
        ValueError: an unknown group; or weights that are given cannot be used; or of the groups that were asked for
            none can be had.
    """
    networks = networks or Networks()
    usable, missing = usable_groups(groups, networks)
    digests = networks.digests(usable)
    warnings = networks.doubts(digests)
    for warning in warnings:
        logger.warning("%s", warning)
    results: dict[int, ClipResult | str] = {}

    def tell(place: int, result: ClipResult | str) -> None:
        results[place] = result
        if on_clip is not None:
            on_clip(place, result)

    opened: list[int] = []
    for place, files in enumerate(clips):
        try:
            open_all(files)
            opened.append(place)
        except (ValueError, OSError) as error:
            tell(place, str(error))
    together = Together([name for name in usable if name in SET_GROUPS], networks)
    waiting: dict[int, Mapping[str, Features]] = {}
    order = deque(opened)
    for place, seen in _measure([(place, clips[place]) for place in opened], usable, networks, workers):
        waiting[place] = seen.together
        while order and order[0] in waiting:  # in one order, whoever is ready first: their sums depend on it
            together.take(waiting.pop(order.popleft()))
        tell(place, seen.result)
    values: dict[str, float] = {}
    for name, value in together.results():
        if value is not None:
            values[name] = value
        elif name in SET_GROUPS:
            missing[name] = "fewer than two frames, or pieces of 16 frames, have a reference"
    return Evaluation(
        clips=[result for _, result in sorted(results.items()) if not isinstance(result, str)],
        values=values,
        missing=missing,
        failed={clips[place].name: why for place, why in sorted(results.items()) if isinstance(why, str)},
        warnings=warnings,
        protocol=PROTOCOL | {"weights": digests},
    )


_Numbered = tuple[int, ClipFiles]


def _measure(
    clips: Sequence[_Numbered], groups: Sequence[str], networks: Networks, workers: int
) -> Iterator[tuple[int, Seen]]:
    """What comes of each clip, as soon as it is known."""
    workers = max(1, min(workers, len(clips)))
    if workers > 1:
        networks = networks.fresh()
    threads = None if workers == 1 else max(1, torch.get_num_threads() // workers)
    work = _Work(Measuring(groups=groups, networks=networks, threads=threads))
    for done in work_through(work, clips, workers):
        yield done.item[0], Seen(result=str(done.error)) if done.result is None else done.result


@dataclass(frozen=True)
class _Work:
    """What a process does with a clip."""

    measure: Measuring

    def __call__(self, item: _Numbered, tell: Tell) -> Seen:
        return self.measure(item[1])


def usable_groups(groups: Sequence[str], networks: Networks) -> tuple[list[str], dict[str, str]]:
    """The groups that can be measured, with their networks loaded, and why others cannot; raises as `evaluate`."""
    names = check_groups(groups)
    missing = {name: why for name in names if (why := missing_for(name, networks)) is not None}
    for name in names:
        if name not in missing:
            try:
                networks.load(name)
            except ImportError as error:
                missing[name] = str(error)
    usable = [name for name in names if name not in missing]
    if not usable:
        raise ValueError("nothing can be measured: " + "; ".join(f"{name}: {why}" for name, why in missing.items()))
    return usable, missing


def load_networks(names: Sequence[str], networks: Networks) -> None:
    """Load what groups need, so that wrong weights are told before any clip is read."""
    for name in names:
        networks.load(name)


def measured_rows(evaluation: Evaluation) -> Iterator[dict[str, float | str]]:
    """A row for each clip: its files and figures."""
    for clip in evaluation.clips:
        yield {"clip": clip.files.name, **clip.values}
