"""What an image may cost, and the checks of it that come before anything is decoded."""

import re
from dataclasses import dataclass

from PIL import Image

from qwen_vqa.plugin.errors import UserError
from qwen_vqa.plugin.images import jpeg_segments

# Above this Pillow has its own opinion of an image's size.
LARGEST_LIMIT = Image.MAX_IMAGE_PIXELS or 89_478_485
# The longer side; no format of those that people send has more.
LONGEST_SIDE = 65_535
# Encoders make some ten scans. Each costs a decoder one pass over all pixels: so many passes over the largest picture
# may be, which take some two seconds.
MOST_PASSES = 16
# A PPM's numbers stand at its beginning, with comments between them that Pillow reads byte by byte.
_ANYMAP_HEADER = re.compile(rb"P[456f](?:\s+(?:#[^\n]*\n\s*)*\d+){2,3}\s")
_HEADER_BYTES = 1024


class ImageError(UserError):
    """An image that cannot be opened or fetched; the message names it."""


@dataclass(frozen=True)
class ImageLimits:
    """How large an image may be: its file in bytes, and width times height in pixels.

    Raises:
        UserError: a limit that no image could keep, or more pixels than Pillow opens.
    """

    max_bytes: int = 20 * 2**20
    max_pixels: int = 50_000_000

    def __post_init__(self) -> None:
        if self.max_bytes < 1:
            raise UserError(f"an image of at most {self.max_bytes} bytes: the limit must be 1 or more.")
        if not 1 <= self.max_pixels <= LARGEST_LIMIT:
            raise UserError(f"an image of at most {self.max_pixels} pixels: the limit must be 1 to {LARGEST_LIMIT}.")


DEFAULT_LIMITS = ImageLimits()


def check_size(size: int, label: str, limits: ImageLimits) -> None:
    """Raises ImageError for a file of no bytes, or of more than the limit."""
    if size == 0:
        raise ImageError(f"{label}: it is empty.")
    if size > limits.max_bytes:
        raise ImageError(
            f"{label}: larger than the limit of {round(limits.max_bytes / 2**20, 3):g} MiB; send a smaller one."
        )


def check_pixels(image: Image.Image, label: str, limits: ImageLimits) -> None:
    """Raises ImageError for an opened, not yet decoded image of too many pixels, or too long a side."""
    width, height = image.size
    if width * height > limits.max_pixels:
        raise ImageError(
            f"{label}: {width} x {height} pixels are more than the limit of {limits.max_pixels:,}; send a smaller one."
        )
    if max(width, height) > LONGEST_SIDE:
        raise ImageError(f"{label}: {width} x {height} pixels; a side may have {LONGEST_SIDE:,} at most.")


def check_scans(data: bytes, image: Image.Image, label: str, limits: ImageLimits) -> None:
    """Raises ImageError for a JPEG, opened as `image`, whose decoder would go through its pixels too often."""
    number = jpeg_segments.scans(data)
    if number > 1 and number * image.width * image.height > MOST_PASSES * limits.max_pixels:
        raise ImageError(
            f"{label}: a progressive JPEG of {number} scans over {image.width} x {image.height} pixels, which takes "
            "too long to decode; save it again."
        )


def check_anymap(data: bytes, label: str) -> None:
    """Raises ImageError for a PPM, PGM or PBM whose pixels, or too many other bytes, are text.

    Pillow reads text character by character, in Python.
    """
    if data[:2] in (b"P1", b"P2", b"P3"):
        raise ImageError(f"{label}: a {data[:2].decode()} file, whose pixels are text; save it as P6, or as PNG.")
    if data[1:2] != b"F" and not _ANYMAP_HEADER.match(data[:_HEADER_BYTES]):
        raise ImageError(f"{label}: a PPM whose width and height are not in its first {_HEADER_BYTES:,} bytes.")
