"""Pictures come in upright, as RGB, in the sizes that upstream chooses; bad files are refused by name."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from media_files import QUADRANTS, named_error
from PIL import Image
from safetensors.torch import load_file

from diffsynth_omniavatar.media.images import (
    fit_image,
    fit_layout,
    image_to_tensor,
    load_image,
    match_size,
    tensor_to_image,
    to_bytes,
)
from diffsynth_omniavatar.model import config

pytestmark = pytest.mark.one_host("it imports nothing of DiffSynth")

STORED_AS = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


@pytest.mark.parametrize("orientation", STORED_AS)
def test_images_stand_upright(tmp_path: Path, orientation: int) -> None:
    upright = Image.fromarray(QUADRANTS.astype(np.uint8))
    turn = STORED_AS[orientation]
    stored = upright if turn is None else upright.transpose(turn)
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "photo.png", exif=exif)
    assert np.array_equal(load_image(tmp_path / "photo.png"), upright)


def palette_image() -> Image.Image:
    image = Image.new("P", (4, 4), 1)
    image.putpalette([9, 9, 9, 200, 100, 50])
    return image


def see_through_palette() -> Image.Image:
    image = palette_image()
    image.info["transparency"] = 1
    return image


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.new("CMYK", (4, 4), (0, 255, 255, 0)), (255, 0, 0)),
        (Image.new("L", (4, 4), 77), (77, 77, 77)),
        (Image.new("1", (4, 4), 1), (255, 255, 255)),
        (Image.fromarray(np.full((4, 4), 30_000, np.uint16)), (117, 117, 117)),
        (Image.fromarray(np.full((4, 4), 65_535, np.int32)), (255, 255, 255)),
        (palette_image(), (200, 100, 50)),
        (see_through_palette(), (255, 255, 255)),
        (Image.new("RGBA", (4, 4), (255, 0, 0, 0)), (255, 255, 255)),
        (Image.new("RGBA", (4, 4), (255, 0, 0, 51)), (255, 204, 204)),
        (Image.new("LA", (4, 4), (0, 51)), (204, 204, 204)),
    ],
    ids=lambda value: value.mode if isinstance(value, Image.Image) else "",
)
def test_every_kind_of_image_becomes_rgb(tmp_path: Path, image: Image.Image, expected: tuple[int, int, int]) -> None:
    path = tmp_path / ("image.tif" if image.mode in ("CMYK", "I") else "image.png")
    image.save(path)
    for source in (image, path, str(path)):
        loaded = load_image(source)
        assert loaded.mode == "RGB"
        assert loaded.getcolors() == [(16, expected)]


def test_bad_images_are_refused_by_name(tmp_path: Path) -> None:
    text, cut, thin = (tmp_path / name for name in ("text.png", "cut.png", "thin.png"))
    text.write_text("no picture")
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(cut)
    cut.write_bytes(cut.read_bytes()[:2000])
    Image.new("RGB", (30, 1)).save(thin)
    for path, words in ((text, "cannot be read"), (cut, "cannot be read"), (thin, "1x30")):
        with named_error(path, words):
            load_image(path)
    with named_error(tmp_path / "absent.png", "cannot be read"):
        load_image(tmp_path / "absent.png")
    with pytest.raises(ValueError, match="floats"):
        load_image(Image.new("F", (4, 4)))
    with pytest.raises(ValueError, match="grey levels"):
        load_image(Image.fromarray(np.full((4, 4), 70_000, np.int32)))


def test_images_and_tensors_are_inverse() -> None:
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    image = Image.fromarray(np.stack([levels, levels[::-1], levels.T], axis=-1))
    tensor = image_to_tensor(image)
    assert tensor.shape == (3, 16, 16)
    assert (tensor.min().item(), tensor.max().item()) == (-1.0, 1.0)
    assert np.array_equal(tensor_to_image(tensor), image)
    assert to_bytes(torch.tensor([-1.5, 1.5])).tolist() == [0, 255]


def test_sizes_equal_upstream(goldens: Path) -> None:
    recorded = json.loads((goldens / "resize.json").read_text())
    assert [list(size) for size in config.IMAGE_SIZES_720] == recorded["image_sizes_720"]
    assert [list(size) for size in config.IMAGE_SIZES_1280] == recorded["image_sizes_1280"]
    for case in recorded["cases"]:
        for name, sizes in (("720", config.IMAGE_SIZES_720), ("1280", config.IMAGE_SIZES_1280)):
            size = match_size(case["h"], case["w"], sizes)
            scaled, padding = fit_layout(case["h"], case["w"], size)
            got = {"size": list(size), "scaled": list(scaled), "pad_left_right_top_bottom": list(padding)}
            assert got == case[name], (case["h"], case["w"])


def test_fitted_images_equal_upstream(goldens: Path) -> None:
    tensors = load_file(goldens / "resize.safetensors")
    image = tensors.pop("in.image") * 2 - 1
    for name, expected in tensors.items():
        size = tuple(map(int, name.removeprefix("out.").split("x")))
        # Upstream scales in [0, 1]; the same sums in [-1, 1] round differently.
        torch.testing.assert_close(fit_image(image, size), expected * 2 - 1, rtol=0, atol=2e-5)


def test_fit_image_pads_with_black_and_takes_any_leading_dimensions() -> None:
    white = torch.ones(2, 5, 3, 161, 291)
    fitted = fit_image(white, (400, 720))
    assert fitted.shape == (2, 5, 3, 400, 720)
    assert fitted[..., -1, :].unique().tolist() == [-1.0]
    torch.testing.assert_close(fitted[..., :-1, :], torch.ones(2, 5, 3, 399, 720))
    with pytest.raises(ValueError, match="to_unit_range"):
        fit_image(white.byte(), (400, 720))
