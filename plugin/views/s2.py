"""The rule `s2`: the image at several sizes, whose features are joined along the width; no token more.

Shi et al. 2024, "When Do We Not Need Larger Vision Models?" (arXiv:2403.13043): the larger images are cut into squares
of the encoder's size, and the features of all of them are brought to the grid of one: averaged by area, as in the
paper, or side by side (space to depth), which loses nothing and makes the connector's input wider.
"""

from dataclasses import replace
from typing import Any, ClassVar

import numpy as np

from qwen_vqa.plugin.views.square import Square
from qwen_vqa.plugin.views.tiles import cut
from qwen_vqa.plugin.views.view_layout import ViewLayout
from qwen_vqa.plugin.views.view_rule import ViewRule

LARGEST_SCALE = 4
AREA, SPACE_TO_DEPTH = "area", "space-to-depth"
POOLINGS = (AREA, SPACE_TO_DEPTH)


class ScaledViews(ViewRule):
    """An image is made square once for each of `scales`; `detail` changes nothing."""

    name: ClassVar[str] = "s2"
    defaults: ClassVar[dict[str, Any]] = {"scales": [1, 2], "pooling": AREA}

    @classmethod
    def check_fields(cls, fields: dict[str, Any]) -> None:
        """Scales go up from 1."""
        super().check_fields(fields)
        pooling = fields.get("pooling", AREA)
        if pooling not in POOLINGS:
            raise ValueError(f"views.pooling is {pooling!r}; it must be {' or '.join(POOLINGS)}.")
        scales = fields.get("scales", cls.defaults["scales"])
        if (
            not isinstance(scales, list | tuple)
            or list(scales) != sorted({scale for scale in scales if type(scale) is int and scale <= LARGEST_SCALE})
            or scales[:1] not in ([1], (1,))
            or len(scales) < 2
        ):
            raise ValueError(
                f"views.scales is {scales!r}; it must be 1 and larger integers up to {LARGEST_SCALE}, such as [1, 2]."
            )

    @property
    def scales(self) -> tuple[int, ...]:
        """Of the image."""
        return tuple(self.fields["scales"])

    @property
    def is_pooled(self) -> bool:
        """By area."""
        return self.fields["pooling"] == AREA

    @classmethod
    def times_wider(cls, fields: dict[str, Any]) -> int:
        """A width for each scale, or for each view."""
        fields = cls.defaults | fields
        return sum(1 if fields["pooling"] == AREA else scale * scale for scale in fields["scales"])

    @property
    def fixed_views(self) -> int:
        """5 at 1x and 2x."""
        return sum(scale * scale for scale in self.scales)

    def views(self, rgb: np.ndarray, square: Square, layout: ViewLayout) -> list[np.ndarray]:
        """The squares of all scales, from small to large, row by row."""
        return [
            view
            for scale in self.scales
            for view in cut(
                replace(square, size=scale * self.size).of(rgb), ViewLayout(rows=scale, columns=scale), self.size
            )
        ]
