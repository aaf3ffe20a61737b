"""Squares of faces lie where the landmarks are, and show what lies there."""

import numpy as np
import pytest
import torch
from made_faces import face_with, landmarks

from diffsynth_omniavatar.metrics.crops import cut_squares, face_boxes, sync_boxes

pytestmark = pytest.mark.one_host("it imports nothing of DiffSynth")


def face_around(x, y, half):
    points = landmarks()
    low, high = points.min(axis=0), points.max(axis=0)
    return face_with((points - (low + high) / 2) * 2 * half / (high - low).max() + [x, y])


def test_a_box_is_the_square_around_the_landmarks():
    boxes = face_boxes([face_around(50, 60, 20)] * 3)
    np.testing.assert_allclose(boxes, [[50, 60, 20]] * 3, atol=1e-3)
    np.testing.assert_allclose(sync_boxes(boxes)[0], [50, 68, 28], atol=1e-3)


def test_frames_without_a_face_lie_between_their_neighbours_and_outliers_do_not_count():
    faces = [face_around(40 + frame, 60, 20) for frame in range(30)]
    faces[10] = faces[11] = None
    faces[20] = face_around(500, 5, 90)
    boxes = face_boxes(faces)
    np.testing.assert_allclose(boxes[6:24, 0], 40 + np.arange(6, 24), atol=1.01)
    np.testing.assert_allclose(boxes[10:12, 0], [50, 51], atol=1e-3)
    np.testing.assert_allclose(boxes[:, 2], 20, atol=1e-3)
    with pytest.raises(ValueError, match="no face"):
        face_boxes([None, None])


def test_a_cut_shows_the_pixels_inside_and_the_fill_outside():
    frame = torch.arange(20 * 30 * 3).remainder(251).to(torch.uint8).view(1, 20, 30, 3)
    inside = cut_squares(frame, np.array([[10.0, 8.0, 4.0]]), 8)
    assert torch.equal(inside, frame[:, 4:12, 6:14])
    corner = cut_squares(frame, np.array([[0.0, 0.0, 4.0]]), 8, fill=110)
    assert torch.equal(corner[:, 4:, 4:], frame[:, :4, :4]) and (corner[:, :4] == 110).all()
    assert (cut_squares(frame, np.array([[90.0, 90.0, 4.0]]), 8, fill=7) == 7).all()
    flat = torch.full((1, 20, 30, 3), 40, dtype=torch.uint8)
    assert (cut_squares(flat, np.array([[12.3, 9.6, 5.2]]), 16) == 40).all()
