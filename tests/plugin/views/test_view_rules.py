"""Which views an image has, and how many tokens that makes: counted before any pixel is looked at."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPVisionConfig, LlamaConfig, SiglipVisionConfig

from qwen_vqa.plugin.config import QwenVqaConfig
from qwen_vqa.plugin.images.image_detail import with_detail
from qwen_vqa.plugin.views.image_processor import LAYOUTS, TOKENS, QwenVqaImageProcessor
from qwen_vqa.plugin.views.merging import image_embeddings, joined_scales
from qwen_vqa.plugin.views.view_layout import WHOLE, ViewLayout
from qwen_vqa.plugin.views.view_rules import view_rule

SIZE, TOKENS_PER_VIEW = 64, 16
TILES = view_rule({"rule": "tiles", "max_tiles": 6}, SIZE, TOKENS_PER_VIEW)
RULES: dict[str, dict[str, Any] | None] = {
    "whole": None,
    "s2": {"rule": "s2"},
    "s2 of three": {"rule": "s2", "scales": [1, 2, 3]},
    "s2 side by side": {"rule": "s2", "pooling": "space-to-depth"},
    "tiles": {"rule": "tiles"},
    "llava-next": {"rule": "llava-next", "grid_pinpoints": [[64, 128], [128, 64], [128, 128], [192, 64]]},
}
CHANCE = np.random.default_rng(3)
SIZES = [
    *[(1, 4000), (4000, 1), (1, 1), (63, 63), (64, 64), (65, 65), (128, 64), (64, 128), (127, 127), (128, 128)],
    *((int(width), int(height)) for width, height in CHANCE.integers(1, 700, (60, 2))),
]


def processor(name: str) -> QwenVqaImageProcessor:
    return QwenVqaImageProcessor(SIZE, 16, tokens_per_view=TOKENS_PER_VIEW, views=RULES[name])


@pytest.mark.parametrize(
    ("width", "height", "grid"),
    [
        (64, 64, (0, 0)),
        (127, 127, (0, 0)),  # a second tile would be scaled up
        (128, 64, (1, 2)),
        (64, 128, (2, 1)),
        (200, 100, (1, 2)),
        (130, 130, (2, 2)),
        (386, 386, (2, 2)),  # and not 17 tiles: the limit is 6, and a square is nearest
        (640, 480, (2, 3)),
        (480, 640, (3, 2)),
        (4000, 1, (1, 6)),
        (1, 4000, (6, 1)),
        (3000, 2000, (2, 3)),
    ],
)
def test_the_grid_is_nearest_to_the_images_shape_and_never_scales_up(width: int, height: int, grid: tuple[int, int]):
    layout = TILES.layout(width, height, "high")
    assert (layout.rows, layout.columns) == grid
    assert layout.columns * SIZE <= max(width, SIZE) and layout.rows * SIZE <= max(height, SIZE)


def test_detail_low_is_the_view_of_the_whole():
    assert TILES.layout(640, 480, "low") == WHOLE
    assert TILES.layout(640, 480, "auto") == TILES.layout(640, 480, "high") != WHOLE


@pytest.mark.parametrize("name", RULES)
def test_what_is_counted_is_what_is_merged(name: str):
    """One number of tokens: before the pixels, of them, and behind the connector."""
    ours = processor(name)
    rule, newline = ours.view_rule, torch.zeros(8) if ours.view_rule.has_newline else None
    for detail in ("low", "high"):
        for width, height in SIZES:
            image = with_detail(Image.new("RGB", (width, height)), detail)
            made = ours([image], return_tensors="pt")
            layouts = [ViewLayout(*row) for row in made[LAYOUTS].tolist()] if LAYOUTS in made else None
            features = torch.zeros(len(made["pixel_values"]), TOKENS_PER_VIEW, 8)
            images = image_embeddings(joined_scales(features, rule, 0), lambda part: part, layouts, newline)
            assert [len(part) for part in images] == made[TOKENS].tolist() == [ours.image_tokens(width, height, detail)]
            assert made[TOKENS][0] <= ours.most_image_tokens


@pytest.mark.parametrize("name", RULES)
def test_the_largest_image_takes_most_tokens(name: str):
    ours = processor(name)
    assert ours.image_tokens(*ours.view_rule.largest) == ours.most_image_tokens


@pytest.mark.parametrize("name", RULES)
def test_what_is_kept_of_a_picture_is_as_good_as_it(name: str):
    ours = processor(name)
    for detail in ("low", "high"):
        for width, height in SIZES[:20]:
            pixels = CHANCE.integers(0, 256, (height, width, 3), dtype=np.uint8)
            image = with_detail(Image.fromarray(pixels), detail)
            small = ours.shrunk(image)
            assert small.size == (SIZE, SIZE)
            assert ours.layout_of(small) == ours.layout_of(image)
            first, again = (ours([one], return_tensors="pt") for one in (image, small))
            assert torch.equal(first["pixel_values"], again["pixel_values"])
            assert torch.equal(first[TOKENS], again[TOKENS])


def test_tiles_show_the_image_in_reading_order():
    """Each tile of one colour: where it stands in the prompt is where it is in the image."""
    image = np.zeros((2 * SIZE, 3 * SIZE, 3), np.uint8)
    for row in range(2):
        for column in range(3):
            image[row * SIZE : (row + 1) * SIZE, column * SIZE : (column + 1) * SIZE] = 10 * (3 * row + column + 1)
    ours = QwenVqaImageProcessor(SIZE, 16, [0.0] * 3, [1.0] * 3, tokens_per_view=16, views={"rule": "tiles"})
    made = ours([Image.fromarray(image)], return_tensors="pt")
    assert [round(float(view.mean() * 255)) for view in made["pixel_values"][1:]] == [10, 20, 30, 40, 50, 60]
    # Features that say which view and which patch they are of.
    features = torch.arange(7 * 16, dtype=torch.float32).view(7, 16, 1)
    (merged,) = image_embeddings(
        features, lambda part: part, [ViewLayout(*made[LAYOUTS][0].tolist())], torch.tensor([-1.0])
    )
    first_row = [*range(16, 20), *range(32, 36), *range(48, 52), -1]
    assert merged[:16, 0].tolist() == list(range(16))
    assert merged[16:29, 0].tolist() == first_row
    assert merged[-1, 0] == -1 and len(merged) == 16 + 8 * 13


def test_scaled_views_are_pooled_by_area_to_the_places_they_show():
    """As S2's own wrapper has it: squares merged to one grid, averages of 2 x 2, joined along the width."""
    rule = view_rule({"rule": "s2"}, SIZE, 17)
    views = torch.randn(10, 17, 3)  # two images; the class token's feature first
    joined = joined_scales(views, rule, 1)
    assert joined.shape == (2, 17, 6)
    image = views.view(2, 5, 17, 3)[1]
    assert torch.equal(joined[1, :, :3], image[0])
    torch.testing.assert_close(joined[1, 0, 3:], image[1:, 0].mean(dim=0))
    grid = image[1:, 1:].view(2, 2, 4, 4, 3)
    whole = torch.cat([torch.cat(list(row), dim=1) for row in grid], dim=0)  # [8, 8, 3]
    expected = whole.view(4, 2, 4, 2, 3).mean(dim=(1, 3)).flatten(0, 1)
    torch.testing.assert_close(joined[1, 1:, 3:], expected)


