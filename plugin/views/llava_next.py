"""The rule `llava-next`: LLaVA-NeXT's tiles (anyres), as Transformers' `LlavaNextForConditionalGeneration` has them.

Sources: https://llava-vl.github.io/blog/2024-01-30-llava-next/; Transformers' image_processing_utils and
models/llava_next. Each choice of rounding is theirs.
"""

import math
from typing import Any, ClassVar

import numpy as np

from qwen_vqa.plugin.images.image_detail import wants_tiles
from qwen_vqa.plugin.views.square import Square
from qwen_vqa.plugin.views.tiles import cut
from qwen_vqa.plugin.views.view_layout import WHOLE, ViewLayout
from qwen_vqa.plugin.views.view_rule import ViewRule

_PINPOINTS = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]


class LlavaNextTiles(ViewRule):
    """The image in the middle of that one of `grid_pinpoints` which keeps most of it, cut into tiles.

    Every image has tiles, also a small one, since the model was trained so; with `detail` "low" it has none.
    """

    name: ClassVar[str] = "llava-next"
    has_newline: ClassVar[bool] = True
    defaults: ClassVar[dict[str, Any]] = {"grid_pinpoints": _PINPOINTS}

    def __init__(self, fields: dict[str, Any], size: int, tokens_per_view: int) -> None:
        super().__init__(fields, size, tokens_per_view)
        self.side = self.grid_side()
        self.pinpoints = [tuple(pinpoint) for pinpoint in self.fields["grid_pinpoints"]]
        wrong = [
            point
            for point in self.pinpoints
            if len(point) != 2 or not all(type(side) is int and side > 0 and side % size == 0 for side in point)
        ]
        if wrong or not self.pinpoints:
            raise ValueError(
                f"views.grid_pinpoints has {wrong or 'nothing'}; each must be [height, width] in multiples of the "
                f"encoder's {size} pixels."
            )

    def layout(self, width: int, height: int, detail: str) -> ViewLayout:
        """The tiles, and of their features those that show the image and not what lies around it."""
        if not wants_tiles(detail):
            return WHOLE
        target_height, target_width = self._pinpoint(width, height)
        rows, columns = target_height // self.size, target_width // self.size
        all_rows, all_columns = rows * self.side, columns * self.side
        skipped_rows = skipped_columns = 0
        if width / height > all_columns / all_rows:
            shown = int(round(height * (all_columns / width), 7))
            skipped_rows = (all_rows - shown) // 2
        else:
            shown = int(round(width * (all_rows / height), 7))
            skipped_columns = (all_columns - shown) // 2
        return ViewLayout(
            rows,
            columns,
            skipped_rows,
            all_rows - 2 * skipped_rows,
            skipped_columns,
            all_columns - 2 * skipped_columns,
        )

    def _pinpoint(self, width: int, height: int) -> tuple[int, int]:
        """Height and width of the one that keeps most of the image's pixels; of equal ones the first smallest."""

        def kept_and_wasted(pinpoint: tuple[int, ...]) -> tuple[int, int]:
            scale = min(pinpoint[1] / width, pinpoint[0] / height)
            kept = min(int(width * scale) * int(height * scale), width * height)
            return kept, kept - pinpoint[0] * pinpoint[1]

        target_height, target_width = max(self.pinpoints, key=kept_and_wasted)
        return target_height, target_width

    @property
    def largest(self) -> tuple[int, int]:
        """Of the pinpoint with most tokens, filled."""

        def tokens(pinpoint: tuple[int, ...]) -> int:
            rows, columns = pinpoint[0] // self.size, pinpoint[1] // self.size
            return ViewLayout.whole_tiles(rows, columns, self.side).num_tokens(0)

        height, width = max(self.pinpoints, key=tokens)
        return width, height

    def views(self, rgb: np.ndarray, square: Square, layout: ViewLayout) -> list[np.ndarray]:
        """The whole squashed, or as `fit` has it; the tiles of the image scaled into the pinpoint, on black."""
        if not layout.rows:
            return [square.of(rgb)]
        height, width = rgb.shape[:2]
        target_height, target_width = layout.rows * self.size, layout.columns * self.size
        across, down = target_width / width, target_height / height
        if across < down:
            new_width, new_height = target_width, min(math.ceil(height * across), target_height)
        else:
            new_width, new_height = min(math.ceil(width * down), target_width), target_height
        top, left = (target_height - new_height) // 2, (target_width - new_width) // 2
        canvas = np.zeros((target_height, target_width, 3), np.uint8)
        canvas[top : top + new_height, left : left + new_width] = square.resized(rgb, new_width, new_height)
        return [square.of(rgb), *cut(canvas, layout, self.size)]
