"""Which views of an image the model sees, and so how many tokens an image takes. A rule is a class here and a name.

One view is one canvas that the encoder sees. There is one rule, the whole image; a rule with crops answers with more
views for a large image, and with one for `detail` "low".
"""

from abc import ABC, abstractmethod
from typing import ClassVar

from qwen_vqa.plugin.images.image_detail import view_of


class ViewRule(ABC):
    """Says how many views an image has, before any pixel is looked at."""

    name: ClassVar[str]

    @abstractmethod
    def count(self, width: int, height: int, detail: str) -> int:
        """Views of an image of so many pixels. Raises ValueError for an unknown `detail`."""

    @abstractmethod
    def most(self) -> int:
        """Views of the image that has most of them."""


class WholeImage(ViewRule):
    """One view: all of the image."""

    name: ClassVar[str] = "whole"

    def count(self, width: int, height: int, detail: str) -> int:
        """One, of any image."""
        view_of(detail)
        return 1

    def most(self) -> int:
        """One."""
        return 1


VIEW_RULES: dict[str, ViewRule] = {rule.name: rule for rule in (WholeImage(),)}
