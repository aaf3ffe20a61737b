"""The small model's speaker: its mouth follows the sound, nothing else does, and pixels tell it."""

import csv
import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

from diffsynth_omniavatar.generation.masks import load_mouth_mask
from diffsynth_omniavatar.media.sound import load_sound, speech_waveform
from diffsynth_omniavatar.media.video import read_frames
from diffsynth_omniavatar.nano.measure import measure_mouth, measure_sway
from diffsynth_omniavatar.nano.speaker import phonemes
from diffsynth_omniavatar.nano.speaker.__main__ import main
from diffsynth_omniavatar.nano.speaker.canvas import SIZE
from diffsynth_omniavatar.nano.speaker.clips import cut_start, draw_clip, write_clips
from diffsynth_omniavatar.nano.speaker.drawing import render
from diffsynth_omniavatar.nano.speaker.identity import draw_identity
from diffsynth_omniavatar.nano.speaker.motion import draw_motion, moved, still
from diffsynth_omniavatar.nano.speaker.phonemes import PHONEMES, Sentence, draw_sentence, mouth_curves, phoneme_labels
from diffsynth_omniavatar.nano.speaker.recording import mouth_of_recording
from diffsynth_omniavatar.nano.speaker.voice import draw_voice, synthesise

pytestmark = pytest.mark.one_host("it imports nothing of DiffSynth")

FRAMES = 61


@pytest.fixture(scope="module")
def clips():
    return [draw_clip(seed, FRAMES, split="evaluation") for seed in range(6)]


def correlation(one, other):
    return float(np.corrcoef(one, other)[0, 1])


def explained(values, wanted):
    """Part of the variance of `wanted` [n] that a linear regression on `values` [n, k] explains."""
    values = np.column_stack([values, np.ones(len(values))])
    rest = wanted - values @ np.linalg.lstsq(values, wanted, rcond=None)[0]
    return 1 - rest.var() / wanted.var()


def blurred(frames, sigma=1.0, noise=3.0):
    """Gaussian blur and noise, as of an autoencoder."""
    kernel = torch.exp(-0.5 * (torch.arange(-4, 5) / sigma) ** 2)
    kernel = (kernel / kernel.sum()).expand(3, 1, -1)
    pixels = torch.from_numpy(frames).permute(0, 3, 1, 2).float()
    for shape, padding in (((3, 1, 9, 1), (0, 0, 4, 4)), ((3, 1, 1, 9), (4, 4, 0, 0))):
        padded = torch.nn.functional.pad(pixels, padding, mode="replicate")
        pixels = torch.nn.functional.conv2d(padded, kernel.reshape(shape), groups=3)
    pixels += noise * torch.randn(pixels.shape, generator=torch.Generator().manual_seed(0))
    return pixels.round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()


def levels(clip):
    """Effective values [F] of the sound beside each frame."""
    return np.sqrt((clip.waveform.reshape(FRAMES, -1) ** 2).mean(axis=1))


def bands(clip):
    """Logarithms of the sound's power in eight bands beside each frame, without its level: [F, 8]."""
    windows = clip.waveform.reshape(FRAMES, -1) * np.hanning(640)
    power = np.abs(np.fft.rfft(windows, axis=1)) ** 2
    edges = np.searchsorted(np.fft.rfftfreq(640, 1 / 16000), [100, 350, 550, 800, 1200, 1700, 2500, 4000, 8000])
    split = np.stack([power[:, a:b].sum(axis=1) for a, b in itertools.pairwise(edges)], axis=1)
    return np.log(split / split.sum(axis=1, keepdims=True) + 1e-4)


# Seeds and splits


def test_a_seed_gives_one_clip():
    one, same, other = (draw_clip(seed, 9, split="train") for seed in (3, 3, 4))
    for name in ("frames", "waveform", "openness", "width", "phonemes"):
        assert np.array_equal(getattr(one, name), getattr(same, name)), name
    assert one.prompt == same.prompt and one.identity == same.identity
    assert not np.array_equal(one.waveform, other.waveform) and one.identity != other.identity


