"""Blinks are counted and turns of the head measured where both are known."""

import numpy as np
import pytest
from drawn_faces import face_at
from made_faces import LIDS, face_with, landmarks

from diffsynth_omniavatar.metrics.motion import blink_rate, blinks, eye_aspect, head_speed

pytestmark = pytest.mark.one_host("it imports nothing of DiffSynth")


def test_the_aspect_of_an_eye_is_its_height_by_its_width():
    points = landmarks()
    assert eye_aspect([face_with(points), None]) == pytest.approx([9 / 30, np.nan], nan_ok=True)
    for lids in LIDS:
        for upper, lower in lids:
            points[[upper, lower], 1] = [49, 51]
    assert eye_aspect([face_with(points)]) == pytest.approx([2 / 30])


def test_short_closures_are_blinks_and_long_ones_are_not():
    aspect = np.full(150, 0.3)
    aspect[10:14] = aspect[60:63] = 0.08
    aspect[100:130] = 0.08
    assert blinks(aspect) == [range(10, 14), range(60, 63)]
    assert blink_rate(aspect) == pytest.approx(2 / 6 * 60)
    assert np.isnan(blink_rate(np.full(5, np.nan))) and blinks(np.full(5, np.nan)) == []


def test_the_speed_of_a_head_that_turns_evenly():
    faces = [face_at(0, 0, yaw=0.4 * frame, roll=-0.3 * frame) for frame in range(5)]
    faces[3] = None
    assert head_speed(faces) == pytest.approx([np.nan, 12.5, 12.5, np.nan, np.nan], nan_ok=True)
