"""The rule without tiles: an image has one view."""

from typing import ClassVar

import numpy as np

from qwen_vqa.plugin.views.square import Square
from qwen_vqa.plugin.views.view_layout import ViewLayout
from qwen_vqa.plugin.views.view_rule import ViewRule


class WholeImage(ViewRule):
    """One view: all of the image."""

    name: ClassVar[str] = "whole"

    def views(self, rgb: np.ndarray, square: Square, layout: ViewLayout) -> list[np.ndarray]:
        """The image made square."""
        return [square.of(rgb)]
