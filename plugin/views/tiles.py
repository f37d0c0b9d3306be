"""The rule `tiles`: the view of the whole, then the image in tiles of the encoder's size, for small text."""

from typing import Any, ClassVar

import numpy as np

from qwen_vqa.plugin.images.image_detail import wants_tiles
from qwen_vqa.plugin.views.square import Square
from qwen_vqa.plugin.views.view_layout import WHOLE, ViewLayout
from qwen_vqa.plugin.views.view_rule import ViewRule


class Tiles(ViewRule):
    """Up to `max_tiles` tiles, in the grid whose shape is nearest to the image's.

    An image is never scaled up: it has as many rows and columns of tiles at most as whole tiles fit into it, and none
    if only one does. So an image has tiles where one side has at least twice the pixels of the encoder's view; "auto"
    and "high" are the same.
    """

    name: ClassVar[str] = "tiles"
    has_newline: ClassVar[bool] = True
    defaults: ClassVar[dict[str, Any]] = {"max_tiles": 6}

    def __init__(self, fields: dict[str, Any], size: int, tokens_per_view: int) -> None:
        super().__init__(fields, size, tokens_per_view)
        self.max_tiles: int = self.fields["max_tiles"]
        self.side = self.grid_side()

    @classmethod
    def check_fields(cls, fields: dict[str, Any]) -> None:
        """Two tiles at least: one is the view of the whole."""
        super().check_fields(fields)
        most = fields.get("max_tiles", cls.defaults["max_tiles"])
        if type(most) is not int or most < 2:
            raise ValueError(f"views.max_tiles is {most!r}; it must be an integer of at least 2.")

    def layout(self, width: int, height: int, detail: str) -> ViewLayout:
        """The grid with the nearest ratio of width to height; of equally near ones that with more tiles."""
        if not wants_tiles(detail):
            return WHOLE
        fitting = [
            (rows, columns)
            for rows in range(1, max(1, min(height // self.size, self.max_tiles)) + 1)
            for columns in range(1, max(1, min(width // self.size, self.max_tiles // rows)) + 1)
            if rows * columns > 1
        ]
        if not fitting:
            return WHOLE
        rows, columns = min(fitting, key=lambda grid: (_distance(grid, width, height), -grid[0] * grid[1]))
        return ViewLayout.whole_tiles(rows, columns, self.side)

    @property
    def largest(self) -> tuple[int, int]:
        """Of the grid with most tokens: most tiles, and of those most rows, since each row ends with a token."""
        grids = [(n, self.max_tiles // n) for n in range(1, self.max_tiles + 1)]
        rows, columns = max(grids, key=lambda grid: ViewLayout.whole_tiles(grid[0], grid[1], self.side).num_tokens(0))
        return columns * self.size, rows * self.size

    def views(self, rgb: np.ndarray, square: Square, layout: ViewLayout) -> list[np.ndarray]:
        """The whole as ever; the tiles cut from the image scaled to the grid, whatever its shape."""
        if not layout.rows:
            return [square.of(rgb)]
        scaled = square.resized(rgb, layout.columns * self.size, layout.rows * self.size)
        return [square.of(rgb), *cut(scaled, layout, self.size)]


def cut(rgb: np.ndarray, layout: ViewLayout, size: int) -> list[np.ndarray]:
    """Tiles of `size` pixels a side, row by row."""
    return [
        rgb[row * size : (row + 1) * size, column * size : (column + 1) * size]
        for row in range(layout.rows)
        for column in range(layout.columns)
    ]


def _distance(grid: tuple[int, int], width: int, height: int) -> float:
    """How far a grid's shape is from the image's: 0 where they are the same."""
    rows, columns = grid
    ratio = (columns * height) / (rows * width)
    return max(ratio, 1 / ratio)
