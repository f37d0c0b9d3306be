"""Pixel shuffle: the features of a square of patches joined into one, so that an image takes fewer tokens.

As SmolVLM (Marafioti et al. 2025, arXiv:2504.05299) and nanoVLM have it; the idea is Shi et al.'s (2016,
arXiv:1609.05158), turned round.
"""

import math

import torch


def grid_side(features: int, factor: int) -> int:
    """Side of the square grid that so many features fill.

    Raises:
        ValueError: they fill none, or `factor` does not divide its side.
    """
    side = math.isqrt(features)
    if side * side != features or side % factor:
        fitting = [n for n in range(2, side + 1) if side * side == features and side % n == 0]
        raise ValueError(
            f"connector.pixel_shuffle {factor} does not divide the grid of {features} features of a view"
            + (f"; it could be {', '.join(map(str, fitting))}." if fitting else ", which is not a square.")
        )
    return side


def pixel_shuffle(features: torch.Tensor, factor: int) -> torch.Tensor:
    """Features [views, side^2, width] to [views, (side / factor)^2, width x factor^2].

    A square's features are joined row by row.
    """
    if factor == 1:
        return features
    views, number, width = features.shape
    side = grid_side(number, factor) // factor
    blocks = features.view(views, side, factor, side, factor, width).transpose(2, 3)
    return blocks.reshape(views, side * side, factor * factor * width)
