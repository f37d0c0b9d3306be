"""Pictures for requests: drawn from a seed, or the user's own files, as data URLs."""

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from qwen_vqa.plugin.errors import UserError
from qwen_vqa.plugin.images.message_parts import data_url

JPEG_QUALITY = 90
# By suffix, what `qwen-vqa serve` takes (HEIC where the server has pillow-heif).
MEDIA_TYPES = {
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".png": "image/png",
    ".webp": "image/webp",
    ".gif": "image/gif",
    ".avif": "image/avif",
    ".heic": "image/heic",
    ".heif": "image/heif",
    ".tif": "image/tiff",
    ".tiff": "image/tiff",
    ".bmp": "image/bmp",
    ".ppm": "image/x-portable-pixmap",
    ".pgm": "image/x-portable-graymap",
    ".pbm": "image/x-portable-bitmap",
}


@dataclass(frozen=True)
class SampleImage:
    """A picture that is not made yet: a file, a URL, or a drawing of this seed and size (pixels)."""

    seed: int = 0
    width: int = 0
    height: int = 0
    source: str | None = None

    def url(self) -> str:
        """What goes into `image_url`.

        Raises:
            UserError: the file cannot be read.
        """
        if self.source is None:
            return data_url(draw(self.seed, self.width, self.height), "image/jpeg")
        if self.source.startswith(("http://", "https://", "data:")):
            return self.source
        # An image that a question file names may have another suffix; servers look at the bytes.
        kind = MEDIA_TYPES.get(Path(self.source).suffix.lower(), "image/jpeg")
        return data_url(_read(self.source), kind)


def draw(seed: int, width: int, height: int) -> bytes:
    """A JPEG of soft colours, hard-edged blocks and grain, which takes about as many bytes as a photograph."""
    random = np.random.default_rng([seed, width, height])
    soft = Image.fromarray(random.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    pixels = np.asarray(soft.resize((width, height), Image.Resampling.BICUBIC)).astype(np.int16)
    for _ in range(6):
        left, top = random.integers(0, width), random.integers(0, height)
        right, bottom = left + random.integers(1, width // 3 + 2), top + random.integers(1, height // 3 + 2)
        pixels[top:bottom, left:right] = random.integers(0, 256, 3)
    grain = random.integers(-8, 9, (height, width, 1), dtype=np.int16)
    file = io.BytesIO()
    Image.fromarray(np.clip(pixels + grain, 0, 255).astype(np.uint8)).save(file, "JPEG", quality=JPEG_QUALITY)
    return file.getvalue()


def _read(source: str) -> bytes:
    try:
        return Path(source).read_bytes()
    except OSError as error:
        raise UserError(f"the image {source} cannot be read ({error.strerror}).") from None
