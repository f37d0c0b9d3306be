"""An image made square, as the libraries make it that encoders are trained with.

Without antialiasing by OpenCV, as the original project does; with it by Pillow, as Transformers and LLaVA do, each to
the bit.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from PIL import Image

from qwen_vqa.plugin.views.fit import Fit, Resample

_RGB_CHANNELS = 3
_OPENCV = {"bilinear": cv2.INTER_LINEAR, "bicubic": cv2.INTER_CUBIC, "lanczos": cv2.INTER_LANCZOS4}
_PILLOW = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
_ROWS_AT_ONCE = 64
_LONGEST = 64  # times the shortest side


@dataclass(frozen=True)
class Square:
    """How an image becomes a square of `size` pixels a side.

    Attributes:
        pad_color: RGB of what lies around an image that is padded in the middle.
    """

    size: int
    fit: Fit = "pad"
    resample: Resample = "bilinear"
    antialias: bool = False
    pad_color: tuple[int, ...] = (0, 0, 0)

    def of(self, rgb: np.ndarray) -> np.ndarray:
        """uint8 RGB [H, W, 3] to [size, size, 3]."""
        if self.fit == "squash":
            return self.resized(rgb, self.size, self.size)
        if self.fit == "crop":
            return self._cropped(rgb)
        if self.fit == "pad-center":
            return self._centred(rgb)
        height, width = scaled_size(rgb.shape[0], rgb.shape[1], self.size)
        canvas = np.zeros((self.size, self.size, _RGB_CHANNELS), np.uint8)
        canvas[:height, :width] = self.resized(rgb, width, height)
        return canvas

    def resized(self, rgb: np.ndarray, width: int, height: int) -> np.ndarray:
        """[H, W, 3] to [height, width, 3], whatever the fit."""
        if self.antialias:
            return np.asarray(Image.fromarray(rgb).resize((width, height), _PILLOW[self.resample]))
        return cv2.resize(rgb, (width, height), interpolation=_OPENCV[self.resample])

    def _cropped(self, rgb: np.ndarray) -> np.ndarray:
        """The shortest side scaled to `size`, and the middle cut out, as CLIPImageProcessor does.

        An image longer than `_LONGEST` times its width is cut first, or 1 x 4000 pixels would become gigabytes.
        """
        height, width = rgb.shape[:2]
        most = _LONGEST * min(height, width)
        if max(height, width) > most:
            top, left = max(0, height - most) // 2, max(0, width - most) // 2
            return self._cropped(rgb[top : top + most, left : left + most])
        height, width = (int(self.size * side / min(height, width)) for side in (height, width))
        top, left = (height - self.size) // 2, (width - self.size) // 2
        return self.resized(rgb, width, height)[top : top + self.size, left : left + self.size]

    def _centred(self, rgb: np.ndarray) -> np.ndarray:
        """LLaVA's expand2square, then scaled: across, some rows at a time, and down, in Pillow's order."""
        height, width = rgb.shape[:2]
        side = max(height, width)
        top, left = (side - height) // 2, (side - width) // 2
        narrow = Image.new("RGB", (self.size, side), self.pad_color)
        for start in range(0, height, _ROWS_AT_ONCE):
            rows = rgb[start : start + _ROWS_AT_ONCE]
            strip = Image.new("RGB", (side, len(rows)), self.pad_color)
            strip.paste(Image.fromarray(rows), (left, 0))
            narrow.paste(strip.resize((self.size, len(rows)), _PILLOW[self.resample]), (0, top + start))
        return np.asarray(narrow.resize((self.size, self.size), _PILLOW[self.resample]))


def scaled_size(height: int, width: int, image_size: int) -> tuple[int, int]:
    """Height and width once the longest side is scaled to `image_size`: truncated, but at least 1 pixel.

    The scale is formed first and multiplied, as the original does: dividing last would round some
    sizes the other way.
    """
    scale = image_size / max(height, width)
    return max(1, int(height * scale)), max(1, int(width * scale))
