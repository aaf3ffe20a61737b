"""Trajectories of a teacher, from noise to its video: made once, stored, and learnt by heart as a student's warm-up.

A file holds a sample whose video is the teacher's, with what it was conditioned on, and the noisy latents that the
teacher passed at each of the student's noise levels. The student's loss on it is mean (x_0 of the student - x_0)^2.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..data.clips import ClipSource
from ..data.dataset import OmniAvatarDataset
from ..data.sample import TrainingSample
from ..system.tensor_files import open_safetensors, write_safetensors
from .distill import Conditions, DistillationModule
from .loader import SampleKey, SeededSamples, stream_seed

FACTS = "trajectory"
"""Metadata entry of a file: JSON of what is no tensor."""
STORED = {
    "omni_reference_latents": "reference_latents",
    "omni_masked_latents": "masked_latents",
    "omni_mouth_mask_latents": "mouth_mask_latents",
    "omni_reference_sequence_latents": "reference_sequence_latents",
    "omni_audio": "audio_features",
    "context": "context",
}
"""Input of the model function -> field of the sample that it becomes."""


def merged_levels(teacher: list[float], student: list[float]) -> list[float]:
    """The noise levels of both, falling, each once, with 0 behind them."""
    found = sorted({round(level, 9) for level in (*teacher, *student)}, reverse=True)
    return [*found, 0.0]


@torch.no_grad()
def follow(
    flow: Callable[[Tensor, Tensor], Tensor], noise: Tensor, levels: list[float], kept: list[float]
) -> tuple[Tensor, Tensor]:
    """Euler steps down the levels, 0 the last: the end [B, ...], and what was passed at the `kept` ones [B, K, ...]."""
    x, passed = noise, []
    for level, following in itertools.pairwise(levels):
        if any(abs(level - one) < 1e-6 for one in kept):
            passed.append(x)
        x = x + (following - level) * flow(x, torch.full((len(x),), level, device=x.device))
    return x, torch.stack(passed, dim=1)


def write_trajectories(
    module: DistillationModule,
    dataset: OmniAvatarDataset,
    folder: Path,
    *,
    steps: int | None,
    seed: int,
    share: range,
    on_file: Callable[[Path], None],
) -> int:
    """Write a file for each sample of an epoch that has none yet; gives how many.

    Args:
        module: whose teacher is asked, guided as in distillation.
        dataset: with samples as long as clips and limits allow.
        folder: of the files.
        steps: of the teacher; None for those of its checkpoint.
        seed: of what is drawn, with the sample's number.
        share: the samples that this process makes.
        on_file: called with each file.
    """
    samples, written = SeededSamples(dataset, seed), 0
    teacher, student = module.teacher_sampling, module.sampling.sigmas
    if steps is not None:
        teacher = teacher.with_given(steps=steps, timesteps=())
    levels = merged_levels(teacher.sigmas, student)
    for number in share:
        path = folder / f"{number:06d}.safetensors"
        if path.is_file():
            continue
        sample = samples[SampleKey(0, number)]
        torch.manual_seed(stream_seed("trajectory", seed, number))
        tensors, facts = _trajectory(module, sample, levels)
        write_safetensors(path, tensors, {FACTS: json.dumps(facts | {"levels": student})})
        on_file(path)
        written += 1
    return written


@torch.no_grad()
def _trajectory(
    module: DistillationModule, sample: TrainingSample, levels: list[float]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    shared, positive, _ = module.prepare(sample)
    conditions = Conditions(module, shared, positive, exit_step=0)
    end, passed = follow(conditions.teacher, conditions.start, levels, module.sampling.sigmas)
    known = shared["input_latents"][:, :, : conditions.record.known_frames]
    tensors = {"input_latents": torch.cat([known.float(), conditions.generated(end)], dim=2), "trajectory": passed}
    inputs = {**shared, **positive}
    tensors |= {field: inputs[name] for name, field in STORED.items() if inputs.get(name) is not None}
    facts = {name: getattr(sample, name) for name in ("sources", "num_frames", "height", "width", "prefix_frames")}
    kept = {name: value.to(module.pipe.torch_dtype).cpu().contiguous() for name, value in tensors.items()}
    return kept, facts


class TrajectoryDataset(torch.utils.data.Dataset[TrainingSample]):
    """The samples of a folder that `write_trajectories` wrote.

    Args:
        folder: of the files.
        levels: the student's noise levels.
        repeat: how often an epoch has every file.

    Raises:
        ValueError: the folder holds no trajectories, or those of another student.
    """

    load_from_cache = False

    def __init__(self, folder: Path, levels: list[float], repeat: int = 1) -> None:
        self.files, self.repeat = sorted(folder.glob("*.safetensors")), repeat
        self.clips: list[ClipSource] = []
        if not self.files:
            raise ValueError(f"--trajectories {folder} holds no trajectories: `omniavatar precompute --trajectories`")
        made_for = self._facts(self.files[0])["levels"]
        if [round(level, 6) for level in made_for] != [round(level, 6) for level in levels]:
            shown = [", ".join(f"{1000 * level:g}" for level in of) for of in (made_for, levels)]
            raise ValueError(
                f"--trajectories {folder} are those of a student with the timesteps {shown[0]}, this one has {shown[1]}"
            )

    def _facts(self, path: Path) -> dict[str, Any]:
        with open_safetensors(path) as content:
            metadata = content.metadata() or {}
        if FACTS not in metadata:
            raise ValueError(f"{path} is no trajectory of a teacher")
        return json.loads(metadata[FACTS])

    def needed_networks(self) -> dict[str, str]:
        """None."""
        return {}

    def __len__(self) -> int:
        return len(self.files) * self.repeat

    def describe(self, index: int) -> str:
        """The file of an item, for messages."""
        return str(self.files[index % len(self.files)])

    def __getitem__(self, index: int) -> TrainingSample:
        path = self.files[range(len(self))[index] % len(self.files)]
        facts, names = self._facts(path), {field.name for field in fields(TrainingSample)}
        with open_safetensors(path) as content:
            tensors = {name: content.get_tensor(name) for name in content.keys() if name in names}  # noqa: SIM118
        drop = torch.zeros(len(facts["sources"]), dtype=torch.bool)
        facts.pop("levels")
        return TrainingSample(drop_text=drop, drop_audio=drop, drop_prefix=drop, **facts, **tensors)
