"""What is measured on validation videos: groups of figures by name, and functions of the user's own.

A metric is a function `metric(video, sample)` that gets what was generated and what from, and returns numbers by name:

    def brightness(video: GeneratedVideo, sample: ValidationSample) -> dict[str, float]:
        return {"brightness": float(read_frames(video.path, 0, video.frames).float().mean())}

It is named as `package.module:brightness`; each number's mean over all videos is logged as `validation_<name>`. A name
without a colon is a group of figures, as `omniavatar evaluate` measures them.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence

from ..generation.result import GeneratedVideo
from ..metrics.clip import ClipFiles
from ..metrics.evaluate import evaluate, load_networks
from ..metrics.groups import GROUPS
from ..metrics.networks import Networks, missing_for
from .validation_samples import ValidationSample

logger = logging.getLogger(__name__)

Metric = Callable[[GeneratedVideo, ValidationSample], Mapping[str, float]]

FLAGS = {"syncnet_path": "--validation_syncnet_path", "stable_syncnet_path": "--syncnet_path"}
"""Weights of `Networks` -> the flag of training that names them, where that has another name."""


def networks_of(args: argparse.Namespace, device: str = "cpu") -> Networks:
    """The weights of figures that the flags name."""
    return Networks(
        device=device,
        syncnet_path=args.validation_syncnet_path,
        stable_syncnet_path=args.syncnet_path,
        vgg_path=args.vgg_path,
    )


def metric_names(text: str) -> tuple[list[str], list[str]]:
    """Groups of figures, and functions `module:function`, that a comma-separated list names."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    return [name for name in names if ":" not in name], [name for name in names if ":" in name]


def metric_faults(text: str, networks: Networks) -> Iterator[str]:
    """What is wrong with a list of metrics, or missing for them; nothing is loaded."""
    groups, functions = metric_names(text)
    for name in groups:
        if name not in GROUPS:
            yield f"--validation_metrics {name}: wanted module:function, or some of {', '.join(GROUPS)}"
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
        self._told: set[str] = set()

    def __call__(self, video: GeneratedVideo, sample: ValidationSample) -> dict[str, float]:
        """The figures of a video that it has: what it lacks for others is logged, once for each reason."""
        portrait = None if self.is_v2v else sample.picture
        files = ClipFiles(generated=video.path, reference=sample.reference, portrait=portrait)
        found = evaluate([files], self.groups, self.networks)
        reasons = dict(found.failed)
        for clip in found.clips:
            reasons |= clip.missing
        for name, why in reasons.items():
            if f"{name}: {why}" not in self._told:
                self._told.add(f"{name}: {why}")
                logger.warning("validation video %s has no figures of %s: %s", video.path, name, why)
        return {name: value for clip in found.clips for name, value in clip.values.items() if math.isfinite(value)}
