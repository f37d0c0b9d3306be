"""An image file to an RGB picture, for training as for serving; what a stranger may have sent is looked at first."""

import os
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageFile, TiffTags, UnidentifiedImageError
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from qwen_vqa.plugin.images import jpeg_segments, png_chunks
from qwen_vqa.plugin.images.image_limits import (
    DEFAULT_LIMITS,
    MOST_PASSES,
    ImageError,
    ImageLimits,
    check_anymap,
    check_pixels,
    check_scans,
    check_size,
)

# What Pillow may try: no format that starts a program (EPS) or that nobody sends to a model (its other forty).
FORMATS = ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "AVIF")
ACCEPTED = "PNG, JPEG, WebP, GIF, AVIF, HEIC, TIFF, BMP and PPM"
# Bytes at the beginning by which `looks_like_image` knows one.
HEAD = 16
_SIGNATURES = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"BM", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"P5", b"P6")
_ANYMAPS = (b"P1", b"P2", b"P3", b"P4", b"Pf", b"PF")
# EXIF's orientation, as what has to be done to the pixels.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
# Bytes of a progressive JPEG between two looks at whether to go on. A scan of all pixels may have so few.
_PIECE = 1024
# libtiff's own limit of a JPEG's scans, for each strip of a TIFF; it reads it when it decodes.
os.environ.setdefault("LIBTIFF_JPEG_MAX_ALLOWED_SCAN_NUMBER", str(MOST_PASSES))


class _File(BytesIO):
    """A picture's file that stops being read when `going_on` raises, and keeps what it raised."""

    def __init__(self, data: bytes, going_on: Callable[[], None] | None) -> None:
        super().__init__(data)
        self._going_on = going_on
        self.ended: Exception | None = None

    def read(self, size: int | None = -1, /) -> bytes:
        """As any file's."""
        if self._going_on:
            try:
                self._going_on()
            except Exception as error:
                self.ended = error
                raise
        return super().read(size)


def load_image(
    source: str | Path | bytes,
    name: str | None = None,
    limits: ImageLimits = DEFAULT_LIMITS,
    going_on: Callable[[], None] | None = None,
) -> Image.Image:
    """The first frame, turned as its EXIF says, alpha on white, 16 bits scaled to 8: RGB [H, W].

    Size in bytes and pixels is looked at before anything is decoded. What a file holds beside its pixels and its
    orientation is not looked at: broken or huge, it keeps no picture from being opened.

    Args:
        source: a path, or the file's bytes.
        name: what errors call it (default: the path).
        limits: larger images are refused.
        going_on: called between pieces of the file, where the format is decoded in pieces (JPEG, PNG, GIF, BMP, PPM).
            What it raises ends the work.

    Raises:
        ImageError: no such file, not an image, another format, truncated, or too large.
    """
    label = name or (str(source) if not isinstance(source, bytes) else f"image of {len(source)} bytes")
    data = source if isinstance(source, bytes) else _read(Path(source), label, limits)
    check_size(len(data), label, limits)
    file = _File(b"", going_on)
    try:
        data, exif = _pixel_data(data)
        file = _File(data, going_on)
        with _decoded(file, data, label, limits) as image:
            turn = _TURNS.get(_orientation(exif or image.info.get("exif")))
            rgb = to_rgb(image)
            return rgb if turn is None else rgb.transpose(turn)
    except ImageError:
        raise
    except UnidentifiedImageError as error:
        raise ImageError(f"{label}: not an image that can be read; {ACCEPTED} are.") from error
    except Image.DecompressionBombError as error:
        raise ImageError(f"{label}: its pixels are more than the limit of {limits.max_pixels:,}.") from error
    except MemoryError as error:
        raise ImageError(f"{label}: too large for this machine's memory.") from error
    except Exception as error:  # Pillow's decoders raise whatever a broken file makes them trip over
        if file.ended:
            raise file.ended from None
        raise ImageError(f"{label}: broken or truncated ({error}).") from error


def looks_like_image(head: bytes) -> bool:
    """Whether a file that begins so (`HEAD` bytes are enough) can be one of the accepted formats."""
    return (
        head.startswith((*_SIGNATURES, *_ANYMAPS))
        or (head[:4] == b"RIFF" and head[8:12] == b"WEBP")
        or head[4:8] == b"ftyp"
    )


def to_rgb(image: Image.Image) -> Image.Image:
    """Any mode to RGB: transparency on white, 16-bit grey scaled to 8 bits instead of clipped."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I"):
        grey = np.clip(np.asarray(image), 0, 65535) >> 8
        return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def _read(path: Path, label: str, limits: ImageLimits) -> bytes:
    try:
        check_size(path.stat().st_size, label, limits)
        return path.read_bytes()
    except FileNotFoundError as error:
        raise ImageError(f"{label}: no such file.") from error
    except OSError as error:
        raise ImageError(f"{label}: cannot be read ({error.strerror}).") from error


def _formats(data: bytes, label: str) -> tuple[str, ...]:
    if data[4:8] != b"ftyp" or data[8:12] not in _HEIF_BRANDS:
        return FORMATS
    if find_spec("pillow_heif") is None:
        raise ImageError(f"{label}: HEIC needs the package pillow-heif (`pip install pillow-heif`); or send a JPEG.")
    import_module("pillow_heif").register_heif_opener(thumbnails=False)
    return (*FORMATS, "HEIF")


def _pixel_data(data: bytes) -> tuple[bytes, bytes | None]:
    """The file as far as its pixels need it, and its EXIF where that was a part of the rest."""
    if data.startswith(png_chunks.SIGNATURE):
        return png_chunks.pixel_chunks(data)
    if data.startswith(jpeg_segments.SIGNATURE):
        return jpeg_segments.pixel_segments(data)
    return data, None


def _decoded(file: BytesIO, data: bytes, label: str, limits: ImageLimits) -> Image.Image:
    if data[:2] in _ANYMAPS or data.startswith((b"P5", b"P6")):
        check_anymap(data, label)
    image = Image.open(file, formats=_formats(data, label))
    check_pixels(image, label, limits)
    if image.format == "JPEG":
        check_scans(data, image, label, limits)
        if jpeg_segments.scans(data) > 1 and isinstance(image, ImageFile.ImageFile):
            image.decodermaxblock = _PIECE
    if image.mode == "F":  # only the sender knows its range
        raise ImageError(f"{label}: its pixels are floating point numbers; save it with 8 or 16 bits.")
    try:
        image.load()
    except OSError:
        ended = jpeg_segments.with_end(data) if image.format == "JPEG" else None
        if ended is None:
            raise
        image = Image.open(BytesIO(ended), formats=("JPEG",))
        image.load()
    return image


def _orientation(exif: bytes | None) -> int:
    """EXIF's tag; 1, upright, where there is none or the EXIF cannot be read, as browsers have it."""
    tag = ExifTags.Base.Orientation
    try:
        file = BytesIO((exif or b"").removeprefix(b"Exif\0\0"))
        directory = ImageFileDirectory_v2(file.read(8))
        file.seek(directory.next)
        directory.load(file)
        return directory[tag] if directory.tagtype.get(tag) == TiffTags.SHORT else 1
    except Exception:  # as with broken pixels: whatever it makes Pillow trip over
        return 1
