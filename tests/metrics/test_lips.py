"""Mouths by landmarks: distances that place and size do not change, and the loudness of known sounds."""

import numpy as np
import pytest
from made_faces import face_with, landmarks

from diffsynth_omniavatar.metrics.lips import LIPS, eye_distance, landmark_distance, mouth_curves, sound_envelope

pytestmark = pytest.mark.one_host("it imports nothing of DiffSynth")


def test_place_and_size_do_not_change_the_distance_of_landmarks():
    points = landmarks()
    moved = face_with(points * 1.7 + [30, -12])
    assert landmark_distance([face_with(points)], [moved]) == pytest.approx([0], abs=1e-4)


def test_lips_that_move_against_each_other_have_the_distance_of_their_move():
    points = landmarks()
    opened = points.copy()
    half = list(LIPS[:20])
    opened[half, 1] += 6
    # The mean of the lips moves by 3, so each landmark is 3 away, and the eyes are 60 apart.
    assert eye_distance(face_with(points)) == pytest.approx(60)
    assert landmark_distance([face_with(opened)], [face_with(points)]) == pytest.approx([100 * 3 / 60])


def test_where_a_face_is_missing_there_is_no_distance_and_no_mouth():
    face = face_with(landmarks(), openness=0.3, width=0.8)
    assert np.isnan(landmark_distance([face, None], [None, face])).all()
    curves = mouth_curves([face, None])
    np.testing.assert_allclose(curves["openness"], [0.3, np.nan])
    np.testing.assert_allclose(curves["width"], [0.8, np.nan])


def test_loudness_is_the_logarithm_of_the_root_mean_square():
    sound = np.concatenate([np.full(640, 0.1), np.zeros(640), np.tile([1.0, -1.0], 320), np.full(320, 0.5)])
    np.testing.assert_allclose(sound_envelope(sound, 5), [-1, -3, 0, np.log10(0.5 / np.sqrt(2)), -3], atol=1e-9)
    assert len(sound_envelope(sound, 2)) == 2
