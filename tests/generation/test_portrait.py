"""What is wrong with a portrait's face is told; a crop has head and shoulders in the video's shape."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps
from synthetic_clips import portrait

from diffsynth_omniavatar.generation.portrait import crop_portrait, portrait_faults
from diffsynth_omniavatar.media.images import fit_layout, load_image
from diffsynth_omniavatar.model.config import IMAGE_SIZES_720

pytestmark = pytest.mark.one_host("it imports nothing of DiffSynth")

GREY = (120, 120, 120)


def framed(left: int, top: int, right: int, bottom: int, size: int = 128) -> Image.Image:
    """A drawn person whose face fills three fifths of `size`, with grey around."""
    return ImageOps.expand(portrait(size), (left, top, right, bottom), GREY)


def test_a_face_that_fits_has_no_fault() -> None:
    assert portrait_faults(portrait(128), (128, 128)) == []
    assert portrait_faults(framed(64, 64, 64, 64), (256, 256)) == []


def test_no_face_is_told() -> None:
    for picture in (Image.new("RGB", (200, 200), GREY), Image.effect_noise((200, 200), 50)):
        (fault,) = portrait_faults(picture, (400, 720))
        assert fault.startswith("No face is found.")


def test_a_tiny_face_is_told_with_the_pixels_that_it_has() -> None:
    tiny = framed(192, 192, 192, 192)  # half as large in the video
    (fault,) = portrait_faults(tiny, (256, 256))
    assert re.search("the face has 3[789] pixels in the video, wanted 64 or more; @crop_portrait", fault)
    (fault,) = portrait_faults(portrait(64), (720, 720))  # enlarging adds nothing to see
    assert re.search("the face has 3[789] pixels in the picture: give a larger one", fault)


def test_a_crop_is_advised_where_it_helps() -> None:
    person = framed(192, 192, 192, 192)
    (fault,) = portrait_faults(person, (128, 128))
    cropped = crop_portrait(person, (128, 128))
    assert "@crop_portrait" in fault and portrait_faults(cropped, (128, 128), is_cropped=True) == []
    (fault,) = portrait_faults(person, (64, 64))  # such a video has no room for a face of 64 pixels
    assert "wanted 64 or more." in fault
    head = portrait(128).crop((0, 40, 128, 128))  # the picture itself begins below the hair
    (fault,) = portrait_faults(head, (128, 128))
    assert fault.endswith("outside the video of 128x128 pixels.")


def test_a_picture_that_is_turned_is_told() -> None:
    person = portrait(128)
    turns = {90: "on its side: turn the picture to the right", 180: "upside down", 270: "picture to the left"}
    for angle, words in turns.items():
        (fault,) = portrait_faults(person.rotate(angle), (128, 128))
        assert words in fault
    assert portrait_faults(person.rotate(30, fillcolor=GREY), (128, 128)) == []


def test_a_face_that_the_videos_shape_cuts_off_is_told() -> None:
    above = framed(0, 0, 0, 128)  # the middle of a picture twice as high as wide begins at the nose
    (fault,) = portrait_faults(above, (128, 128))
    assert re.fullmatch(r"\d\d% of the face is outside the video of 128x128 pixels; @crop_portrait .*", fault)
    assert portrait_faults(above, (256, 128)) == []


@pytest.mark.parametrize("size", IMAGE_SIZES_720)
def test_a_crop_has_the_videos_shape_and_the_head(size: tuple[int, int]) -> None:
    picture = framed(300, 100, 500, 600)
    cropped = crop_portrait(picture, size)
    (height, width), _ = fit_layout(cropped.height, cropped.width, size)
    assert abs(height - size[0]) <= 2 and abs(width - size[1]) <= 2
    assert "outside" not in " ".join(portrait_faults(cropped, size))
    # The person's picture is whole in it, with room on both sides, and above it the head is not cut.
    inside = (np.asarray(cropped) != GREY).any(2)
    assert inside.any(0).sum() == 128 and inside.any(1).sum() >= 110
    assert min(cropped.size) < 300


def test_a_close_up_keeps_what_fits() -> None:
    picture = portrait(128)
    assert crop_portrait(picture, (128, 128)).tobytes() == picture.tobytes()
    assert crop_portrait(picture, (400, 720)).size == (128, 71)


def test_a_crop_needs_a_face() -> None:
    with pytest.raises(ValueError, match="no face is found for @crop_portrait"):
        crop_portrait(Image.new("RGB", (200, 200), GREY), (400, 720))


def test_a_real_portrait_is_framed(shared_data: Path) -> None:
    picture = load_image(shared_data / "omniavatar_example" / "0000.jpeg")
    assert portrait_faults(picture, (400, 720)) == []
    (fault,) = portrait_faults(picture.rotate(180), (400, 720))
    assert "upside down" in fault
    small = ImageOps.expand(picture.resize((368, 276)), (0, 300, 0, 0), GREY)
    assert [fault for fault in portrait_faults(small, (400, 720)) if "outside" in fault]
    assert not [fault for fault in portrait_faults(crop_portrait(small, (400, 720)), (400, 720)) if "outside" in fault]
