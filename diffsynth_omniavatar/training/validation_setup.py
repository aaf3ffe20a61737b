"""From the flags to what validates: read and checked before the model is loaded, then joined to the model."""

from __future__ import annotations

import argparse
import dataclasses
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ..data.clips import ClipSettings, ClipSource
from ..data.dataset import OmniAvatarDataset
from ..data.footage import same_footage
from ..data.recipe import Recipe
from ..data.tables import read_clips
from ..data.video_clip import VideoClip
from ..metrics.together import SET_GROUPS
from ..system.messages import counted
from .accelerator import OmniAccelerator
from .callbacks import ValidationResult
from .distill_flags import TASK
from .first_checks import check_same_clips
from .module import OmniAvatarTrainingModule
from .validation import Validation
from .validation_loss import ValidationLoss, validation_recipe
from .validation_metrics import Metric, load_metrics, metric_names, networks_of
from .validation_samples import ValidationSample, read_validation_samples

NAMED = 5
"""Clips that a warning names."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ValidationInputs:
    """What validates."""

    samples: Sequence[ValidationSample]
    """Of validation videos."""
    metrics: Sequence[Metric]
    """Of these."""
    dataset: OmniAvatarDataset | None
    """Clips of the validation loss."""

    @property
    def clips(self) -> list[ClipSource]:
        """All videos that it uses."""
        clips = [] if self.dataset is None else self.dataset.clips
        videos = [(sample.reference or sample.picture, sample.prompt) for sample in self.samples]
        return clips + [VideoClip(name=str(path), video=path, prompt=prompt) for path, prompt in videos]

    def tell_trained(self, trained: Sequence[ClipSource]) -> None:
        """Warn of those that are trained on, too."""
        same = same_footage(self.clips, trained)
        if same:
            named = ", ".join(clip.name for clip in same[:NAMED]) + (", ..." if len(same) > NAMED else "")
            logger.warning(
                "%d of %s for validation are trained on too, so their figures say little of unseen ones: %s",
                *(len(same), counted(len(self.clips), "clip"), named),
            )


def read_validation(
    args: argparse.Namespace, settings: ClipSettings, recipe: Recipe, device: torch.device
) -> ValidationInputs:
    """What the flags name, read and checked. In a distributed run every process must call it.

    Args:
        args: of training.
        settings, recipe: of the training samples.
        device: of the networks of figures.

    Raises:
        ValueError: a file, clip or weight cannot be used.
    """
    samples: list[ValidationSample] = []
    metrics: list[Metric] = []
    is_v2v = args.omniavatar_mode == "v2v"
    if args.validation_data is not None:
        samples = read_validation_samples(args.validation_data, is_v2v=is_v2v)
        compared = [name for name in metric_names(args.validation_metrics)[0] if name in SET_GROUPS]
        if compared and not any(sample.reference for sample in samples):
            raise ValueError(
                f"--validation_metrics {','.join(compared)} compares with real videos, and no line of "
                f"{args.validation_data} has one: it is the fourth field, prompt@@image@@audio@@reference"
            )
        metrics = load_metrics(args.validation_metrics, networks_of(args, str(device)), is_v2v=is_v2v)
    dataset = None
    if args.validation_loss_data is not None:
        clips = read_clips(args.validation_loss_data)
        check_same_clips(clips)
        dataset = OmniAvatarDataset(
            clips,
            settings=dataclasses.replace(settings, sound=False),
            recipe=validation_recipe(recipe),
            strict=True,
        )
    return ValidationInputs(samples, metrics, dataset)


@dataclass(frozen=True)
class Validations:
    """What validates a module; called with a step it does all of it. All processes must call it."""

    loss: ValidationLoss | None
    videos: Validation | None

    def __call__(self, step: int) -> ValidationResult | None:
        """What both find, None where nothing is to be done; the loss first, for it needs training's scheduler."""
        results = [part(step) for part in (self.loss, self.videos) if part is not None]
        found = [result for result in results if result is not None]
        if not found:
            return None
        return ValidationResult(
            {name: value for result in found for name, value in result.metrics.items()},
            [video for result in found for video in result.videos],
        )


def make_validations(
    args: argparse.Namespace, inputs: ValidationInputs, module: OmniAvatarTrainingModule, accelerator: OmniAccelerator
) -> Validations | None:
    """What validates the module; None without data for it."""
    loss = videos = None
    if inputs.dataset is not None:
        loss = ValidationLoss(
            module=module,
            accelerator=accelerator,
            dataset=inputs.dataset,
            levels=args.validation_loss_levels,
            at_start=args.validate_at_start,
        )
    if inputs.samples:
        videos = Validation(
            module=module,
            accelerator=accelerator,
            samples=inputs.samples,
            folder=Path(args.output_path) / "validation",
            steps=None if args.task == TASK else args.validation_num_inference_steps,
            seed=args.seed,
            metrics=inputs.metrics,
            at_start=args.validate_at_start,
        )
    return None if loss is None and videos is None else Validations(loss, videos)
