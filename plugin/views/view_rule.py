"""What a rule says of an image's views. Each is a file here, and a line in `view_rules.py`."""

import math
from abc import ABC, abstractmethod
from typing import Any, ClassVar

import numpy as np

from qwen_vqa.plugin.views.square import Square
from qwen_vqa.plugin.views.view_layout import WHOLE, ViewLayout

RULE = "rule"


class ViewRule(ABC):
    """Says which views an image has, before any pixel is looked at, and cuts them.

    Args:
        fields: the rule's own, of config.json.
        size: side of a view, in pixels.
        tokens_per_view: features of a view behind the connector.

    Raises:
        ValueError: a field that there is not, or an encoder that does not go with the rule.
    """

    name: ClassVar[str]
    has_newline: ClassVar[bool] = False  # whether the connector learns an `image_newline`
    defaults: ClassVar[dict[str, Any]] = {}

    def __init__(self, fields: dict[str, Any], size: int, tokens_per_view: int) -> None:
        self.check_fields(fields)
        self.fields = self.defaults | {name: value for name, value in fields.items() if name != RULE}
        self.size = size
        self.tokens_per_view = tokens_per_view

    @classmethod
    def check_fields(cls, fields: dict[str, Any]) -> None:
        """What can be said of them without an encoder. Raises ValueError for a wrong one."""
        if unknown := set(fields) - set(cls.defaults) - {RULE}:
            raise ValueError(f"views has unknown fields {sorted(unknown)} for the rule {cls.name!r}.")

    @property
    def fixed_views(self) -> int | None:
        """How many views every image has; None where it has tiles, as many as it is large."""
        return None if self.has_newline else 1

    @classmethod
    def times_wider(cls, fields: dict[str, Any]) -> int:
        """How many times as wide as the encoder's features is what the connector takes, by a rule's fields."""
        return 1

    @property
    def scales(self) -> tuple[int, ...]:
        """Sizes at which an image is seen, in sizes of the encoder's; their features are joined along the width."""
        return (1,)

    @property
    def is_pooled(self) -> bool:
        """Whether the features of larger scales are averaged; else they are joined, too."""
        return True

    def layout(self, width: int, height: int, detail: str) -> ViewLayout:
        """Of an image of so many pixels. Raises ValueError for an unknown `detail`."""
        return WHOLE

    def num_tokens(self, width: int, height: int, detail: str) -> int:
        """Prompt tokens of such an image."""
        return self.layout(width, height, detail).num_tokens(self.tokens_per_view)

    @property
    def most_tokens(self) -> int:
        """Prompt tokens of the image that takes most of them."""
        return self.num_tokens(*self.largest, detail="high")

    @property
    def largest(self) -> tuple[int, int]:
        """Width and height of an image that takes most tokens."""
        return self.size, self.size

    @abstractmethod
    def views(self, rgb: np.ndarray, square: Square, layout: ViewLayout) -> list[np.ndarray]:
        """The image's views, uint8 RGB [size, size, 3] each."""

    def grid_side(self) -> int:
        """Side of the square of features that a view has behind the connector.

        Raises:
            ValueError: it is none, since a class token's feature is among them.
        """
        side = math.isqrt(self.tokens_per_view)
        if side * side != self.tokens_per_view:
            raise ValueError(
                f"the rule {self.name!r} needs views whose features are a square grid; these have "
                f"{self.tokens_per_view}. Drop the class token (--no-class-token, vision_features.class_token false)."
            )
        return side
