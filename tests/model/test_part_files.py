"""What the first bytes of a model's files tell is told before the files are loaded."""

from pathlib import Path

import pytest
import torch

from diffsynth_omniavatar.model.files import HubFiles, model_files
from diffsynth_omniavatar.model.part_files import check_parts, weights_fault

pytestmark = pytest.mark.one_host("it imports nothing of DiffSynth")


def test_a_whole_model_has_no_fault() -> None:
    check_parts(model_files("nano").sources)
    check_parts({"dit": HubFiles("a/b", "*", 1)})


@pytest.mark.parametrize("zipped", [True, False])
def test_weights_in_both_forms_of_torch_are_taken_and_cut_ones_named(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / "vae.pth"
    torch.save({"a": torch.ones(1000)}, path, _use_new_zipfile_serialization=zipped)
    assert weights_fault(path) is None
    if zipped:  # the other form tells nothing at its end
        path.write_bytes(path.read_bytes()[:3000])
        assert "is it cut?" in str(weights_fault(path))


def test_all_faulty_parts_are_listed(tmp_path: Path) -> None:
    (tmp_path / "wav2vec2").mkdir()
    (tmp_path / "wav2vec2" / "config.json").write_text('{"model_type": "bert"}')
    (tmp_path / "vae.safetensors").write_bytes(b"\xff" * 100)
    parts = {"vae": (tmp_path / "vae.safetensors",), "wav2vec2": (tmp_path / "wav2vec2",), "tokenizer": (tmp_path,)}
    with pytest.raises(ValueError, match=r"vae: .*is it cut\?.*; wav2vec2: .*bert model.*; tokenizer: .*is no folder"):
        check_parts(parts)
