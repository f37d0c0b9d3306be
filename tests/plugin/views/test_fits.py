"""How an image becomes square: the pixels of Transformers' own image processors, of many sizes."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from transformers import (
    BitImageProcessorPil,
    CLIPImageProcessorPil,
    LlavaImageProcessorPil,
    SiglipImageProcessorPil,
    ViTImageProcessorPil,
)

from qwen_vqa.plugin.views.image_processor import QwenVqaImageProcessor

SIZE = 112
SQUARE = {"height": SIZE, "width": SIZE}
SHORTEST = {"shortest_edge": SIZE}
AS_TAKEN = {"do_rescale": False, "do_normalize": False}
BICUBIC = {"resample": "bicubic", "antialias": True}
THEIRS: dict[str, tuple[Any, dict[str, Any]]] = {
    "CLIP": (
        CLIPImageProcessorPil(size=SHORTEST, crop_size=SQUARE, **AS_TAKEN),
        {"fit": "crop", **BICUBIC},
    ),
    "DINOv2": (
        BitImageProcessorPil(size=SHORTEST, crop_size=SQUARE, resample=3, **AS_TAKEN),
        {"fit": "crop", **BICUBIC},
    ),
    "SigLIP": (SiglipImageProcessorPil(size=SQUARE, **AS_TAKEN), {"fit": "squash", **BICUBIC}),
    "ViT": (ViTImageProcessorPil(size=SQUARE, **AS_TAKEN), {"fit": "squash", "antialias": True}),
    "LLaVA": (
        LlavaImageProcessorPil(do_pad=True, size=SHORTEST, crop_size=SQUARE, **AS_TAKEN),
        {"fit": "pad-center", **BICUBIC},
    ),
}
CHANCE = np.random.default_rng(7)
SIZES = [
    *[(111, 111), (112, 112), (113, 113), (111, 113), (112, 113), (1, 60), (60, 1), (1, 1), (37, 400), (400, 37)],
    *((int(width), int(height)) for width, height in CHANCE.integers(20, 500, (30, 2))),
]


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(CHANCE.integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("name", THEIRS)
def test_the_pixels_are_those_of_transformers(name: str):
    theirs, fields = THEIRS[name]
    mean = theirs.image_mean if name == "LLaVA" else [0.5] * 3
    ours = QwenVqaImageProcessor(SIZE, 14, image_mean=mean, **fields)
    for width, height in SIZES:
        image = noise(width, height)
        expected = np.asarray(theirs(image, return_tensors="np")["pixel_values"][0]).transpose(1, 2, 0)
        found = ours.canvas(image)
        assert np.array_equal(found, expected), image.size
        assert np.array_equal(ours.canvas(ours.shrunk(image)), found), "what is kept of a picture is as good as it"


@pytest.mark.parametrize("fields", [fields for _, fields in THEIRS.values()], ids=THEIRS)
@pytest.mark.parametrize(("width", "height"), [(1, 20000), (20000, 1)])
def test_a_long_image_takes_little_memory(fields: dict[str, Any], width: int, height: int):
    processor, image = QwenVqaImageProcessor(SIZE, 14, **fields), noise(width, height)
    before = peak_kilobytes()
    assert processor.canvas(image).shape == (SIZE, SIZE, 3)
    assert peak_kilobytes() - before < 100_000


def peak_kilobytes() -> int:
    """The most memory that this process has had: Pillow's is not Python's."""
    status = Path("/proc/self/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))


def test_another_color_around(tmp_path: Path):
    QwenVqaImageProcessor(SIZE, 14, fit="pad-center", antialias=True, pad_color=[1, 2, 3]).save_pretrained(tmp_path)
    canvas = QwenVqaImageProcessor.from_pretrained(tmp_path).canvas(noise(100, 50))
    assert canvas[0, 0].tolist() == [1, 2, 3]


def test_fields_of_the_default_are_not_written(tmp_path: Path):
    fields = QwenVqaImageProcessor(SIZE, 14).to_dict()
    assert not {"resample", "antialias", "pad_color"} & set(fields)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"fit": "pad-center"}, "antialias"),
        ({"fit": "stretch"}, "'stretch'.*pad, pad-center, squash, crop"),
        ({"resample": "nearest"}, "'nearest'.*bilinear, bicubic, lanczos"),
        ({"pad_color": [0, 0, 0]}, "pad-center"),
        ({"fit": "pad-center", "antialias": True, "pad_color": [0, 0, 256]}, "256"),
        ({"fit": "pad-center", "antialias": True, "pad_color": [0.5, 0.5, 0.5]}, "integers"),
    ],
)
def test_what_cannot_be_is_refused(fields: dict[str, Any], said: str):
    with pytest.raises(ValueError, match=said):
        QwenVqaImageProcessor(SIZE, 14, **fields)
