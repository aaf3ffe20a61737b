"""Pictures come in upright, as RGB, in the sizes that upstream chooses; bad files are refused by name."""

import contextlib
import json
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from media_files import QUADRANTS, gamma, icc_profile, ink_profile, named_error, rgb_profile, xyz
from PIL import EpsImagePlugin, Image, ImageCms
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


P3_COLUMNS = ((0.51512, 0.24120, -0.00105), (0.29198, 0.69225, 0.04189), (0.15710, 0.06657, 0.78407))
"""XYZ of Display P3's red, green and blue by the white D50 (its ICC profile)."""

SRGB_COLUMNS = ((0.43607, 0.22249, 0.01392), (0.38515, 0.71687, 0.09708), (0.14307, 0.06061, 0.71410))


def in_p3(colour: tuple[int, int, int]) -> tuple[int, ...]:
    """An sRGB colour as Display P3 with a gamma of 2.2 stores it."""
    level = np.array(colour) / 255
    light = np.where(level <= 0.04045, level / 12.92, ((level + 0.055) / 1.055) ** 2.4)
    light = np.linalg.solve(np.array(P3_COLUMNS).T, np.array(SRGB_COLUMNS).T @ light)
    return tuple((255 * light ** (1 / 2.2)).round().astype(int).tolist())


@pytest.mark.parametrize("ending", ["png", "jpg", "webp", "tif"])
@pytest.mark.parametrize("colour", [(230, 180, 150), (200, 40, 40), (40, 200, 40), (128, 128, 128)])
def test_colour_profiles_become_srgb(tmp_path: Path, ending: str, colour: tuple[int, int, int]) -> None:
    path, profile = tmp_path / f"photo.{ending}", rgb_profile(P3_COLUMNS, 2.2)
    options = {"quality": 100} if ending in ("jpg", "webp") else {}
    Image.new("RGB", (16, 16), in_p3(colour)).save(path, icc_profile=profile, **options)
    with Image.open(path) as opened:
        for source in (path, opened):
            loaded = load_image(source)
            assert loaded.mode == "RGB" and "icc_profile" not in loaded.info
            assert np.abs(np.asarray(loaded).astype(int) - colour).max() <= 3
    assert np.array_equal(load_image(load_image(path)), load_image(path))


def test_every_kind_of_image_has_its_profile_converted(tmp_path: Path) -> None:
    p3, grey, ink = rgb_profile(P3_COLUMNS, 2.2), icc_profile(b"GRAY", b"XYZ ", {b"kTRC": gamma(1.0)}), ink_profile(50)
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, *in_p3((40, 200, 40))])
    linear = round(255 * 0.2159)  # sRGB's level 128
    for name, image, profile, wanted in (
        ("palette.png", palette, p3, (40, 200, 40)),
        ("clear.png", Image.new("RGBA", (4, 4), (*in_p3((40, 200, 40)), 51)), p3, (212, 244, 212)),
        ("grey.png", Image.new("L", (4, 4), linear), grey, (128, 128, 128)),
        ("deep.png", Image.fromarray(np.full((4, 4), linear * 257, np.uint16)), grey, (128, 128, 128)),
        ("as_rgb.png", Image.new("RGB", (4, 4), (linear,) * 3), grey, (128, 128, 128)),
        ("screen.png", Image.new("L", (4, 4), in_p3((128, 128, 128))[0]), p3, (128, 128, 128)),
        ("ink.tif", Image.new("CMYK", (4, 4), (0, 255, 255, 0)), ink, (119, 119, 119)),
        ("ink.jpg", Image.new("CMYK", (4, 4), (0, 255, 255, 0)), ink, (119, 119, 119)),
    ):
        image.save(tmp_path / name, icc_profile=profile)
        assert np.abs(np.asarray(load_image(tmp_path / name)).astype(int) - wanted).max() <= 3, name


def test_srgb_with_a_profile_stays_as_it_is(tmp_path: Path) -> None:
    levels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.fromarray(levels).save(tmp_path / "photo.png", icc_profile=profile)
    assert np.abs(np.asarray(load_image(tmp_path / "photo.png")).astype(int) - levels).max() <= 1


def test_white_stays_white_whatever_white_a_profile_names(tmp_path: Path) -> None:
    columns = zip((b"r", b"g", b"b"), P3_COLUMNS, strict=True)
    tags = {name + b"XYZ": xyz(*column) for name, column in columns}
    tags |= {name: gamma(2.2) for name in (b"rTRC", b"gTRC", b"bTRC")} | {b"wtpt": xyz(0.9505, 1, 1.0891)}  # D65
    profile = icc_profile(b"RGB ", b"XYZ ", tags)
    Image.new("RGB", (4, 4), "white").save(tmp_path / "photo.png", icc_profile=profile)
    assert np.asarray(load_image(tmp_path / "photo.png")).min() >= 254


