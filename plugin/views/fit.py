"""How an image becomes square, by name: `--fit`, and `fit` of a checkpoint's image processor."""

from typing import Literal

Fit = Literal["pad", "squash"]
