"""A face of a clip in memory is cut out, and put back where it was."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from drawn_faces import still, track_at, write_faces
from synthetic_clips import portrait

from diffsynth_omniavatar.generation.face_crops import cut_face, paste_face
from diffsynth_omniavatar.generation.request import RequestError
from diffsynth_omniavatar.media.clip import Clip
from diffsynth_omniavatar.media.faces.align import crop_transforms
from diffsynth_omniavatar.media.faces.template import HEAD
from diffsynth_omniavatar.media.video import read_frames

pytestmark = pytest.mark.one_host("it imports nothing of DiffSynth")


def test_what_is_cut_out_goes_back_into_the_mouth(tmp_path):
    frames = torch.full((12, 96, 160, 3), 90, dtype=torch.uint8)
    clip = Clip(frames, Fraction(25))
    faces = write_faces(tmp_path / "faces.jsonl", still(2, 8, 80, 48))
    crops, places = cut_face(clip, size=(64, 32), detections=faces)
    assert crops.shape == (12, 64, 32, 3) and (crops - 90).abs().max() < 1e-3
    assert torch.equal(paste_face(frames, crops, places), frames)
    assert places.reasons == ("no face",) * 2 + (None,) * 8 + ("no face",) * 2
    lit = paste_face(frames, torch.full_like(crops, 255), places)
    changed = (lit != frames).any(dim=-1)
    assert changed.flatten(1).any(dim=1).tolist() == [reason is None for reason in places.reasons]
    assert (changed.any(dim=0).nonzero() - torch.tensor([48, 80])).abs().max() < 40
    # With a mask of its own the upper half of the crop alone; where the face comes and goes it fades.
    upper = torch.zeros(8, 8)
    upper[:4] = 1
    above = paste_face(frames, torch.full_like(crops, 255), places, upper)
    middle = places.transforms[5] @ torch.tensor([0.5, 0.5, 1.0])
    shown = (above[5] != 90).any(dim=-1)
    assert shown[: int(middle[1])].any() and not shown[int(middle[1]) + 1 :].any()
    assert 90 < lit[2].max() < lit[6].max()


def test_crops_stand_still_where_the_face_is_not_seen(tmp_path):
    frames = torch.arange(50, 170, 10, dtype=torch.uint8).view(-1, 1, 1, 1).expand(12, 96, 160, 3)
    moving = track_at(2, [(60 + 3 * frame, 48) for frame in range(8)])
    faces = write_faces(tmp_path / "faces.jsonl", moving)
    _, places = cut_face(Clip(frames, Fraction(25)), size=(32, 32), template=HEAD, detections=faces)
    assert torch.equal(places.transforms, crop_transforms(moving, HEAD)[[0, 0, *range(8), 7, 7]])


def test_what_does_not_go_together_is_named(tmp_path):
    frames = torch.full((12, 96, 160, 3), 90, dtype=torch.uint8)
    clip = Clip(frames, Fraction(25))
    with pytest.raises(RequestError, match=r"^video: the given clip: shows no face in 12 pictures"):
        cut_face(clip)
    small = write_faces(tmp_path / "small.jsonl", still(0, 12, 80, 48, 24))
    crops, places = cut_face(clip, size=(32, 32), detections=small)
    with pytest.raises(RequestError, match=r"of 12 frames the face is too small in 12\."):
        paste_face(frames, crops, places)
    with pytest.raises(RequestError, match="12 frames, 11 crops and 12 places"):
        paste_face(frames, crops[1:], places)
    with pytest.raises(RequestError, match="face 2 is not there"):
        cut_face(clip, "2", detections=small)


def test_a_clip_on_its_head_is_refused():
    person = torch.from_numpy(np.array(portrait(96)))
    with pytest.raises(RequestError, match=r"^video: the given clip: the face is upside down: .*hflip,vflip"):
        cut_face(Clip(torch.rot90(person, 2)[None], Fraction(25)))


def test_a_real_clip_on_its_side_is_warned_of(shared_data, caplog):
    """A face that lies is found with its landmarks in the right places, at times."""
    frame = read_frames(shared_data / "talking_heads" / "demo3_video.mp4", count=1)[0, ::2, ::2]
    crops, _ = cut_face(Clip(torch.rot90(frame, 3)[None], Fraction(25)))
    (told,) = caplog.messages
    assert told.startswith("warning: ") and "lies on its side: turn the picture to the left" in told and len(crops) == 1
