"""The shipped weights: the VAE shows the mouth, the denoiser moves it with the sound, and it learns somebody new."""

import numpy as np
import pytest
import torch
from accelerate.commands.launch import launch_command_parser
from safetensors.torch import load_file

from diffsynth_omniavatar.app import cli, demo
from diffsynth_omniavatar.generation.dub import dub
from diffsynth_omniavatar.media.sound import Sound
from diffsynth_omniavatar.media.timeline import SAMPLE_RATE
from diffsynth_omniavatar.media.video import read_frames
from diffsynth_omniavatar.media.writer import VideoWriter
from diffsynth_omniavatar.metrics.picture import drift_at_end
from diffsynth_omniavatar.metrics.sync import best_lag, correlation
from diffsynth_omniavatar.model.files import NANO_FOLDER
from diffsynth_omniavatar.model.small_family import NANO, SmallVAE
from diffsynth_omniavatar.nano.batch import Sampling, Take, generate_batch
from diffsynth_omniavatar.nano.figures import HISS, LONG_SEED
from diffsynth_omniavatar.nano.measure import measure_mouth
from diffsynth_omniavatar.nano.regions import background
from diffsynth_omniavatar.nano.speaker.clips import cut_start, draw_clip
from diffsynth_omniavatar.nano.speaker.film import draw_film
from diffsynth_omniavatar.nano.stage import load_family, take_of, write_video
from diffsynth_omniavatar.nano.vae_result import figures, reconstruct
from diffsynth_omniavatar.nano.validation import validation_loss
from diffsynth_omniavatar.training import run
from diffsynth_omniavatar.training.callbacks import find_latest

pytestmark = [
    pytest.mark.one_host("of the weights; that both hosts compute the same bits is tested elsewhere"),
    pytest.mark.slow,
]

FRAMES, LEAD = 33, 12
SAMPLING = Sampling(steps=3)


@pytest.fixture(scope="module")
def clips():
    """A chunk each of people, voices and words that no training has; they begin in mid-speech."""
    return [
        cut_start(draw_clip(seed, LEAD + FRAMES, split="evaluation", sways=False), LEAD) for seed in (200, 201, 203)
    ]


@pytest.fixture(scope="module")
def i2v():
    return load_family(NANO_FOLDER, "i2v", "cpu")


def openness_r(videos, clips):
    """Correlation of the openness that each video shows with the clip's true one."""
    return [correlation(measure_mouth(v)[0], clip.openness) for v, clip in zip(videos, clips, strict=True)]


def width_r(videos, clips):
    return [correlation(measure_mouth(v)[1], clip.width) for v, clip in zip(videos, clips, strict=True)]


def test_the_vae_shows_the_mouth(clips):
    vae = SmallVAE(**NANO.vae)
    vae.load_state_dict({name: tensor.float() for name, tensor in load_file(NANO_FOLDER / "vae.safetensors").items()})
    frames = np.stack([clip.frames[:9] for clip in clips[:2]])
    result = figures(vae, frames, reconstruct(vae, frames))
    assert result["psnr"] > 31 and result["r_openness_lowest"] > 0.99 and result["r_width"] > 0.95


def test_the_mouth_follows_the_sound_that_is_fed(i2v, clips):
    sounds = [*clips[1:], clips[0]]  # each face speaks what another one said
    takes = [
        Take(prompt=face.prompt, portrait=face.frames[0], waveform=sound.waveform)
        for face, sound in zip(clips, sounds, strict=True)
    ]
    videos = generate_batch(i2v, takes, SAMPLING)
    fed, own = openness_r(videos, sounds), openness_r(videos, clips)
    assert np.mean(fed) > 0.94 and min(fed) > 0.9
    assert np.mean(own) < 0.2
    assert np.mean(width_r(videos, sounds)) > 0.8
    assert all(best_lag(measure_mouth(v)[0], s.openness) == 0 for v, s in zip(videos, sounds, strict=True))


def test_where_nobody_speaks_the_mouth_stays_closed(i2v, clips):
    hiss = HISS * np.random.default_rng(0).standard_normal(len(clips[0].waveform)).astype(np.float32)
    videos = generate_batch(i2v, [take_of(clip, waveform=hiss) for clip in clips[:2]], SAMPLING)
    assert np.mean([measure_mouth(video)[0].mean() for video in videos]) < 0.1


