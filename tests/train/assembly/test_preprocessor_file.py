"""What preprocessor files of released encoders say, as fields of our image processor."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers
from transformers import AutoImageProcessor

from qwen_vqa.plugin.errors import UserError
from qwen_vqa.plugin.views.image_processor import QwenVqaImageProcessor
from qwen_vqa.train.assembly.preprocessor_file import preprocessor_fields
from tests.tiny import picture

HALF, CLIP_MEAN = [0.5, 0.5, 0.5], [0.48145466, 0.4578275, 0.40821073]
CLIP_STD = [0.26862954, 0.26130258, 0.27577711]
IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
# As the files on the hub have it, with the words of their time: the encoder's size, its config class, and the file.
RELEASED: dict[str, tuple[int, str, dict[str, Any]]] = {
    "google/vit-base-patch32-384": (
        384,
        "ViTConfig",
        {"do_normalize": True, "do_resize": True, "image_mean": HALF, "image_std": HALF, "size": 384},
    ),
    "facebook/dino-vitb16": (
        224,
        "ViTConfig",
        {
            "do_normalize": True,
            "do_resize": True,
            "feature_extractor_type": "ViTFeatureExtractor",
            **IMAGENET,
            "resample": 3,
            "size": 224,
        },
    ),
    "openai/clip-vit-large-patch14-336": (
        336,
        "CLIPVisionConfig",
        {
            "crop_size": 336,
            "do_center_crop": True,
            "do_normalize": True,
            "do_resize": True,
            "feature_extractor_type": "CLIPFeatureExtractor",
            "image_mean": CLIP_MEAN,
            "image_std": CLIP_STD,
            "resample": 3,
            "size": 336,
        },
    ),
    "google/siglip-so400m-patch14-384": (
        384,
        "SiglipVisionConfig",
        {
            "do_normalize": True,
            "do_rescale": True,
            "do_resize": True,
            "image_mean": HALF,
            "image_processor_type": "SiglipImageProcessor",
            "image_std": HALF,
            "processor_class": "SiglipProcessor",
            "resample": 3,
            "rescale_factor": 0.00392156862745098,
            "size": {"height": 384, "width": 384},
        },
    ),
}
FITS = {
    "google/vit-base-patch32-384": ("squash", "bilinear"),
    "facebook/dino-vitb16": ("squash", "bicubic"),
    "openai/clip-vit-large-patch14-336": ("crop", "bicubic"),
    "google/siglip-so400m-patch14-384": ("squash", "bicubic"),
}
DINOV2 = {
    "crop_size": {"height": 224, "width": 224},
    "do_center_crop": True,
    "do_resize": True,
    "image_processor_type": "BitImageProcessor",
    **IMAGENET,
    "resample": 3,
    "size": {"shortest_edge": 256},
}


def saved(folder: Path, config_class: str, size: int, settings: dict[str, Any]) -> str:
    getattr(transformers, config_class)(image_size=size).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return str(folder)


@pytest.mark.parametrize("name", RELEASED)
def test_the_pixels_are_those_of_the_encoders_own_processor(tmp_path: Path, name: str):
    size, config_class, settings = RELEASED[name]
    folder = saved(tmp_path, config_class, size, settings)
    fields = preprocessor_fields(folder, size, {})
    assert (fields["fit"], fields["resample"], fields["antialias"]) == (*FITS[name], True)
    theirs = AutoImageProcessor.from_pretrained(folder)
    for seed, (width, height) in enumerate([(640, 480), (333, 501), (size, size), (90, 60)]):
        image = picture(seed, width, height)
        expected = theirs(image, return_tensors="np")["pixel_values"]
        found = QwenVqaImageProcessor(size, 14, tokens_per_view=1, **fields)(image, return_tensors="np")["pixel_values"]
        np.testing.assert_allclose(found, expected, atol=2e-6)


def test_without_a_file_nothing_is_known(tmp_path: Path):
    transformers.ViTConfig().save_pretrained(tmp_path)
    assert preprocessor_fields(str(tmp_path), 224, {}) == {}


def test_what_is_given_goes_first(tmp_path: Path):
    folder = saved(tmp_path, "SiglipVisionConfig", 384, RELEASED["google/siglip-so400m-patch14-384"][2])
    given = {"fit": "pad", "resample": "bilinear", "antialias": False, "image_mean": [0.1, 0.2, 0.3]}
    assert preprocessor_fields(folder, 384, given) == {"image_std": HALF, **given}


def test_a_file_for_another_size_is_refused_until_a_fit_is_given(tmp_path: Path):
    folder = saved(tmp_path, "Dinov2Config", 518, DINOV2)
    with pytest.raises(UserError, match=r"256.*224.*518 px.*--fit"):
        preprocessor_fields(folder, 518, {})
    fields = preprocessor_fields(folder, 518, {"fit": "crop"})
    assert (fields["fit"], fields["resample"], fields["image_mean"]) == ("crop", "bicubic", IMAGENET["image_mean"])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"resample": 0}, "resample 0.*--resample"),
        ({"do_resize": False}, "--fit"),
        ({"size": {"height": 384, "width": 200}}, "contradicts"),
        ({"size": {"shortest_edge": 384}}, "contradicts"),
        ({"rescale_factor": 1 / 127.5}, "divided by 255"),
        ({"do_rescale": False}, "divided by 255"),
    ],
)
def test_what_cannot_be_made_is_said(tmp_path: Path, changes: dict[str, Any], said: str):
    settings = RELEASED["google/siglip-so400m-patch14-384"][2] | changes
    with pytest.raises(UserError, match=said):
        preprocessor_fields(saved(tmp_path, "SiglipVisionConfig", 384, settings), 384, {})
