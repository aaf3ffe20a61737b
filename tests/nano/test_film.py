"""The drawn film: the people in it are found, its cut too, and the speaker's mouth is known."""

import numpy as np
import pytest
import torch
from safetensors import safe_open

from diffsynth_omniavatar.media.faces.tracks import find_tracks
from diffsynth_omniavatar.media.scenes import find_cuts
from diffsynth_omniavatar.metrics.sync import correlation
from diffsynth_omniavatar.model.config import CheckpointConfig
from diffsynth_omniavatar.model.files import NANO_V2V
from diffsynth_omniavatar.nano.measure import measure_mouth
from diffsynth_omniavatar.nano.speaker.canvas import SIZE
from diffsynth_omniavatar.nano.speaker.film import draw_film

pytestmark = pytest.mark.one_host("it imports nothing of DiffSynth")


@pytest.fixture(scope="module")
def film():
    return draw_film(1, 24)


def test_the_speaker_s_mouth_is_known_wherever_it_is(film):
    openness, width = measure_mouth(film.speaker_in(film.frames))
    assert correlation(openness, film.speaker.openness) > 0.99 and correlation(width, film.speaker.width) > 0.97
    assert np.ptp(film.squares[: film.cut, 0]) > 60  # somebody walks


def test_cut_and_people_are_found(film):
    frames = torch.from_numpy(film.frames)
    assert find_cuts(frames) == [film.cut]
    with safe_open(NANO_V2V, "pt") as file:
        template = CheckpointConfig.parse(file.metadata()["omniavatar_config"], "V2V").conventions.template
    tracks = find_tracks(frames, cuts=[film.cut])
    assert [track.frames for track in tracks] == [range(12), range(12, 24), range(12, 24)]
    for track in tracks[:2]:  # the speaker's is the larger one
        for face, (left, top, side) in zip(track.faces, film.squares[track.start :], strict=False):
            places = (np.array(face.anchors) - (left, top)) * SIZE / side
            assert face.is_sure and 60 < face.size < 160
            # Where the shipped V2V model has a face in its pictures.
            assert np.abs(places - [(at.real, at.imag) for at in template.anchors]).max() < 5


def test_a_seed_gives_one_film():
    one, again, other = draw_film(2, 2), draw_film(2, 2), draw_film(3, 2)
    assert np.array_equal(one.frames, again.frames) and not np.array_equal(one.frames, other.frames)
