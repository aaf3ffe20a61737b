"""What is measured on validation videos: groups of figures by name, and functions of the user's own.

A metric is a function `metric(video, sample)` that gets what was generated and what from, and returns numbers by name:

    def brightness(video: GeneratedVideo, sample: ValidationSample) -> dict[str, float]:
        return {"brightness": float(read_frames(video.path, 0, video.frames).float().mean())}

It is named as `package.module:brightness`; each number's mean over all videos is logged as `validation_<name>`. A name
without a colon is a group of figures, as `omniavatar evaluate` measures them; FID and FVD are of all videos together.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from ..generation.result import GeneratedVideo
from ..metrics.clip import ClipFiles
from ..metrics.distribution import Features
from ..metrics.evaluate import ALL_GROUPS, load_networks
from ..metrics.measure import Measuring, by_reason
from ..metrics.networks import Networks, missing_for
from ..metrics.together import SET_GROUPS, Together
from .validation_samples import ValidationSample

logger = logging.getLogger(__name__)

Metric = Callable[[GeneratedVideo, ValidationSample], Mapping[str, float]]

FLAGS = {
    "syncnet_path": "--validation_syncnet_path",
    "stable_syncnet_path": "--syncnet_path",
    "inception_path": "--validation_inception_path",
    "fvd_path": "--validation_fvd_path",
}
"""Weights of `Networks` -> the flag of training that names them, where that has another name."""


def networks_of(args: argparse.Namespace, device: str = "cpu") -> Networks:
    """The weights of figures that the flags name."""
    return Networks(
        device=device,
        syncnet_path=args.validation_syncnet_path,
        stable_syncnet_path=args.syncnet_path,
        vgg_path=args.vgg_path,
        inception_path=args.validation_inception_path,
        fvd_path=args.validation_fvd_path,
        videomae_path=args.videomae_path,
    )


def metric_names(text: str) -> tuple[list[str], list[str]]:
    """Groups of figures, and functions `module:function`, that a comma-separated list names."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    return [name for name in names if ":" not in name], [name for name in names if ":" in name]


def metric_faults(text: str, networks: Networks) -> Iterator[str]:
    """What is wrong with a list of metrics, or missing for them; nothing is loaded."""
    groups, functions = metric_names(text)
    for name in groups:
        if name not in ALL_GROUPS:
            yield f"--validation_metrics {name}: wanted module:function, or some of {', '.join(ALL_GROUPS)}"
        elif (why := missing_for(name, networks, FLAGS)) is not None:
            yield f"--validation_metrics {name}: {why}"
    for name in functions:
        try:
            _function(name)
        except (ImportError, AttributeError) as error:
            yield f"--validation_metrics {name}: {error}; wanted module:function"


def load_metrics(text: str, networks: Networks, *, is_v2v: bool) -> list[Metric]:
    """The metrics of a list in which `metric_faults` found nothing, with their networks loaded.

    Args:
        text: the list.
        networks: of the groups.
        is_v2v: samples have a video in place of a portrait.

    Raises:
        ValueError: weights cannot be used.
    """
    groups, functions = metric_names(text)
    metrics = [_function(name) for name in functions]
    return [GroupFigures(groups, networks, is_v2v), *metrics] if groups else metrics


def _function(name: str) -> Metric:
    module, _, function = name.partition(":")
    return getattr(importlib.import_module(module), function)


class GroupFigures:
    """The metric that measures groups of figures.

    Raises:
        ValueError: weights cannot be used.
    """

    def __init__(self, groups: Sequence[str], networks: Networks, is_v2v: bool) -> None:
        self.groups, self.networks, self.is_v2v = groups, networks, is_v2v
        load_networks(groups, networks)
        for doubt in networks.doubts(networks.digests(groups)):
            logger.warning("--validation_metrics %s", doubt)
        self._measure = Measuring(groups=groups, networks=networks)
        self._seen: Mapping[str, Features] = {}
        self._told: set[str] = set()

    def __call__(self, video: GeneratedVideo, sample: ValidationSample) -> dict[str, float]:
        """The figures of a video that it has: what it lacks for others is logged, once for each reason."""
        assert video.path is not None  # validation writes files
        portrait = None if self.is_v2v else sample.picture
        seen = self._measure(ClipFiles(generated=video.path, reference=sample.reference, portrait=portrait))
        self._seen = seen.together
        if isinstance(seen.result, str):
            self._tell(f"validation video {video.path} has no figures", seen.result)
            return {}
        for why, names in by_reason(seen.result.missing).items():
            self._tell(f"validation video {video.path} has no figures of {', '.join(names)}", why)
        return {name: value for name, value in seen.result.values.items() if math.isfinite(value)}

    def take_seen(self) -> Mapping[str, Features]:
        """What `together` needs of the video that was measured last."""
        seen, self._seen = self._seen, {}
        return seen

    def together(self, seen: Iterable[Mapping[str, Features]]) -> dict[str, float]:
        """The figures of all videos together, from what `take_seen` gave of each."""
        together = Together([name for name in self.groups if name in SET_GROUPS], self.networks)
        for part in seen:
            together.take(part)
        return {name: value for name, value in together.results() if value is not None}

    def _tell(self, what: str, why: str) -> None:
        if why not in self._told:
            self._told.add(why)
            logger.warning("%s: %s", what, why)