def test_a_clip_has_the_stated_shapes(clips):
    clip = clips[0]
    assert clip.frames.shape == (FRAMES, SIZE, SIZE, 3) and clip.frames.dtype == np.uint8
    assert clip.waveform.shape == (640 * FRAMES,) and clip.waveform.dtype == np.float32
    assert np.abs(clip.waveform).max() <= 0.95
    for curve in (clip.openness, clip.width):
        assert curve.shape == (FRAMES,) and curve.dtype == np.float32 and curve.min() >= 0 and curve.max() <= 1
    assert clip.phonemes.shape == (FRAMES,) and set(clip.phonemes) <= set(range(len(PHONEMES)))


def test_what_is_given_changes_nothing_else():
    drawn, given = draw_clip(5, 9, split="train"), draw_clip(6, 9, split="train")
    clip = draw_clip(5, 9, split="train", identity=given.identity, sways=not drawn.sways)
    assert clip.identity == given.identity and clip.sways != drawn.sways
    assert np.array_equal(clip.waveform, drawn.waveform) and np.array_equal(clip.openness, drawn.openness)


def test_splits_share_no_words_looks_or_voices():
    def drawn(split):
        rng = np.random.default_rng(0)
        identities = [draw_identity(rng, split=split) for _ in range(150)]
        voices = [draw_voice(rng, split=split) for _ in range(150)]
        words = {repr(phonemes._draw_word(rng, split)) for _ in range(150)}
        tones = {int(np.log(voice.pitch / 90) / np.log(3) * 20) for voice in voices}
        return {identity.look for identity in identities}, words, tones

    for train, evaluation in zip(drawn("train"), drawn("evaluation"), strict=True):
        assert train and evaluation and not train & evaluation


def test_bad_requests_say_what_is_wanted():
    for seed, frames, split in ((0, 0, "train"), (-1, 5, "train"), (0, 5, "test")):
        with pytest.raises(ValueError, match="wanted a seed"):
            draw_clip(seed, frames, split=split)
    with pytest.raises(ValueError, match="to_bytes"):
        measure_mouth(np.zeros((2, SIZE, SIZE, 3), np.float32))


# Sound and mouth


def test_loudness_does_not_tell_the_mouth_but_the_spectrum_does(clips):
    wanted = np.concatenate([clip.openness for clip in clips])
    width = np.concatenate([clip.width for clip in clips])
    loud = np.concatenate([levels(clip) / levels(clip).max() for clip in clips])
    spectra = np.concatenate([bands(clip) for clip in clips])
    assert abs(correlation(loud, wanted)) < 0.7
    assert explained(loud[:, None], wanted) < 0.35 < 0.5 < explained(spectra, wanted)
    assert explained(loud[:, None], width) < 0.1 < 0.25 < explained(spectra, width)


def test_phonemes_look_the_same_in_all_voices():
    rng = np.random.default_rng(0)
    sentence = draw_sentence(rng, 2.0, split="train")
    high, low = (draw_voice(rng, split="train") for _ in range(2))
    sounds = [synthesise(sentence, voice, np.random.default_rng(1), 32000) for voice in (high, low)]
    assert abs(correlation(*sounds)) < 0.5
    openness, width = mouth_curves(sentence, 50)
    labels = phoneme_labels(sentence, 50)
    targets = np.array([(PHONEMES[label].openness, PHONEMES[label].width) for label in labels])
    assert correlation(openness, targets[:, 0]) > 0.8 and correlation(width, targets[:, 1]) > 0.8


def test_the_mouth_is_where_the_sound_is():
    """One open vowel between pauses: sound and openness have their middle at the same time."""
    sentence = Sentence(np.array([0, 1, 0]), np.array([0.7, 0.3, 1.0]), np.ones(3))
    voice = replace(draw_voice(np.random.default_rng(0), split="train"), hiss=0.0)
    sound = synthesise(sentence, voice, np.random.default_rng(1), 32000)
    power = sound.astype(float) ** 2
    heard = (power * (np.arange(32000) + 0.5)).sum() / power.sum() / 16000
    openness, _ = mouth_curves(sentence, 50)
    seen = (openness * (np.arange(50) + 0.5)).sum() / openness.sum() / 25
    assert seen == pytest.approx(0.85, abs=1e-3)
    assert heard == pytest.approx(0.85, abs=0.02)


