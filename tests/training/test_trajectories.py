"""A student's warm-up: trajectories of the teacher are stored and learnt."""

import itertools
import json

import pytest
import torch
from safetensors.torch import load_file
from training_runs import flags, write_inputs

from diffsynth_omniavatar.app.cli import main
from diffsynth_omniavatar.model.files import SMALL_FAMILY as FILES
from diffsynth_omniavatar.training import run
from diffsynth_omniavatar.training.log_table import read_table
from diffsynth_omniavatar.training.loop_state import load_state
from diffsynth_omniavatar.training.trajectories import TrajectoryDataset, follow, merged_levels

pytestmark = pytest.mark.one_host("the package's own steps, and files")

STUDENT_LEVELS = [1.0, 5 / 6]
"""Two steps of shift 5."""


def test_levels_of_both_are_passed_once():
    levels = merged_levels([1.0, 0.9, 0.5], [1.0, 0.75])
    assert levels == [1.0, 0.9, 0.75, 0.5, 0.0]
    noise = torch.randn(2, 3)
    end, passed = follow(lambda x, level: 2 * level[:, None].expand_as(x), noise, levels, [1.0, 0.75])
    assert torch.equal(passed[:, 0], noise) and passed.shape == (2, 2, 3)
    steps = [level * (level - following) for level, following in itertools.pairwise(levels)]
    torch.testing.assert_close(end, noise - 2 * sum(steps))
    torch.testing.assert_close(passed[:, 1], noise - 2 * sum(steps[:2]))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_inputs(tmp_path_factory.mktemp("trajectories"))


@pytest.fixture(scope="module")
def made(folder):
    """Trajectories of two clips."""
    common = ["--num_frames", "9", "--prefix_frames", "1", "--lora_rank", "2", "--student_steps", "2"]
    arguments = flags(folder, folder / "made", *common, "--teacher_cfg", "2", "--trajectory_steps", "3")
    assert main(["precompute", "--trajectories", *arguments]) == 0
    return folder / "made"


def warm_up(folder, output, made, *more):
    """Of the student on trajectories alone, with the denoiser alone."""
    only_dit = ["--model_paths", json.dumps([str(folder / "family" / FILES["dit"])]), "--trajectories", str(made)]
    common = ["--task", "distill", "--lora_rank", "2", "--student_steps", "2", *only_dit]
    return run.main(flags(folder, output, *common, *more))


def test_a_trajectory_goes_from_noise_to_the_teachers_video_with_known_frames(made):
    first, second = (load_file(made / f"{number:06d}.safetensors") for number in range(2))
    assert first["trajectory"].shape == (1, 2, 16, 3, 4, 4) and first["input_latents"].shape == (1, 16, 3, 4, 4)
    assert abs(float(first["trajectory"][:, 0].std()) - 1) < 0.2  # noise
    assert not torch.equal(first["trajectory"], second["trajectory"])
    sample = TrajectoryDataset(made, STUDENT_LEVELS)[1]
    assert sample.prefix_frames == 1 and torch.equal(sample.trajectory, second["trajectory"])


def test_the_student_learns_trajectories_and_distillation_starts_from_it(folder, made, tmp_path, capsys):
    assert warm_up(folder, tmp_path / "warm", made, "--max_steps", "16", "--learning_rate", "2e-2", "--seed", "3") == 0
    rows = read_table(tmp_path / "warm" / "loss.csv")
    losses = [row["student"] for row in rows]
    assert all("critic" not in row for row in rows) and losses == [row["loss"] for row in rows]
    assert sum(losses[-4:]) < 0.9 * sum(losses[:4])
    state = load_state(next((tmp_path / "warm").glob("step-16")))
    assert all((value == 0).all() for name, value in state["trained"].items() if "lora_B.critic" in name)

    start = ["--task", "distill", "--lora_rank", "2", "--student_steps", "2", "--num_frames", "9", "--max_steps", "1"]
    start += ["--student_start", str(tmp_path / "warm" / "step-16"), "--ema_decay", "0", "--prefix_frames", "1"]
    assert run.main(flags(folder, tmp_path / "distilled", *start)) == 0  # a step of the critic
    students = [
        load_file(tmp_path / name / "student" / "lora.safetensors") for name in ("warm/step-16", "distilled/step-1")
    ]
    assert all(torch.equal(value, students[1][name]) for name, value in students[0].items())

    assert warm_up(folder, tmp_path / "other", made, "--student_shift", "3") == 2
    assert "a student with the timesteps 1000, 833.333, this one has 1000, 750" in capsys.readouterr().err