def test_without_sound_the_mouth_keeps_still(i2v, clips):
    muted = generate_batch(i2v, [take_of(clip) for clip in clips[:2]], SAMPLING, mute=True)
    assert max(measure_mouth(video)[0].std() for video in muted) < 0.06  # of the true ones it is 0.2 to 0.3


def test_colours_stay_from_chunk_to_chunk(i2v):
    """Without `match_colours` the first one's wall turns by 2.0 of 255 in 53 frames."""
    clips = [draw_clip(LONG_SEED + index, 100, split="evaluation", sways=False) for index in (1, 2)]
    takes = [take_of(clip, waveform=clip.waveform[: 640 * 53]) for clip in clips]  # two at once take less time than one
    videos = generate_batch(i2v, takes, Sampling(steps=2))
    assert max(drift_at_end(video, background()) for video in videos) < 1.5


@pytest.fixture(scope="module")
def v2v():
    return load_family(NANO_FOLDER, "v2v", "cpu")


def test_dubbing_moves_the_mouth_of_a_video(v2v, clips):
    face, said = clips[0], clips[1]
    video = generate_batch(v2v, [take_of(face, waveform=said.waveform[: 640 * 21], video=face.frames[:21])], SAMPLING)
    openness, width = measure_mouth(video[0])
    assert correlation(openness, said.openness[:21]) > 0.9 and correlation(width, said.width[:21]) > 0.75


def test_dubbing_moves_a_small_mouth_in_a_film_and_no_pixel_around(v2v, tmp_path, monkeypatch):
    """The template of the checkpoint puts the drawn face where its training had it, and back."""
    film = draw_film(1, 26)
    write_video(tmp_path / "film.mp4", film.frames, film.speaker.waveform)
    speech = cut_start(draw_clip(101, LEAD + 26, split="evaluation"), LEAD)
    written, write = [], VideoWriter.write

    def keep(writer, frames, times=None):
        written.append(frames.clone())
        write(writer, frames, times)

    monkeypatch.setattr(VideoWriter, "write", keep)
    sound = Sound(speech.waveform[None], SAMPLE_RATE)
    settings = {"prompt": film.prompt, "steps": 2, "show_progress": False}
    made = dub(v2v, video=tmp_path / "film.mp4", audio=sound, out=tmp_path / "dubbed.mp4", **settings)
    assert made.chunks == 2 and made.dubbed == 26 and not made.untouched
    before, after = read_frames(tmp_path / "film.mp4").numpy(), torch.cat(written).numpy()
    assert correlation(measure_mouth(film.speaker_in(before))[0], speech.openness) < 0.3
    openness, _ = measure_mouth(film.speaker_in(after))
    # A scene's first frame is known, and the mouth takes some more to leave it.
    free = [frame for frame in range(26) if frame % film.cut > 3]
    assert correlation(openness[free], speech.openness[free]) > 0.9
    # The pictures around the mouth are the source's own, the second person's mouth too.
    changed = (before != after).any(axis=-1)
    assert 0.03 < changed.mean() < 0.06
    for place, (left, top, side) in enumerate(film.squares):
        rows, columns = changed[place].nonzero()
        assert rows.min() > top + 0.35 * side and rows.max() < top + 0.97 * side
        assert columns.min() > left and columns.max() < left + side


def test_fine_tuning_lowers_the_loss_on_somebody_new(tmp_path, monkeypatch):
    """Six steps of the demo's own commands, on few and short clips."""
    small = {"FRAMES": 17, "TRAIN_CLIPS": 4, "TRAIN_FRAMES": 17, "SAMPLE_FRAMES": 17, "HELD_OUT_CLIPS": 1}
    for name, value in {**small, "REFERENCES": 2, "BATCH": 2, "LEARNING_RATE": 4e-4}.items():
        monkeypatch.setattr(demo, name, value)
    tuning = demo.Demo(out=tmp_path, family=NANO_FOLDER, steps=None, train_steps=6)
    tuning.work.mkdir()
    _, held_out = demo._draw(tuning)
    before = validation_loss(load_family(NANO_FOLDER, "i2v", "cpu"), held_out, draws=4)
    precompute, train = tuning.commands()
    assert cli.main(precompute[1:]) == 0
    assert run.main(launch_command_parser().parse_args(train[2:]).training_script_args) == 0
    tuned = load_family(NANO_FOLDER, "i2v", "cpu", tuned=find_latest(tuning.work / "run"))
    after = validation_loss(tuned, held_out, draws=4)
    assert after < 0.97 * before
