"""Pictures that a stranger sends to do harm, and large ones that he may send."""

import io
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

BOMB = Path(__file__).parent / "images" / "decompression_bomb.gif"


def jpeg_of_many_scans(side: int, scans: int) -> bytes:
    """A progressive JPEG of one colour whose last scan is repeated, which changes no pixel and takes as long."""
    whole = _saved(Image.new("RGB", (side, side), (200, 30, 30)), "JPEG", progressive=True)
    last = whole[whole.rindex(b"\xff\xda") : -2]
    return whole[:-2] + last * (scans - whole.count(b"\xff\xda")) + whole[-2:]


def png_that_says(width: int, height: int) -> bytes:
    """A small PNG whose header claims so many pixels, with less than a line of them."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 1000)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


def refused_pictures() -> dict[str, bytes]:
    """What the bounds are there for, by what is wrong with each."""
    noise = np.random.default_rng(1).integers(0, 256, (64, 64, 3), np.uint8)
    whole = _saved(Image.fromarray(noise), "JPEG")
    return {
        "a GIF that claims gigapixels": BOMB.read_bytes(),
        "a PNG of 13,000 x 13,000": png_that_says(13_000, 13_000),
        "a PNG of 1 x 50,000,000": png_that_says(1, 50_000_000),
        "a JPEG of 1,500 scans": jpeg_of_many_scans(6000, 1500),
        "a PPM in text": b"P3 2000 2000 255\n" + b"1 " * 1000,
        "a PPM with comments": b"P6\n" + b"# a comment\n" * 10_000 + b"2 2 255\n" + bytes(12),
        "half a JPEG": whole[: len(whole) // 2],
        "21 MiB": whole + bytes(21 * 2**20),
        "nothing": b"",
        "text": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    }


def large_pictures(count: int, seed: int) -> Iterator[bytes]:
    """Distinct pictures within the bounds: JPEGs of 24 megapixels, as phones take them."""
    generator = np.random.default_rng(seed)
    for _ in range(count):
        small = generator.integers(0, 256, (30, 40, 3), np.uint8)
        yield _saved(Image.fromarray(small).resize((5656, 4242)), "JPEG", quality=80)


def _saved(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()