def test_silence_closes_the_mouth(clips):
    pause = Sentence(np.array([0]), np.array([9.0]), np.array([0.0]))
    openness, width = mouth_curves(pause, 5)
    assert not openness.any() and (width == 0.5).all()
    seen, _ = measure_mouth(render(clips[0].identity, openness, width, still(5)))
    assert np.abs(seen).max() < 0.03
    for curve in mouth_of_recording(np.zeros(3200, np.float32)):
        assert curve.shape == (5,)
    assert not mouth_of_recording(np.zeros(3200, np.float32))[0].any()


def test_a_recording_drives_the_mouth_roughly(clips):
    found = [mouth_of_recording(clip.waveform) for clip in clips]
    assert correlation(np.concatenate([o for o, _ in found]), np.concatenate([c.openness for c in clips])) > 0.75
    assert correlation(np.concatenate([w for _, w in found]), np.concatenate([c.width for c in clips])) > 0.6


def test_head_and_eyes_know_nothing_of_the_sound(clips):
    """The head moves alike to any sound, and the mouth is the same however the head moves."""
    clip = clips[1]
    rng = np.random.default_rng(0)
    moved = [render(clip.identity, clip.openness, clip.width, draw_motion(rng, FRAMES, sways=s)) for s in (0, 1)]
    (still, _), (swaying, _) = (measure_mouth(frames) for frames in moved)
    assert np.abs(still - swaying).max() < 0.05
    upper = slice(0, SIZE // 2)
    closed = render(clip.identity, 0 * clip.openness, 0 * clip.width, clip.motion)
    assert np.array_equal(closed[:, upper], clip.frames[:, upper])


# Measuring


def test_pixels_tell_the_mouth(clips):
    for clip in clips:
        for frames, least in ((clip.frames, 0.98), (blurred(clip.frames), 0.95)):
            openness, width = measure_mouth(frames)
            assert correlation(openness, clip.openness) > least
            assert correlation(width, clip.width) > least
            assert np.abs(openness - clip.openness).max() < 0.1
            assert np.abs(width - clip.width).max() < 0.2


def test_a_picture_without_lips_has_no_mouth():
    grey = np.full((2, SIZE, SIZE, 3), 128, np.uint8)
    assert np.isnan(measure_mouth(grey)).all()
    assert measure_sway(grey) == 0


def test_the_prompt_tells_how_the_head_moves():
    for seed in range(6):
        for sways in (False, True):
            clip = draw_clip(seed, 33, split="evaluation", sways=sways)
            assert ("sways from side to side" in clip.prompt) == sways
            assert ("keeps the head still" in clip.prompt) != sways
            for frames in (clip.frames, blurred(clip.frames)):
                travel = measure_sway(frames)
                assert travel > 6 if sways else travel < 3, (seed, sways, travel)
            assert travel == pytest.approx(np.ptp(clip.motion.x), abs=2)


def test_what_speech_changes_lies_inside_the_mouth_mask():
    """Wherever the head may be, lips and chin move only where the V2V mask has the picture regenerated."""
    kept = load_mouth_mask(None, SIZE, SIZE)[0].numpy() == 1
    rng = np.random.default_rng(0)
    openness, width = np.array([0, 1, 1, 0.5], np.float32), np.array([0.5, 0, 1, 1], np.float32)
    corners = [(x, y, np.sign(x) * 0.045) for x in (-9.1, 9.1) for y in (-1.4, 1.4)]
    for identity in (draw_identity(rng, split="train") for _ in range(8)):
        for x, y, roll in corners:
            frames = render(identity, openness, width, moved(4, x=x, y=y, roll=roll)).astype(int)
            changed = (frames != frames[:1]).any(axis=(0, 3))
            assert changed.any() and not (changed & kept).any()


def test_the_corners_of_that_test_are_as_far_as_the_head_goes():
    rng = np.random.default_rng(0)
    motions = [draw_motion(rng, 100, sways=True) for _ in range(100)]
    for name, limit in (("x", 9.1), ("y", 1.4), ("roll", 0.045)):
        assert max(np.abs(getattr(motion, name)).max() for motion in motions) <= limit


# Files


def test_written_clips_are_read_back_in_step(tmp_path):
    table = write_clips(tmp_path / "data", range(2, 4), 33, split="train")
    with table.open(newline="") as content:
        rows = list(csv.DictReader(content))
    assert [row["video"] for row in rows] == ["train_000002.mp4", "train_000003.mp4"]
    for seed, row in zip((2, 3), rows, strict=True):
        clip = draw_clip(seed, 33, split="train")
        path = table.parent / row["video"]
        assert row["prompt"] == clip.prompt
        frames = read_frames(path).numpy()
        assert frames.shape == clip.frames.shape
        assert np.abs(frames.astype(int) - clip.frames).mean() < 3
        openness, width = measure_mouth(frames)
        assert correlation(openness, clip.openness) > 0.98 and correlation(width, clip.width) > 0.95
        sound = speech_waveform(load_sound(path)).numpy()
        assert len(sound) == len(clip.waveform)
        lags = range(-160, 161, 8)
        kept = slice(160, -160)
        match = [correlation(np.roll(sound, lag)[kept], clip.waveform[kept]) for lag in lags]
        assert lags[int(np.argmax(match))] == 0 and max(match) > 0.9
        with np.load(path.with_suffix(".npz")) as truth:
            for name in ("openness", "width", "phonemes"):
                assert np.array_equal(truth[name], getattr(clip, name))


def test_what_is_spoken_before_a_clip_is_cut_in_picture_and_sound(tmp_path):
    whole = draw_clip(3, 60, split="train")
    cut = cut_start(whole, 20)
    assert np.array_equal(cut.frames, whole.frames[20:]) and np.array_equal(cut.openness, whole.openness[20:])
    assert len(cut.waveform) == 640 * 40 and np.array_equal(cut.waveform, whole.waveform[20 * 640 :])
    assert np.array_equal(render(cut.identity, cut.openness, cut.width, cut.motion), cut.frames)
    table = write_clips(tmp_path, range(8), 9, split="train", lead=40)
    starts = [np.load(path)["phonemes"][0] for path in sorted(table.parent.glob("*.npz"))]
    assert any(starts)  # without a lead all begin with a pause, which is 0


def test_in_silent_clips_nobody_speaks(tmp_path):
    silent = draw_clip(4, 30, split="train", speaks=False)
    speaking = draw_clip(4, 30, split="train")
    assert not silent.openness.any() and (silent.phonemes == 0).all()
    assert 0 < np.abs(silent.waveform).max() < 0.01 < np.abs(speaking.waveform).max()
    assert silent.prompt == speaking.prompt and np.array_equal(silent.motion.x, speaking.motion.x)
    table = write_clips(tmp_path, range(12), 3, split="train", lead=40, silent=0.5)
    speaks = [np.load(path)["openness"].any() for path in sorted(table.parent.glob("*.npz"))]
    assert 0 < sum(speaks) < 12
    table = write_clips(tmp_path / "none", range(4), 3, split="train", silent=1.0)
    assert not any(np.load(path)["openness"].any() for path in table.parent.glob("*.npz"))


def test_the_command_line_writes_a_data_set(tmp_path, capsys):
    given = ["--clips", "1", "--frames", "5", "--seed", "9", "--split", "evaluation", "--workers", "1"]
    main([str(tmp_path), *given])
    assert "metadata.csv" in capsys.readouterr().out
    assert read_frames(tmp_path / "evaluation_000009.mp4").shape == (5, SIZE, SIZE, 3)
