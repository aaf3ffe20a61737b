"""A live sample is its clip from the start: pictures, sound, reference, mask and size."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from data_clips import RECIPE, SETTINGS, assert_same, draw, make
from PIL import Image
from synthetic_clips import noise, shown, write_levels, write_table

from diffsynth_omniavatar.data.clips import ClipSettings
from diffsynth_omniavatar.data.tables import read_clips
from diffsynth_omniavatar.media.sound import Sound
from diffsynth_omniavatar.media.video import read_frames
from diffsynth_omniavatar.media.writer import VideoWriter
from diffsynth_omniavatar.model.config import Conventions

pytestmark = pytest.mark.one_host("it imports nothing of DiffSynth")


def test_a_live_sample_is_the_clip_from_its_start(levels: Path) -> None:
    dataset = make(read_clips(levels / "clips.csv"), replace(RECIPE, min_frames=5))
    lengths, references = set(), Counter[int]()
    for seed in range(60):
        sample = draw(dataset, seed=seed)
        assert sample.target_video.dtype == torch.uint8
        assert sample.target_video.shape == (1, sample.num_frames, 32, 32, 3)
        assert shown(sample.target_video) == [*range(sample.num_frames)]
        lengths.add(sample.num_frames)
        references[shown(sample.reference_image)[0]] += 1
        assert sample.sources == ["a.mp4"] and sample.prompts == ["A face."]
        (waveform,) = sample.waveforms
        assert waveform.dtype == torch.float32 and len(waveform) == 40 * 640  # of the whole clip
    assert lengths == {*range(5, 38, 4)}
    assert min(references) < 5 and max(references) > 36 and max(references.values()) < 8  # also behind the end
    assert dataset.needed_networks().keys() == {"vae", "speech_encoder", "text_encoder"}
    assert dataset.describe(0) == "a.mp4" and not dataset.load_from_cache


def test_samples_are_functions_of_the_global_generators_alone(levels: Path) -> None:
    clips = read_clips(levels / "clips.csv")
    dataset = make(clips)
    first = draw(dataset, seed=3)
    draw(dataset, seed=4)
    assert_same(first, draw(dataset, seed=3))
    assert_same(first, draw(make(clips), seed=3))
    assert any(draw(dataset, seed=seed).num_frames != first.num_frames for seed in range(4, 9))


def test_a_given_reference_image_takes_the_place_of_random_frames(levels: Path, tmp_path: Path) -> None:
    Image.new("RGB", (64, 64), (250, 10, 10)).save(tmp_path / "face.png")
    row = {"video": str(levels / "a.mp4"), "prompt": "A face.", "reference": "face.png"}
    dataset = make(read_clips(write_table(tmp_path / "clips.csv", [row])))
    for seed in range(3):
        image = draw(dataset, seed=seed).reference_image
        assert image.dtype == torch.uint8 and image.shape == (1, 32, 32, 3)
        assert image[0, 5, 5].tolist() == [250, 10, 10]


def test_pictures_and_sound_of_30_fps_stay_together(tmp_path: Path) -> None:
    """It flashes and sounds in the same tenths of a second; so must the frames and samples of the same numbers."""
    bright = [index // 3 % 2 == 1 for index in range(90)]  # 3 of 30 frames a second: 0.1 s
    loud = np.repeat([index % 2 == 1 for index in range(30)], 1600)
    sound = Sound((0.5 * loud * np.random.default_rng(0).choice([-1, 1], 48000)).astype(np.float32)[None], 16000)
    with VideoWriter(tmp_path / "a.mp4", 32, 32, frame_rate=30, crf=0, sound=sound) as writer:
        level = torch.tensor(bright, dtype=torch.uint8) * 200
        writer.write(level.view(-1, 1, 1, 1).expand(-1, 32, 32, 3))
    dataset = make(
        read_clips(write_table(tmp_path / "clips.csv", [{"video": "a.mp4", "prompt": "Flash."}])),
        replace(RECIPE, dynamic_length=False),
    )
    sample = draw(dataset)
    assert sample.num_frames == 73  # 75 at 25 a second
    pictures = (sample.target_video[0].float().mean((1, 2, 3)) > 100).tolist()
    sounds = [(sample.waveforms[0][640 * frame : 640 * frame + 320].abs().mean() > 0.2).item() for frame in range(73)]
    agreeing = sum(a == b for a, b in zip(pictures, sounds, strict=True))
    assert agreeing >= 70, (pictures, sounds)  # frames that begin within a flash are bright; AAC smears the edges


def test_clips_go_to_the_nearest_trained_size(tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "wide.mp4", 40, 72, sound=noise(1)) as writer:
        writer.write(torch.zeros(25, 40, 72, 3, dtype=torch.uint8))
    write_levels(tmp_path / "square.mp4", 25)
    rows = [{"video": name, "prompt": "x"} for name in ("wide.mp4", "square.mp4")]
    conventions = Conventions(image_sizes=((32, 64), (48, 48)))
    dataset = make(
        read_clips(write_table(tmp_path / "clips.csv", rows)), settings=ClipSettings(conventions=conventions)
    )
    assert draw(dataset, 0).target_video.shape[2:4] == (32, 64)
    assert draw(dataset, 1).target_video.shape[2:4] == (48, 48)


def test_v2v_samples_carry_their_mask_and_a_reference_sequence_that_never_overlaps(tmp_path: Path) -> None:
    write_levels(tmp_path / "a.mp4", 39)
    mask = Image.fromarray(np.kron([[255, 255], [255, 0]], np.ones((16, 16))).astype(np.uint8))
    mask.save(tmp_path / "mask.png")
    rows = [{"video": "a.mp4", "prompt": "x", "mask": "mask.png"}, {"video": "a.mp4", "prompt": "x"}]
    clips = read_clips(write_table(tmp_path / "clips.csv", rows))
    settings = replace(SETTINGS, in_dim=65)
    dataset = make(clips, replace(RECIPE, min_frames=5), settings=settings)
    lengths = set()
    for seed in range(40):
        sample = draw(dataset, seed=seed)
        target, sequence = shown(sample.target_video), shown(sample.reference_video)
        assert len(sequence) == len(target) == sample.num_frames
        assert sequence == [*range(39 - 17, 39 - 17 + len(sequence))] and max(target) < min(sequence)
        lengths.add(len(target))
    assert lengths == {5, 9, 13, 17}  # half of the clip
    assert draw(dataset, 0).mouth_mask == tmp_path / "mask.png" and draw(dataset, 1).mouth_mask is None
    assert draw(make(clips), 0).mouth_mask is None  # I2V
    assert len(make(clips, batch_size=2, settings=replace(SETTINGS, in_dim=49))) == 2  # of two masks, so no batch


def test_frames_are_those_of_the_file(levels: Path) -> None:
    sample = draw(make(read_clips(levels / "clips.csv")), seed=1)
    wanted = read_frames(levels / "a.mp4", 0, sample.num_frames, (32, 32))
    assert torch.equal(sample.target_video[0], wanted)
