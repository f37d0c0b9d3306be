"""An image file to an RGB picture, as the server opens it."""

import warnings
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from qwen_vqa.plugin.errors import UserError


class ImageError(UserError):
    """An image that cannot be opened; the message names it."""


def load_image(source: str | Path | bytes, name: str | None = None) -> Image.Image:
    """The first frame, turned as its EXIF says, alpha on white, 16 bits scaled to 8: RGB [H, W].

    Args:
        source: a path, or the file's bytes.
        name: what errors call it (default: the path).

    Raises:
        ImageError: no such file, not an image, truncated, or too many pixels (Pillow's bomb limit).
    """
    label = name or (str(source) if not isinstance(source, bytes) else f"image of {len(source)} bytes")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(BytesIO(source) if isinstance(source, bytes) else source) as image:
                image.load()
                return to_rgb(ImageOps.exif_transpose(image))
    except FileNotFoundError as error:
        raise ImageError(f"{label}: no such file.") from error
    except UnidentifiedImageError as error:
        raise ImageError(f"{label}: not an image that Pillow can read.") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(f"{label}: {error}") from error
    except (OSError, SyntaxError, ValueError) as error:
        raise ImageError(f"{label}: broken or truncated ({error}).") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Any mode to RGB: transparency on white, 16-bit grey scaled to 8 bits instead of clipped."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I"):
        grey = np.clip(np.asarray(image).astype(np.int64), 0, 65535) >> 8
        return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")
