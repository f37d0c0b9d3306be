"""A JPEG's segments that its pixels are made of, and whether a file that ends early lacks any of them."""

import re
from collections.abc import Iterator
from struct import unpack_from

import simplejpeg

SIGNATURE = b"\xff\xd8\xff"
END = b"\xff\xd9"
_SCAN = b"\xff\xda"
_END_OF_FILL = re.compile(rb"[^\xff]|\Z")
_START_OF_SCAN, _END = 0xDA, 0xD9
_WITHOUT_LENGTH = frozenset((0x00, 0x01, 0xFF, *range(0xD0, 0xD9)))
_FRAMES = frozenset((*range(0xC0, 0xC4), *range(0xC5, 0xC8), *range(0xC9, 0xCC), *range(0xCD, 0xD0)))
# JFIF and Adobe say which colours the numbers mean; they need so many bytes to say it. The other APPn and the comment
# are for people: thumbnails, makers' notes, colour profiles.
_COLOUR_BYTES = {0xE0: 14, 0xEE: 12}
_SIDE_DATA = frozenset((*range(0xE0, 0xF0), 0xFE))
_COEFFICIENTS = 64
_MOST_FILL = 1024  # bytes between two segments


def pixel_segments(data: bytes) -> tuple[bytes, bytes | None]:
    """The file without the segments, and the fill bytes, that its pixels do not need; and its EXIF, from "Exif" on."""
    runs, exif = [], None
    start, before = 0, 2  # of the run that is kept; behind the segment before
    for position, marker, end in _segments(data):
        if position - before > _MOST_FILL and not data[before:position].strip(b"\xff"):
            runs.append(data[start:before])  # Pillow would go through them one at a time
            start = position
        before = end
        if marker not in _SIDE_DATA or end - position - 4 >= _COLOUR_BYTES.get(marker, len(data)):
            continue
        if marker == 0xE1 and exif is None and data.startswith(b"Exif\0\0", position + 4):
            exif = data[position + 4 : end]
        runs.append(data[start:position])
        start = end
    return b"".join((*runs, data[start:])), exif


def scans(data: bytes) -> int:
    """How often a decoder goes through the picture: each scan of a progressive file adds to all of it."""
    return data.count(_SCAN)


def with_end(data: bytes) -> bytes | None:
    """The file with an end marker, if that is all that it lacks; None if pixels are missing, too.

    libjpeg warns where it has to make up a pixel. It cannot know of scans that were to come: those are counted here.
    """
    ended = data + END
    try:
        _, _, colours, _ = simplejpeg.decode_jpeg_header(ended)
        simplejpeg.decode_jpeg(ended, "CMYK" if "CMYK" in colours or "YCCK" in colours else "GRAY", strict=True)
    except ValueError:
        return None
    return ended if _has_every_scan(ended) else None


def _segments(data: bytes, position: int = 2) -> Iterator[tuple[int, int, int]]:
    """(start, marker, end) of each segment up to the first scan; less where the file is odd, which the decoder says."""
    while 0 <= (position := data.find(b"\xff", position)) < len(data) - 3:
        marker = data[position + 1]
        if marker == 0xFF:
            position = _END_OF_FILL.search(data, position).start() - 1  # type: ignore[union-attr] # at worst at the end
            continue
        if marker in _WITHOUT_LENGTH:
            position += 2
            continue
        end = position + 2 + unpack_from(">H", data, position + 2)[0]
        if marker == _END or not position + 4 <= end <= len(data):
            return
        yield position, marker, end
        if marker == _START_OF_SCAN:
            return
        position = end


def _has_every_scan(data: bytes) -> bool:
    """Whether the scans bring every coefficient of every component to its last bit (ITU-T T.81, G.1)."""
    missing_bits: dict[int, list[int]] = {}
    position = 2
    while True:
        segments = list(_segments(data, position))
        for start, marker, end in segments:
            if marker in _FRAMES:
                components = data[start + 10 : end : 3]
                missing_bits = {component: [16] * _COEFFICIENTS for component in components}
            elif marker == _START_OF_SCAN:
                count = data[start + 4]
                first, last, bits = data[start + 5 + 2 * count : start + 8 + 2 * count]
                for component in data[start + 5 : start + 5 + 2 * count : 2]:
                    missing_bits[component][first : last + 1] = [bits & 15] * (last + 1 - first)
        if not segments or segments[-1][1] != _START_OF_SCAN:
            return bool(missing_bits) and not any(map(any, missing_bits.values()))
        position = segments[-1][2]
