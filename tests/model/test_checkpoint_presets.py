"""Files of Lip Forcing: the teacher is run as it was trained, its student is refused before anything is read."""

from dataclasses import replace

import pytest
import torch

from diffsynth_omniavatar.app import cli
from diffsynth_omniavatar.generation.loading import load_pipeline
from diffsynth_omniavatar.media.timeline import chunk_length
from diffsynth_omniavatar.model.checkpoint import CheckpointError, load_checkpoint, needed_sources, read_facts
from diffsynth_omniavatar.model.checkpoint_presets import CHECKPOINT_PRESETS
from diffsynth_omniavatar.model.config import CheckpointConfig
from diffsynth_omniavatar.model.files import model_files
from diffsynth_omniavatar.model.small_family import TINY
from diffsynth_omniavatar.nano.family import write_random_checkpoint

TEACHER = CHECKPOINT_PRESETS["lipforcing_teacher"].conventions


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """A small file like the published one: 65 channels, LoRA, no config.json."""
    folder = tmp_path_factory.mktemp("teacher")
    write_random_checkpoint(folder, replace(TINY.dit, in_dim=65), torch.Generator().manual_seed(0), TINY.conventions)
    (folder / "config.json").unlink()
    return (folder / "pytorch_model.pt").rename(folder / "omniavatar_ls_14b.pt")


def test_the_teachers_conventions_are_the_stated_ones(teacher):
    facts = read_facts((teacher,))
    assert facts.in_dim == 65 and facts.conventions == TEACHER == load_checkpoint(teacher).config.conventions
    assert (TEACHER.leading_audio_rows, TEACHER.first_frame, TEACHER.prefix_frames) == (0, "masked", ())
    assert chunk_length(*TEACHER.image_sizes[0], TEACHER.max_tokens) == 81
    assert TEACHER.sampling.cfg_scale == 4.5 and not TEACHER.aligned


def test_a_config_beside_the_teacher_wins(teacher, tmp_path):
    (tmp_path / teacher.name).symlink_to(teacher)
    (tmp_path / "config.json").write_text('{"omniavatar": {"conventions": {"leading_audio_rows": 1}}}')
    assert read_facts((tmp_path / teacher.name,)).conventions.leading_audio_rows == 1


def test_a_renamed_teacher_is_converted_by_its_preset(teacher, tmp_path, capsys):
    (tmp_path / "mine.pt").symlink_to(teacher)
    arguments = ["convert", str(tmp_path / "mine.pt"), str(tmp_path / "out"), "--to", "omniavatar"]
    assert cli.main([*arguments, "--checkpoint_preset", "lipforcing_teacher"]) == 0
    assert CheckpointConfig.load(tmp_path / "out" / "config.json").conventions == TEACHER
    assert cli.main([*arguments, "--checkpoint_preset", "teacher"]) != 0
    assert "wanted one of lipforcing_teacher" in capsys.readouterr().err


def test_the_student_is_refused_unread(tmp_path):
    student = tmp_path / "lipforcing_14b.pth"
    student.write_bytes(b"not read")
    files = model_files("14B", tmp_path, {"omniavatar": student})
    for act in (lambda: load_checkpoint(student), lambda: needed_sources(files), lambda: load_checkpoint(tmp_path)):
        with pytest.raises(CheckpointError, match=r"lipforcing_14b\.pth: .*causal"):
            act()
    with pytest.raises(ValueError, match=r"checkpoint_preset lipforcing_student: .*teacher, omniavatar_ls"):
        load_pipeline("14B", tmp_path, omniavatar=tmp_path / "other.pth", checkpoint_preset="lipforcing_student")
