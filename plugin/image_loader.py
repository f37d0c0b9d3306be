"""An image file to an RGB picture, for training as for serving; what a stranger may have sent is looked at first."""

import re
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, TiffTags, UnidentifiedImageError
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from qwen_vqa.plugin import jpeg_segments, png_chunks
from qwen_vqa.plugin.errors import UserError

# What Pillow may try: no format that starts a program (EPS) or that nobody sends to a model (its other forty).
FORMATS = ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "AVIF")
ACCEPTED = "PNG, JPEG, WebP, GIF, AVIF, HEIC, TIFF, BMP and PPM"
# Above this Pillow has its own opinion of an image's size.
LARGEST_LIMIT = Image.MAX_IMAGE_PIXELS or 89_478_485
# The longer side; no format of those that people send has more.
LONGEST_SIDE = 65_535
# Encoders make some ten scans. Each costs a decoder one pass over all pixels: so many passes over the largest picture
# may be.
MOST_PASSES = 32
# A PPM's numbers stand at its beginning, with comments between them that Pillow reads byte by byte.
_ANYMAP_HEADER = re.compile(rb"P[456f](?:\s+(?:#[^\n]*\n\s*)*\d+){2,3}\s")
_HEADER_BYTES = 1024
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


def load_image(
    source: str | Path | bytes, name: str | None = None, limits: ImageLimits = DEFAULT_LIMITS
) -> Image.Image:
    """The first frame, turned as its EXIF says, alpha on white, 16 bits scaled to 8: RGB [H, W].

    Size in bytes and pixels is looked at before anything is decoded. What a file holds beside its pixels and its
    orientation is not looked at: broken or huge, it keeps no picture from being opened.

    Args:
        source: a path, or the file's bytes.
        name: what errors call it (default: the path).
        limits: larger images are refused.

    Raises:
        ImageError: no such file, not an image, another format, truncated, or too large.
    """
    label = name or (str(source) if not isinstance(source, bytes) else f"image of {len(source)} bytes")
    data = source if isinstance(source, bytes) else _read(Path(source), label, limits)
    check_size(len(data), label, limits)
    try:
        data, exif = _pixel_data(data)
        with _decoded(data, label, limits) as image:
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
        raise ImageError(f"{label}: broken or truncated ({error}).") from error


def check_size(size: int, label: str, limits: ImageLimits) -> None:
    """Raises ImageError for a file of no bytes, or of more than the limit."""
    if size == 0:
        raise ImageError(f"{label}: it is empty.")
    if size > limits.max_bytes:
        raise ImageError(
            f"{label}: larger than the limit of {round(limits.max_bytes / 2**20, 3):g} MiB; send a smaller one."
        )


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


def _decoded(data: bytes, label: str, limits: ImageLimits) -> Image.Image:
    if data[:2] in _ANYMAPS or data.startswith((b"P5", b"P6")):
        _check_anymap(data, label)
    image = Image.open(BytesIO(data), formats=_formats(data, label))
    _check_pixels(image, label, limits)
    if image.format == "JPEG":
        _check_scans(data, image, label, limits)
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


def _check_pixels(image: Image.Image, label: str, limits: ImageLimits) -> None:
    width, height = image.size
    if width * height > limits.max_pixels:
        raise ImageError(
            f"{label}: {width} x {height} pixels are more than the limit of {limits.max_pixels:,}; send a smaller one."
        )
    if max(width, height) > LONGEST_SIDE:
        raise ImageError(f"{label}: {width} x {height} pixels; a side may have {LONGEST_SIDE:,} at most.")


def _check_scans(data: bytes, image: Image.Image, label: str, limits: ImageLimits) -> None:
    number = jpeg_segments.scans(data)
    if number > 1 and number * image.width * image.height > MOST_PASSES * limits.max_pixels:
        raise ImageError(
            f"{label}: a progressive JPEG of {number} scans over {image.width} x {image.height} pixels, which takes "
            "too long to decode; save it again."
        )


def _check_anymap(data: bytes, label: str) -> None:
    """Pillow reads what is text in these files character by character, in Python."""
    if data[:2] in (b"P1", b"P2", b"P3"):
        raise ImageError(f"{label}: a {data[:2].decode()} file, whose pixels are text; save it as P6, or as PNG.")
    if data[1:2] != b"F" and not _ANYMAP_HEADER.match(data[:_HEADER_BYTES]):
        raise ImageError(f"{label}: a PPM whose width and height are not in its first {_HEADER_BYTES:,} bytes.")
