"""A PNG's chunks that its pixels are made of; text, profiles and times may be as large or broken as they like."""

import zlib
from struct import unpack_from

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_AROUND = 12  # length, name and checksum of a chunk
_ANCILLARY = 0x20  # in the name's first letter: a decoder may leave it out (PNG specification, 5.4)


def pixel_chunks(data: bytes) -> tuple[bytes, bytes | None]:
    """The file with its critical chunks and its transparency alone; and its EXIF.

    Further frames of an animation are ancillary, so that the first is left. An ancillary chunk with a wrong checksum
    is left out, as libpng and browsers do. Where the file ends in a chunk, the rest is handed on: the decoder knows
    whether it needed more.

    Raises:
        ValueError: the checksum of a critical chunk is wrong.
    """
    runs, exif = [], None
    start, position = 0, len(SIGNATURE)  # of the run of chunks that are kept, and of the chunk at hand
    while position + 8 <= len(data):
        length, name = unpack_from(">I4s", data, position)
        end = position + _AROUND + length
        if end > len(data) or not name.isalpha():
            break
        critical = not name[0] & _ANCILLARY
        intact = (critical or name in (b"tRNS", b"eXIf")) and _intact(data, position, end)
        if critical and not intact:
            raise ValueError(f"the checksum of its chunk {name.decode()} is wrong")
        if name == b"eXIf" and intact:
            exif = data[position + 8 : end - 4]
        if not (critical or (name == b"tRNS" and intact)):
            runs.append(data[start:position])
            start = end
        position = end
        if name == b"IEND":
            break
    return b"".join((*runs, data[start:])), exif


def _intact(data: bytes, position: int, end: int) -> bool:
    (checksum,) = unpack_from(">I", data, end - 4)
    return zlib.crc32(memoryview(data)[position + 4 : end - 4]) == checksum
