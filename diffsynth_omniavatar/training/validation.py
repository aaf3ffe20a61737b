"""Validation: videos that the model in training makes of given pictures and sounds, and what is measured on them."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from accelerate.utils import gather_object

from ..generation.generate import generate
from ..generation.result import GeneratedVideo
from ..metrics.distribution import Features
from .accelerator import OmniAccelerator
from .best import PREFIX
from .callbacks import ValidationResult
from .module import ENCODERS, OmniAvatarTrainingModule
from .validation_metrics import GroupFigures, Metric
from .validation_samples import ValidationSample

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Made:
    """A validation video, and what was measured on it."""

    path: Path
    values: Mapping[str, float]
    seen: Mapping[str, Features]
    """For the figures of all videos together."""


@dataclass(kw_only=True)
class Validation:
    """Makes and measures the validation videos of a step, each process its share; all processes must call it.

    Raises:
        ValueError: the pipeline lacks a network that generating needs.
    """

    module: OmniAvatarTrainingModule
    accelerator: OmniAccelerator
    samples: Sequence[ValidationSample]
    folder: Path
    """Videos go to step-N/000.mp4 and so on in it."""
    steps: int | None
    """Of denoising; None for those of the pipeline's conventions."""
    seed: int = 0
    metrics: Sequence[Metric] = ()
    at_start: bool = False
    """Also before the first step."""

    def __post_init__(self) -> None:
        missing = [name for name in ENCODERS if getattr(self.module.pipe, name, None) is None]
        if missing:
            raise ValueError(
                f"--validation_data needs {', '.join(missing)}: add what is missing to --model_paths "
                "and --wav2vec2_path, also where training itself uses a cache."
            )

    def __call__(self, step: int) -> ValidationResult | None:
        """The means of what was measured, and the videos of all processes; None where nothing is to be done.

        A video that fails is logged and left out; where the model is sharded, its error is raised.
        """
        if step == 0 and not self.at_start:
            return None
        figures = next((metric for metric in self.metrics if isinstance(metric, GroupFigures)), None)
        made: dict[int, _Made] = {}
        with self.module.encoders_on_device(), tempfile.TemporaryDirectory() as scratch:
            for index in self.accelerator.share(len(self.samples)):
                # Where the model is sharded, all processes make each video at once, and the main one's is kept.
                kept = self.accelerator.is_main_process or not self.accelerator.is_sharded
                folder = self.folder / f"step-{step}" if kept else Path(scratch)
                try:
                    out = folder / f"{index:03d}.mp4"
                    video = self.generate(self.samples[index], out)
                    if kept:
                        values = self.measure(video, self.samples[index])
                        made[index] = _Made(out, values, figures.take_seen() if figures is not None else {})
                        logger.info("validation video %s (%d frames)", out, video.frames)
                except Exception as error:  # whatever it is, the steps that were made are worth more
                    if self.accelerator.is_sharded:  # the others would wait for this process's part of the weights
                        raise
                    logger.error(
                        "validation video %s/%03d.mp4 failed, training goes on: %s: %s",
                        folder,
                        index,
                        type(error).__name__,
                        error,
                    )
        by_place = {index: one for part in gather_object([made]) for index, one in part.items()}
        found = [by_place[index] for index in sorted(by_place)]
        result = _means(found)
        if figures is not None and self.accelerator.is_main_process:  # whose result counts
            together = figures.together(one.seen for one in found)
            result.metrics.update({f"{PREFIX}{name}": value for name, value in together.items()})
        return result

    def generate(self, sample: ValidationSample, out: Path) -> GeneratedVideo:
        """The video of a sample."""
        out.parent.mkdir(parents=True, exist_ok=True)
        is_v2v = self.module.pipe.dit.config.has_masked_video
        return generate(
            self.module.pipe,
            prompt=sample.prompt,
            audio=sample.sound,
            image=None if is_v2v else sample.picture,
            video=sample.picture if is_v2v else None,
            aligned=True,
            out=out,
            steps=self.steps,
            seed=self.seed,
            show_progress=False,
        )

    def measure(self, video: GeneratedVideo, sample: ValidationSample) -> dict[str, float]:
        """What all metrics say about a video."""
        values = {"seconds": video.seconds}
        for metric in self.metrics:
            values |= metric(video, sample)
        return values


def _means(made: Sequence[_Made]) -> ValidationResult:
    found: dict[str, list[float]] = {}
    for one in made:
        for name, value in one.values.items():
            found.setdefault(f"{PREFIX}{name}", []).append(value)
    return ValidationResult(
        {name: sum(values) / len(values) for name, values in found.items()}, [one.path for one in made]
    )