def test_profiles_that_do_not_fit_are_refused_by_name(tmp_path: Path) -> None:
    path, colours = tmp_path / "photo.png", Image.new("RGB", (4, 4), (9, 99, 199))
    for profile, words in (
        (ink_profile(50), "CMYK"),
        (icc_profile(b"GRAY", b"XYZ ", {b"kTRC": gamma(1.0)}), "GRAY"),
        (b"no profile", "damaged colour profile"),
        (rgb_profile(P3_COLUMNS, 2.2)[:300], "damaged colour profile"),
    ):
        colours.save(path, icc_profile=profile)
        with named_error(path, words, "sRGB"):
            load_image(path)
    # EXIF's directories point at each other: image, photo, interoperability.
    adobe = b"Exif\0\0II*\0" + struct.pack("<I", 8) + struct.pack("<3HIII", 1, 0x8769, 4, 1, 26, 0)
    adobe += struct.pack("<3HIII", 1, 0xA005, 4, 1, 44, 0) + struct.pack("<3HI4sI", 1, 1, 2, 4, b"R03\0", 0)
    colours.save(tmp_path / "adobe.jpg", exif=adobe)
    with named_error(tmp_path / "adobe.jpg", "Adobe RGB", "sRGB"):
        load_image(tmp_path / "adobe.jpg")


def with_chunk(path: Path, name: bytes, data: bytes) -> None:
    """Put a chunk into a PNG file, behind its header."""
    whole = path.read_bytes()
    chunk = struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
    path.write_bytes(whole[:33] + chunk + whole[33:])


@pytest.mark.parametrize(("gamma", "wanted"), [(45455, 128), (100_000, 188), (55_556, 146), (0, 128)])
@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
def test_the_gamma_of_a_png_file_becomes_srgbs(tmp_path: Path, gamma: int, wanted: int, mode: str) -> None:
    path = tmp_path / "photo.png"
    Image.new("RGB", (4, 4), (128, 128, 128)).convert(mode).save(path)
    with_chunk(path, b"gAMA", struct.pack(">I", gamma))
    with Image.open(path) as opened:
        for source in (path, opened, load_image(path)):
            assert load_image(source).getpixel((0, 0)) == (wanted,) * 3
    with_chunk(path, b"sRGB", b"\0")  # takes the place of the gamma
    assert load_image(path).getpixel((0, 0)) == (128, 128, 128)


SRGB_PLACES = (31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000)


def test_other_colours_without_a_profile_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "photo.png"
    for name, data, words in (
        (b"cHRM", struct.pack(">8I", *SRGB_PLACES[:4], 21000, 71000, 15000, 6000), "other primaries"),
        (b"cICP", bytes([9, 16, 0, 1]), "primaries 9, transfer 16"),
        (b"cICP", bytes([12, 13, 0, 1]), "primaries 12, transfer 13"),
        (b"cICP", bytes([1, 13, 0, 1]), ""),
        (b"cHRM", struct.pack(">8I", *SRGB_PLACES), ""),
    ):
        Image.new("RGB", (4, 4), (9, 99, 199)).save(path)
        with_chunk(path, name, data)
        if words:
            with named_error(path, words, "save it in sRGB"):
                load_image(path)
        else:
            assert load_image(path).getpixel((0, 0)) == (9, 99, 199)
    path = tmp_path / "photo.avif"
    Image.new("RGB", (16, 16), (9, 99, 199)).save(path)
    load_image(path)
    path.write_bytes(path.read_bytes().replace(b"colrnclx\0\1\0\x0d", b"colrnclx\0\x09\0\x10"))
    with named_error(path, "primaries 9, transfer 16", "save it in sRGB"):
        load_image(path)


def test_only_named_formats_are_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_program(*arguments: object, **options: object) -> None:
        raise AssertionError("PostScript was given to a program")

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", no_program)
    Image.new("RGB", (4, 4)).save(tmp_path / "page.eps")
    (tmp_path / "page.eps").rename(tmp_path / "photo.png")
    with named_error(tmp_path / "photo.png", "none of PNG, JPEG"):
        load_image(tmp_path / "photo.png")
    # By their content, whatever they are called.
    Image.new("RGB", (4, 4), "red").save(tmp_path / "red.png", "JPEG")
    assert np.asarray(load_image(tmp_path / "red.png"))[0, 0, 0] > 250


@pytest.mark.parametrize("limit", [63, 20])
def test_pictures_with_too_many_pixels_are_refused(tmp_path: Path, limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "photo.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with named_error(tmp_path / "photo.png", "too many pixels", str(limit)):
        load_image(tmp_path / "photo.png")


@pytest.mark.parametrize("ending", ["png", "jpg", "webp", "bmp", "gif", "tif", "ppm"])
def test_damaged_pictures_are_refused_by_name_or_read(tmp_path: Path, ending: str) -> None:
    random = np.random.default_rng(0)
    path = tmp_path / f"photo.{ending}"
    Image.fromarray(random.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(path)
    whole = path.read_bytes()
    for _ in range(100):
        data = bytearray(whole[: random.integers(1, len(whole))] if random.random() < 0.5 else whole)
        for place in random.integers(0, min(len(data), 200), 4):
            data[place] = random.integers(0, 256)
        path.write_bytes(data)
        with warnings.catch_warnings(), contextlib.suppress(ValueError):
            warnings.simplefilter("ignore")  # of Pillow, about damaged tags
            load_image(path)


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
