"""Features of views to what stands in the prompt for each image, on either side: in training and in serving."""

from collections.abc import Callable, Iterable

import torch
from torch.nn import functional

from qwen_vqa.plugin.views.view_layout import ViewLayout
from qwen_vqa.plugin.views.view_rule import ViewRule


def joined_scales(features: torch.Tensor, rule: ViewRule, first_tokens: int) -> torch.Tensor:
    """Features [images x views, F, width] to [images, F, width x `rule.times_wider`]; as they are of one scale.

    What is not averaged stands in the order of `torch.nn.functional.pixel_unshuffle`.

    Args:
        first_tokens: how many of F are no patch's: of them a scale's views are averaged or joined.
    """
    if len(rule.scales) == 1:
        return features
    views = features.unflatten(0, (-1, sum(scale * scale for scale in rule.scales)))  # [images, views, F, width]
    side = round((features.shape[1] - first_tokens) ** 0.5)
    joined = []
    for scale, part in zip(rule.scales, views.split([scale * scale for scale in rule.scales], dim=1), strict=True):
        patches = part[:, :, first_tokens:].unflatten(2, (side, side)).unflatten(1, (scale, scale))
        grid = patches.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)  # [images, width, scale side, scale side]
        first = part[:, :, :first_tokens]  # [images, views, first, width]
        if rule.is_pooled:
            grid = functional.interpolate(grid.float(), size=(side, side), mode="area").to(features.dtype)
            first = first.mean(dim=1)
        else:
            grid = functional.pixel_unshuffle(grid, scale)
            first = first.permute(0, 2, 3, 1).flatten(2)
        joined.append(torch.cat([first, grid.flatten(2).transpose(1, 2)], dim=1))
    return torch.cat(joined, dim=-1)


def image_embeddings(
    features: torch.Tensor,
    connector: Callable[[torch.Tensor], torch.Tensor],
    layouts: Iterable[ViewLayout] | None,
    newline: torch.Tensor | None,
) -> list[torch.Tensor]:
    """Features [views, F, width] to each image's embeddings [tokens, text width].

    Args:
        layouts: of the images; None where each has one view.
        newline: what ends a row of tiles' features, [text width].
    """
    embeddings = connector(features)  # [views, tokens, text width]
    if layouts is None or newline is None:
        return list(embeddings.unbind())
    layouts = list(layouts)
    views = embeddings.split([layout.num_views for layout in layouts])
    return [with_tiles(image, layout, newline) for image, layout in zip(views, layouts, strict=True)]


def with_tiles(views: torch.Tensor, layout: ViewLayout, newline: torch.Tensor) -> torch.Tensor:
    """An image's views [views, side^2, width] to [tokens, width]: the whole, then the tiles' features row by row."""
    if not layout.rows:
        return views[0]
    side = round(views.shape[1] ** 0.5)
    grid = views[1:].unflatten(1, (side, side)).unflatten(0, (layout.rows, layout.columns))
    rows = grid.transpose(1, 2).flatten(2, 3).flatten(0, 1)  # [rows side, columns side, width]
    rows = rows[layout.first_row :, layout.first_column :][: layout.kept_rows, : layout.kept_columns]
    ends = newline.to(rows.dtype).expand(len(rows), 1, -1)
    return torch.cat([views[0], torch.cat([rows, ends], dim=1).flatten(0, 1)])
