"""Image files of every awkward kind to RGB pictures, or to an error that names them."""

import io
import sys
import time
from pathlib import Path

import numpy as np
import pillow_heif
import pytest
from PIL import Image

from qwen_vqa.plugin.errors import UserError
from qwen_vqa.plugin.images.image_limits import ImageError, ImageLimits
from qwen_vqa.plugin.images.image_loader import load_image, to_rgb

IMAGES = Path(__file__).parents[2] / "images"


def test_exif_orientation_is_applied():
    # Pillow's hopper_orientation_6 is hopper turned, with the EXIF tag that turns it back.
    upright, turned = (np.asarray(load_image(IMAGES / name)) for name in ("hopper.jpg", "hopper_orientation_6.jpg"))
    assert np.abs(upright.astype(int) - turned).mean() < 8  # two JPEG encodings
    unturned = np.asarray(Image.open(IMAGES / "hopper_orientation_6.jpg"))
    assert np.abs(upright.astype(int) - unturned).mean() > 20


def test_sixteen_bits_are_scaled_not_clipped():
    grey = np.asarray(load_image(IMAGES / "hopper_16bit.pgm"))
    assert grey.shape == (128, 128, 3)
    assert 50 < grey.mean() < 200
    eight = np.asarray(Image.open(IMAGES / "hopper.jpg").convert("L")).astype(int)
    assert np.abs(eight - grey[:, :, 0]).mean() < 6


@pytest.mark.parametrize("name", ["pil123rgba.png", "rgb_trns.png"])
def test_transparency_is_white(name: str):
    image = Image.open(IMAGES / name).convert("RGBA")
    clear = np.asarray(image)[:, :, 3] == 0
    assert clear.any()
    assert (np.asarray(load_image(IMAGES / name))[clear] == 255).all()


@pytest.mark.parametrize(
    "name", sorted(path.name for path in IMAGES.iterdir() if path.suffix in (".png", ".jpg", ".pgm"))
)
def test_every_mode_becomes_rgb(name: str):
    assert load_image(IMAGES / name).mode == "RGB"


def test_a_file_that_claims_gigapixels_is_refused_at_once():
    with pytest.raises(ImageError, match=r"bomb\.gif: .*pixels"):
        load_image(IMAGES / "decompression_bomb.gif")


def test_bytes_and_missing_files_are_named():
    with pytest.raises(ImageError, match="image of 7 bytes: not an image"):
        load_image(b"no pic.")
    with pytest.raises(ImageError, match=r"nowhere\.png: no such file"):
        load_image(IMAGES / "nowhere.png")


def test_pixels_are_counted_before_anything_is_decoded():
    huge = saved(Image.new("1", (13_000, 13_000)), "PNG")
    started = time.perf_counter()
    with pytest.raises(ImageError, match="13000 x 13000 pixels are more than the limit of 50,000,000"):
        load_image(huge)
    assert time.perf_counter() - started < 0.2  # decoding takes seconds
    assert load_image(saved(Image.new("1", (100, 100)), "PNG"), limits=ImageLimits(max_pixels=10_000)).size == (
        100,
        100,
    )
    with pytest.raises(ImageError, match="limit of 9,999"):
        load_image(saved(Image.new("1", (100, 100)), "PNG"), limits=ImageLimits(max_pixels=9_999))


def test_bytes_are_counted_before_a_file_is_read(tmp_path: Path):
    path = tmp_path / "large.png"
    with path.open("wb") as file:
        file.truncate(10**9)
    with pytest.raises(ImageError, match=r"large\.png: larger than the limit of 20 MiB"):
        load_image(path)
    with pytest.raises(ImageError, match="it is empty"):
        load_image(b"")


@pytest.mark.parametrize("limits", [{"max_bytes": 0}, {"max_pixels": 0}, {"max_pixels": 10**12}])
def test_limits_that_cannot_be_are_said(limits: dict):
    with pytest.raises(UserError, match="the limit must be"):
        ImageLimits(**limits)


@pytest.mark.parametrize("image_format", ["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "AVIF", "HEIF"])
def test_accepted_formats_and_their_truncated_files(image_format: str):
    if image_format == "HEIF":
        pillow_heif.register_heif_opener()
    original = Image.open(IMAGES / "hopper.jpg")
    data = saved(original, image_format)
    opened = np.asarray(load_image(data)).astype(int)
    assert np.abs(opened - np.asarray(original)).mean() < 20  # GIF's palette is the farthest
    for kept in (len(data) // 2, len(data) * 4 // 5, 20):
        with pytest.raises(ImageError, match=r"broken or truncated|not an image"):
            load_image(data[:kept])


def test_heic_without_its_package_is_said(monkeypatch):
    pillow_heif.register_heif_opener()
    data = saved(Image.new("RGB", (64, 64)), "HEIF")
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(ImageError, match="HEIC needs the package pillow-heif"):
        load_image(data)


@pytest.mark.parametrize("image_format", ["EPS", "PDF", "ICNS", "TGA", "JPEG2000", "PCX", "SGI"])
def test_other_formats_are_not_tried(image_format: str):
    with pytest.raises(ImageError, match="not an image that can be read; PNG, JPEG"):
        load_image(saved(Image.new("RGB", (64, 64)), image_format))


def test_an_svg_is_not_an_image_here():
    with pytest.raises(ImageError, match="not an image"):
        load_image(b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>')


def test_the_first_frame_of_an_animation():
    frames = [Image.new("RGB", (32, 32), colour) for colour in ("red", "blue")]
    for image_format in ("GIF", "WEBP", "PNG", "AVIF"):
        animated = saved(frames[0], image_format, save_all=True, append_images=frames[1:])
        red, _, blue = load_image(animated).getpixel((16, 16))
        assert red > 200 > blue, image_format


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "I", "I;16", "PA"])
def test_every_mode_of_white_is_white(mode: str):
    white = Image.new("RGBA", (8, 8), "white")
    if mode.startswith("I"):
        image = Image.fromarray(np.full((8, 8), 65535, np.uint16 if mode == "I;16" else np.int32))
    elif mode in ("CMYK", "YCbCr", "1", "P"):
        image = white.convert("RGB").convert(mode)
    elif mode == "LAB":
        image = Image.new("LAB", (8, 8), (255, 128, 128))
    else:
        image = white.convert(mode)
    assert image.mode == mode
    assert np.asarray(to_rgb(image)).min() >= 254


def test_floating_point_pixels_are_refused():
    with pytest.raises(ImageError, match="floating point"):
        load_image(saved(Image.new("F", (8, 8)), "TIFF"))


def test_a_palette_with_transparency_is_white_where_it_is_clear():
    image = Image.new("P", (8, 8), 0)
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putpixel((0, 0), 1)
    opened = load_image(saved(image, "PNG", transparency=0))
    assert opened.getpixel((4, 4)) == (255, 255, 255)
    assert opened.getpixel((0, 0)) == (0, 0, 255)


def saved(image: Image.Image, image_format: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()
