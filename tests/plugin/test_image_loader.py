"""Image files of every awkward kind to RGB pictures, or to an error that names them."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from qwen_vqa.plugin.image_loader import ImageError, load_image

IMAGES = Path(__file__).parents[1] / "images"


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
def test_every_mode_becomes_rgb_or_a_named_error(name: str):
    if name == "truncated_jpeg.jpg":
        with pytest.raises(ImageError, match=r"truncated_jpeg\.jpg: broken or truncated"):
            load_image(IMAGES / name)
    else:
        assert load_image(IMAGES / name).mode == "RGB"


def test_a_file_that_claims_gigapixels_is_refused_at_once():
    with pytest.raises(ImageError, match=r"bomb\.gif: .*pixels"):
        load_image(IMAGES / "decompression_bomb.gif")


def test_bytes_and_missing_files_are_named():
    with pytest.raises(ImageError, match="image of 7 bytes: not an image"):
        load_image(b"no pic.")
    with pytest.raises(ImageError, match=r"nowhere\.png: no such file"):
        load_image(IMAGES / "nowhere.png")
