"""Prepared tensors are read and cut; what is not prepared is live."""

from dataclasses import replace
from pathlib import Path

import pytest
import soundfile
import torch
from data_clips import RECIPE, SETTINGS, TOKENS, C, D, draw, fill, make, numbered
from synthetic_clips import shown, write_prepared, write_table

from diffsynth_omniavatar.data.scan import scan_clips
from diffsynth_omniavatar.data.tables import read_clips
from diffsynth_omniavatar.model.config import Conventions

pytestmark = pytest.mark.one_host("it imports nothing of DiffSynth")


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    """The list of two prepared directories with all tensors."""
    for name in "ab":
        fill(write_prepared(tmp_path / name))
    torch.save(numbered(TOKENS, D), tmp_path / "neg_text_emb.pt")
    (tmp_path / "list.txt").write_text(f"a\n\n{tmp_path / 'b'}\n")
    return tmp_path / "list.txt"


V2V = replace(SETTINGS, in_dim=49, audio_dim=C, text_dim=D)


def test_prepared_tensors_are_read_and_cut(prepared: Path) -> None:
    dataset = make(read_clips(prepared), settings=replace(V2V, in_dim=65), batch_size=2)
    for seed in range(4):
        sample = draw(dataset, seed=seed)
        count = (sample.num_frames + 3) // 4
        latents = numbered(16, 6, 4, 4)[:, :count]
        assert torch.equal(sample.input_latents, torch.stack([latents] * 2))
        assert torch.equal(sample.reference_latents, torch.stack([latents[:, :1]] * 2))
        assert torch.equal(sample.masked_latents, torch.stack([latents + 1] * 2))
        assert torch.equal(sample.reference_sequence_latents, torch.stack([latents + 5] * 2))
        features = numbered(30, C, dtype=torch.float32)[: sample.num_frames]
        assert torch.equal(sample.audio_features, torch.stack([features] * 2))
        assert torch.equal(sample.context, numbered(1, TOKENS, D).expand(2, -1, -1))
        assert torch.equal(sample.empty_context, numbered(TOKENS, D)[None])
        live = ("target_video", "waveforms", "prompts", "reference_image", "reference_video", "mouth_mask_latents")
        assert all(getattr(sample, name) is None for name in live)
    assert {*dataset.needed_networks()} == {"speech_encoder"}  # for the features of silence
    no_audio_dropout = replace(RECIPE, audio_drop_prob=0.0)
    assert make(read_clips(prepared), no_audio_dropout, settings=V2V).needed_networks() == {}


def test_the_first_frame_decides_which_latents_are_taken(prepared: Path) -> None:
    masked = replace(V2V, conventions=Conventions(first_frame="masked"))
    sample = draw(make(read_clips(prepared), settings=masked))
    assert torch.equal(sample.masked_latents[0], numbered(16, 6, 4, 4)[:, : sample.masked_latents.shape[2]] + 2)
    for name in "ab":
        (prepared.parent / name / "vae_latents.pt").unlink()
    with pytest.raises(ValueError, match=r"vae_latents_mask_all\.pt is there, but first_frame is 'known'"):
        make(read_clips(prepared), settings=V2V)
    i2v = draw(make(read_clips(prepared), settings=replace(V2V, in_dim=33)))  # both have the same input latents
    assert i2v.input_latents is not None and i2v.masked_latents is None and i2v.mouth_mask is None


@pytest.mark.parametrize("form", ["batched", "plain", "dict"])
def test_text_embeddings_in_every_form(prepared: Path, form: str) -> None:
    text = numbered(1, TOKENS, D, dtype=torch.float32) * 3
    saved = {"batched": text, "plain": text[0], "dict": {"prompt_emb": text, "mask": torch.ones(3)}}[form]
    torch.save(saved, prepared.parent / "a" / "text_emb.pt")
    torch.save(saved, prepared.parent / "neg_text_emb.pt")
    sample = draw(make(read_clips(prepared), settings=V2V))
    assert torch.equal(sample.context, text) and torch.equal(sample.empty_context, text)


def test_a_table_of_directories_is_a_list_with_prompts(prepared: Path) -> None:
    for name in "ab":
        (prepared.parent / name / "text_emb.pt").unlink()
    rows = [{"video": "a", "prompt": "From the table."}, {"video": "b"}]
    dataset = make(read_clips(write_table(prepared.parent / "t.csv", rows)), settings=V2V)
    assert draw(dataset, 0).prompts == ["From the table."] and draw(dataset, 1).prompts == ["A person talks."]
    assert draw(dataset, 0).context is None and draw(dataset, 0).input_latents is not None
    (prepared.parent / "b" / "prompt.txt").unlink()
    assert [fault.reason for fault in scan_clips(dataset.clips, V2V, RECIPE).faults] == ["the prompt is empty"]


def test_what_is_not_prepared_is_live(tmp_path: Path) -> None:
    folder = write_prepared(tmp_path / "a", frames=30)
    (tmp_path / "list.txt").write_text("a\n")
    sample = draw(make(read_clips(tmp_path / "list.txt"), settings=V2V))
    assert shown(sample.target_video) == [*range(sample.num_frames)] and sample.prompts == ["A person talks."]
    heard, rate = soundfile.read(folder / "audio.wav", dtype="float32")
    assert rate == 16000 and torch.equal(sample.waveforms[0], torch.from_numpy(heard))
    fill(folder)
    (folder / "audio_emb_omniavatar.pt").unlink()
    sample = draw(make(read_clips(tmp_path / "list.txt"), settings=V2V))
    assert sample.target_video is None and sample.input_latents is not None and sample.waveforms is not None


def test_a_prepared_reference_sequence_that_overlaps_shortens_the_sample(prepared: Path) -> None:
    settings = replace(V2V, in_dim=65)
    for start, longest in ((81, 21), (19, 17), (12, None), (0, None)):
        content = {"ref_sequence_latents": numbered(16, 6, 4, 4), "metadata": {"ref_start": start}}
        torch.save(content, prepared.parent / "a" / "ref_latents.pt")
        facts = scan_clips(read_clips(prepared), settings, RECIPE).facts[0]
        assert (None if facts is None else facts.longest) == longest


def test_audio_that_ends_early_shortens_the_sample(prepared: Path) -> None:
    torch.save({"audio_emb": numbered(19, C)}, prepared.parent / "a" / "audio_emb_omniavatar.pt")
    assert [facts.longest for facts in scan_clips(read_clips(prepared), V2V, RECIPE).facts] == [17, 21]