@pytest.mark.parametrize("scales", [[1, 2], [1, 3]])
def test_scaled_views_side_by_side_lose_nothing(scales: list[int]):
    """PyTorch's pixel_unshuffle of the squares merged to one grid; of class tokens, each view's."""
    rule = view_rule({"rule": "s2", "scales": scales, "pooling": "space-to-depth"}, SIZE, 17)
    larger, width = scales[1], 3
    views = torch.randn(2 * (1 + larger**2), 17, width)
    joined = joined_scales(views, rule, 1)
    assert joined.shape == (2, 17, width * (1 + larger**2)) == (2, 17, width * rule.times_wider(rule.fields))
    image = views.view(2, -1, 17, width)[1]
    assert torch.equal(joined[1, :, :width], image[0])
    grid = image[1:, 1:].view(larger, larger, 4, 4, width)
    whole = torch.cat([torch.cat(list(row), dim=1) for row in grid], dim=0)
    expected = torch.nn.functional.pixel_unshuffle(whole.permute(2, 0, 1), larger).flatten(1).T
    assert torch.equal(joined[1, 1:, width:], expected)
    assert sorted(joined[1, 0, width:].tolist()) == sorted(image[1:, 0].flatten().tolist())


def test_sizes_of_a_config():
    siglip = SiglipVisionConfig(image_size=384, patch_size=14)
    tiles = QwenVqaConfig(siglip, LlamaConfig(), {"pixel_shuffle": 3}, views={"rule": "tiles"})
    assert (tiles.tokens_per_view, tiles.most_image_tokens) == (81, 81 + 54 * 10)
    scaled = QwenVqaConfig(None, LlamaConfig(), views={"rule": "s2"})
    assert (scaled.feature_width, scaled.most_image_tokens) == (2 * 768, 145)
    assert QwenVqaConfig(None, LlamaConfig()).feature_width == 768
    side_by_side = QwenVqaConfig(None, LlamaConfig(), views={"rule": "s2", "pooling": "space-to-depth"})
    assert (side_by_side.feature_width, side_by_side.most_image_tokens) == (5 * 768, 145)


@pytest.mark.parametrize(
    ("views", "said"),
    [
        ({"rule": "mosaic"}, "'mosaic'.*whole, s2, tiles, llava-next"),
        ({}, None),
        ({"rule": "tiles", "max_tiles": 1}, "max_tiles is 1"),
        ({"rule": "tiles", "tiles": 4}, "tiles"),
        ({"rule": "s2", "scales": [2, 1]}, r"\[2, 1\]"),
        ({"rule": "s2", "scales": [1]}, r"\[1\]"),
        ({"rule": "s2", "scales": "12"}, "12"),
        ({"rule": "s2", "scales": [1, 9]}, "up to 4"),
        ({"rule": "llava-next", "grid_pinpoints": [[336, 673]]}, "673.*multiples of the encoder's 336"),
        ({"rule": "llava-next", "grid_pinpoints": []}, "nothing"),
    ],
)
def test_views_that_cannot_be_are_refused(views: dict[str, Any], said: str | None):
    vision = CLIPVisionConfig(image_size=336, patch_size=14)
    if said is None:
        assert QwenVqaConfig(vision, LlamaConfig(), views=views).view_rule.name == "whole"
        return
    with pytest.raises(ValueError, match=said):
        QwenVqaConfig(vision, LlamaConfig(), views=views)


def test_a_class_token_has_no_place_in_a_grid_of_tiles():
    with pytest.raises(ValueError, match=r"145.*--no-class-token"):
        QwenVqaConfig(None, LlamaConfig(), views={"rule": "tiles"})
