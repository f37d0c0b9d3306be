"""The pixels: the original recipe's arithmetic, and transformers' ViTImageProcessor on the same canvas."""

import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from transformers import ViTImageProcessorPil

from qwen_vqa.plugin.views.image_processor import QwenVqaImageProcessor
from qwen_vqa.plugin.views.square import scaled_size


def noise(width: int, height: int) -> np.ndarray:
    return np.random.default_rng(width * height).integers(0, 256, (height, width, 3), dtype=np.uint8)


SIZES = [
    (1, 4000),
    (4000, 1),
    (1, 1),
    (383, 383),
    (384, 384),
    (385, 385),
    (383, 200),
    (385, 640),
    (100, 37),
    (640, 480),
]


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_the_canvas_is_the_original_recipe(width: int, height: int):
    image = noise(width, height)
    # The original training script's lines, written out.
    scale = 384 / max(height, width)
    new_width, new_height = max(1, int(width * scale)), max(1, int(height * scale))
    expected = np.zeros((384, 384, 3), np.uint8)
    expected[:new_height, :new_width] = cv2.resize(image, (new_width, new_height))
    assert np.array_equal(QwenVqaImageProcessor().canvas(Image.fromarray(image)), expected)


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_the_pixels_are_those_of_vit_on_the_same_canvas(width: int, height: int):
    processor = QwenVqaImageProcessor()
    image = Image.fromarray(noise(width, height))
    pixels = processor(image, return_tensors="np")["pixel_values"]
    vit = ViTImageProcessorPil(do_resize=False, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    expected = vit(Image.fromarray(processor.canvas(image)), return_tensors="np")["pixel_values"]
    assert pixels.shape == (1, 3, 384, 384)
    assert pixels.dtype == np.float32
    np.testing.assert_allclose(pixels, expected, atol=1e-6)


def test_sizes_are_truncated_and_never_zero():
    assert scaled_size(1, 4000, 384) == (1, 384)
    assert scaled_size(4000, 1, 384) == (384, 1)
    assert scaled_size(1, 1, 384) == (384, 384)
    assert scaled_size(480, 640, 384) == (288, 384)
    assert scaled_size(100, 301, 384) == (127, 384)


def test_black_and_white_are_minus_one_and_one():
    pixels = QwenVqaImageProcessor()(Image.new("RGB", (384, 192), "white"), return_tensors="np")["pixel_values"][0]
    assert (pixels[:, :192] == 1).all()
    assert (pixels[:, 192:] == -1).all()


def test_one_image_takes_its_patches_and_cls():
    assert QwenVqaImageProcessor(384, 32).image_tokens(640, 480) == 145
    assert QwenVqaImageProcessor(128, 16).image_tokens(640, 480) == 65


def test_images_of_a_batch_keep_their_order():
    processor = QwenVqaImageProcessor()
    images = [Image.fromarray(noise(*size)) for size in SIZES]
    together = processor(images, return_tensors="np")["pixel_values"]
    alone = [processor(image, return_tensors="np")["pixel_values"][0] for image in images]
    assert np.array_equal(together, np.stack(alone))


@pytest.mark.parametrize(
    "array", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32), np.zeros((3, 4, 4), np.uint8)]
)
def test_arrays_that_are_not_rgb_bytes_are_refused(array: np.ndarray):
    with pytest.raises(ValueError, match="uint8 RGB"):
        QwenVqaImageProcessor().canvas(array)


def test_an_image_without_pixels_is_refused():
    with pytest.raises(ValueError, match="0x5"):
        QwenVqaImageProcessor().canvas(Image.new("RGB", (0, 5)))


def test_a_canvas_that_patches_do_not_cover_is_refused():
    with pytest.raises(ValueError, match="384 is not a multiple of patch_size 100"):
        QwenVqaImageProcessor(384, 100)


def test_importing_the_plugin_pulls_in_neither_torch_nor_vllm():
    code = "import qwen_vqa.plugin, sys; print([m for m in ('torch', 'vllm', 'transformers') if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


@pytest.mark.parametrize(("size", "patch", "tokens"), [(64, 32, 5), (62, 14, 16), (62, 14, 17), (64, 32, 4)])
def test_tokens_per_view_are_there_after_saving_and_loading(tmp_path: Path, size: int, patch: int, tokens: int):
    QwenVqaImageProcessor(size, patch, tokens_per_view=tokens).save_pretrained(tmp_path)
    assert QwenVqaImageProcessor.from_pretrained(tmp_path).tokens_per_view == tokens
