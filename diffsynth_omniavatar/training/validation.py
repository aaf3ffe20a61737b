"""Validation: videos that the model in training makes of given pictures and sounds, and what is measured on them.

A metric is a function `metric(video, sample)` that gets what was generated and what from, and returns numbers by name:

    def brightness(video: GeneratedVideo, sample: ValidationSample) -> dict[str, float]:
        return {"brightness": float(read_frames(video.path, 0, video.frames).float().mean())}

It is named as `package.module:brightness`; each number's mean over all videos is logged as `validation_<name>`.
"""

from __future__ import annotations

import importlib
import logging
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from accelerate.utils import gather_object

from ..generation.generate import GeneratedVideo, generate
from ..text_files import read_lines
from .accelerator import OmniAccelerator
from .callbacks import ValidationResult
from .module import ENCODERS, OmniAvatarTrainingModule

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ValidationSample:
    """What a validation video is made from."""

    prompt: str
    picture: Path
    """The portrait; V2V: the video whose mouth is changed."""
    sound: Path


Metric = Callable[[GeneratedVideo, ValidationSample], Mapping[str, float]]


def read_samples(path: str | Path) -> list[ValidationSample]:
    """The samples of a file with a line `prompt@@image@@audio` each (V2V: `prompt@@video@@audio`).

    Raises:
        ValueError: the file is missing or empty, a line has not three fields, or names a file that is not there.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"--validation_data {path} does not exist.")
    lines = read_lines(path)
    fields = [line.split("@@") for _, line in lines]
    bad = [number for (number, _), parts in zip(lines, fields, strict=True) if len(parts) != 3]
    if bad or not fields:
        raise ValueError(f"--validation_data {path}: line {bad or 'none'}; wanted prompt@@image@@audio in each.")
    samples = [ValidationSample(prompt, Path(picture), Path(sound)) for prompt, picture, sound in fields]
    missing = [str(file) for sample in samples for file in (sample.picture, sample.sound) if not file.is_file()]
    if missing:
        raise ValueError(f"--validation_data {path} names what is not there: {', '.join(missing)}.")
    return samples


def load_metrics(names: str) -> list[Metric]:
    """The functions that "module:function,module:function" names.

    Raises:
        ValueError: there is no such module or function.
    """
    metrics = []
    for name in filter(None, names.split(",")):
        module, _, function = name.strip().partition(":")
        try:
            metrics.append(getattr(importlib.import_module(module), function))
        except (ImportError, AttributeError) as error:
            raise ValueError(f"--validation_metrics {name}: {error}; wanted module:function.") from error
    return metrics


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
    steps: int
    """Of denoising."""
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
        """The means of what was measured, and the videos of all processes; None where nothing is to be done."""
        if step == 0 and not self.at_start:
            return None
        made: dict[int, tuple[Path, dict[str, float]]] = {}
        with self.module.encoders_on_device(), tempfile.TemporaryDirectory() as scratch:
            for index in self.accelerator.share(len(self.samples)):
                # Where the model is sharded, all processes make each video at once, and the main one's is kept.
                kept = self.accelerator.is_main_process or not self.accelerator.is_sharded
                folder = self.folder / f"step-{step}" if kept else Path(scratch)
                folder.mkdir(parents=True, exist_ok=True)
                video = self.generate(self.samples[index], folder / f"{index:03d}.mp4")
                if kept:
                    made[index] = video.path, self.measure(video, self.samples[index])
                    logger.info("validation video %s (%d frames)", video.path, video.frames)
        return _together(gather_object([made]))

    def generate(self, sample: ValidationSample, out: Path) -> GeneratedVideo:
        """The video of a sample."""
        is_v2v = self.module.pipe.dit.config.has_masked_video
        return generate(
            self.module.pipe,
            prompt=sample.prompt,
            audio=sample.sound,
            image=None if is_v2v else sample.picture,
            video=sample.picture if is_v2v else None,
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


def _together(parts: Sequence[Mapping[int, tuple[Path, Mapping[str, float]]]]) -> ValidationResult:
    made = dict(sorted(item for part in parts for item in part.items()))
    found: dict[str, list[float]] = {}
    for _, values in made.values():
        for name, value in values.items():
            found.setdefault(f"validation_{name}", []).append(value)
    return ValidationResult(
        {name: sum(values) / len(values) for name, values in found.items()}, [path for path, _ in made.values()]
    )
