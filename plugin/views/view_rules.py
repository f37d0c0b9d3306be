"""Which views of an image the model sees, by the `views` of config.json. A rule is a file here, and a line below."""

from typing import Any

from qwen_vqa.plugin.views.llava_next import LlavaNextTiles
from qwen_vqa.plugin.views.s2 import ScaledViews
from qwen_vqa.plugin.views.tiles import Tiles
from qwen_vqa.plugin.views.view_rule import RULE, ViewRule
from qwen_vqa.plugin.views.whole import WholeImage

VIEW_RULES: dict[str, type[ViewRule]] = {rule.name: rule for rule in (WholeImage, ScaledViews, Tiles, LlavaNextTiles)}


def view_rule(fields: dict[str, Any] | None, size: int, tokens_per_view: int) -> ViewRule:
    """The rule that `views` of config.json names; the whole image without it.

    Raises:
        ValueError: no such rule, or what `ViewRule` raises.
    """
    fields = fields or {RULE: WholeImage.name}
    name = fields.get(RULE)
    if name not in VIEW_RULES:
        raise ValueError(f"views.{RULE} is {name!r}; it must be one of {', '.join(VIEW_RULES)}.")
    return VIEW_RULES[name](fields, size, tokens_per_view)
