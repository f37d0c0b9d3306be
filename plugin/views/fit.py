"""How an image becomes square, by name: flags of `assemble`, and fields of a checkpoint's image processor."""

from typing import Literal

# pad: the longest side is scaled, and the image lies at the top left of a black canvas.
# pad-center: the image lies in the middle of a square of one colour, which is scaled.
# squash: both sides are scaled.
# crop: the shortest side is scaled, and the middle is taken.
Fit = Literal["pad", "pad-center", "squash", "crop"]
Resample = Literal["bilinear", "bicubic", "lanczos"]
# By what preprocessor files have for them: Pillow's numbers.
RESAMPLE_NUMBERS: dict[int, Resample] = {1: "lanczos", 2: "bilinear", 3: "bicubic"}
