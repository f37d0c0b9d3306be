"""Oddities beside the pixels keep no picture from being opened; what the pixels need still has to be there.

What is right comes from Pillow, which opens the same picture without the oddity; and from a browser.
"""

import contextlib
import io
import struct
import time
import tracemalloc
import zlib
from base64 import b64encode
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from qwen_vqa.plugin.images.image_limits import ImageError, ImageLimits
from qwen_vqa.plugin.images.image_loader import load_image
from qwen_vqa.plugin.images.image_source import open_image
from tests.browser import chromium
from tests.hostile_images import jpeg_of_many_scans

IMAGES = Path(__file__).parents[2] / "images"
HOPPER = Image.open(IMAGES / "hopper.jpg").convert("RGB")
END = 2  # bytes of a JPEG's end marker
LARGE = ImageLimits(max_bytes=100 * 2**20)


def saved(image: Image.Image, image_format: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def chunk(name: bytes, content: bytes, checksum: int | None = None) -> bytes:
    right = zlib.crc32(name + content)
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", right if checksum is None else checksum)


def with_chunks(png: bytes, *chunks: bytes, before: bytes = b"IDAT") -> bytes:
    at = png.index(before) - 4
    return png[:at] + b"".join(chunks) + png[at:]


BOMB = zlib.compress(bytes(100 * 2**20))  # 100 kB that inflate to 100 MiB
SIDE_CHUNKS = {
    "a profile that inflates to 100 MiB": [chunk(b"iCCP", b"icc\0\0" + BOMB)],
    "a profile compressed in an unknown way": [chunk(b"iCCP", b"icc\0\7" + BOMB)],
    "text that inflates to 100 MiB": [chunk(b"zTXt", b"Comment\0\0" + BOMB)],
    "international text that inflates to 100 MiB": [chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + BOMB)],
    "80 texts of 1 MB": [chunk(b"tEXt", b"k%d\0" % number + b"a" * 10**6) for number in range(80)],
    "text with a wrong checksum": [chunk(b"tEXt", b"Comment\0hello", checksum=1)],
    "a private chunk with a wrong checksum": [chunk(b"prVt", b"?", checksum=1)],
    "an empty gamma": [chunk(b"gAMA", b"")],
    "transparency with a wrong checksum": [chunk(b"tRNS", bytes(6), checksum=1)],
    "frames of an animation that are none": [chunk(b"acTL", b""), chunk(b"fcTL", b"")],
    "EXIF that is none": [chunk(b"eXIf", b"no EXIF")],
}


@pytest.mark.parametrize("before", [b"IDAT", b"IEND"])
@pytest.mark.parametrize("name", SIDE_CHUNKS)
def test_a_pngs_ancillary_chunks_do_not_matter(name: str, before: bytes):
    png = with_chunks(saved(HOPPER, "PNG"), *SIDE_CHUNKS[name], before=before)
    assert len(png) < 100 * 2**20
    tracemalloc.start()
    opened = load_image(png, limits=LARGE)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (np.asarray(opened) == np.asarray(HOPPER)).all()
    assert peak < 3 * len(png) + 10 * 2**20  # never what it inflates to


@pytest.mark.parametrize("name", ["IHDR", "PLTE", "IDAT", "IEND"])
def test_a_wrong_checksum_of_what_the_pixels_need_is_refused(name: str):
    png = bytearray(saved(HOPPER.quantize(16), "PNG"))
    at = png.index(name.encode())
    (length,) = struct.unpack(">I", png[at - 4 : at])
    png[at + 4 + length] ^= 1
    with pytest.raises(ImageError, match=f"the checksum of its chunk {name} is wrong"):
        load_image(bytes(png))


def test_a_pngs_transparency_counts_when_its_checksum_is_right():
    png = with_chunks(saved(Image.new("RGB", (8, 8), "black"), "PNG"), chunk(b"tRNS", bytes(6)))
    assert load_image(png).getpixel((0, 0)) == (255, 255, 255)


JPEGS: dict[str, Callable[[], bytes]] = {
    "one scan": lambda: (IMAGES / "hopper.jpg").read_bytes(),
    "grey": lambda: saved(HOPPER.convert("L"), "JPEG"),
    "CMYK": lambda: (IMAGES / "pil_sample_cmyk.jpg").read_bytes(),
    "progressive": lambda: saved(HOPPER, "JPEG", progressive=True),
    "a restart in every row": lambda: saved(HOPPER, "JPEG", restart_marker_rows=1),
    "nothing to see": lambda: saved(Image.new("RGB", (512, 512), "grey"), "JPEG", restart_marker_rows=1),
    "a camera's, with odd EXIF": lambda: (IMAGES / "exif_orientation_odd_interop.jpg").read_bytes(),
}


@pytest.mark.parametrize("name", JPEGS)
def test_a_jpeg_that_lacks_only_its_end_marker_is_opened(name: str):
    whole = JPEGS[name]()
    assert whole.endswith(b"\xff\xd9")
    for missing in (1, END):
        assert (np.asarray(load_image(whole[:-missing])) == np.asarray(load_image(whole))).all()


@pytest.mark.parametrize("name", JPEGS)
def test_a_jpeg_that_lacks_pixels_is_refused(name: str):
    whole = JPEGS[name]()
    scan = whole.rindex(b"\xff\xda")
    inside = [len(whole) - END - missing for missing in (1, 2, 5, 50)]
    # Where a decoder sees nothing missing: at the restarts, and before each further scan.
    at_markers = [at for at in range(300, len(whole) - END) if whole[at] == 0xFF and whole[at + 1] not in (0, 0xFF)]
    for cut in {*inside, scan + 20, len(whole) // 2, *at_markers, *(at + 2 for at in at_markers)}:
        with pytest.raises(ImageError, match=r"broken or truncated|not an image"):
            load_image(whole[:cut])


def test_and_a_file_of_a_data_set(tmp_path: Path):
    whole = JPEGS["progressive"]()
    path = tmp_path / "cut.jpg"
    path.write_bytes(whole[:-END])
    assert (np.asarray(open_image(path)) == np.asarray(load_image(whole))).all()
    path.write_bytes(whole[:-9])
    with pytest.raises(ImageError, match=r"cut\.jpg: broken or truncated"):
        open_image(path)


def test_pillows_own_jpeg_without_its_last_byte():
    data = (IMAGES / "truncated_jpeg.jpg").read_bytes()
    with Image.open(io.BytesIO(data + b"\xd9")) as whole:
        assert (np.asarray(load_image(data)) == np.asarray(whole)).all()


def oriented(orientation: int, *more: tuple[int, int, int, bytes], tag_type: int = 3) -> bytes:
    """EXIF with the tag in its first directory, and more entries of (tag, type, count, value)."""
    value = orientation.to_bytes(2 if tag_type == 3 else 4, "big").ljust(4, b"\0")
    entries = [(0x112, tag_type, 1, value), *more]
    directory = b"".join(struct.pack(">HHI4s", *entry) for entry in sorted(entries))
    return b"Exif\0\0MM\0*" + struct.pack(">IH", 8, len(entries)) + directory + bytes(4)


ODD_TAGS = {
    "nothing else": (),
    "an Interop directory beyond the end": ((0x8769, 4, 1, struct.pack(">I", 2**31)),),
    "a resolution that is text": ((0x11A, 2, 1, b"\0\0\0\0"), (0x128, 2, 1, b"x\0\0\0")),
    "a type that there is not": ((0x927C, 99, 7, b"????"),),
    "a directory that contains itself": ((0x8769, 4, 1, struct.pack(">I", 8)),),
}


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("odd", ODD_TAGS)
def test_a_picture_is_turned_whatever_else_its_exif_holds(odd: str, image_format: str):
    for orientation in range(1, 9):
        opened = load_image(saved(HOPPER, image_format, exif=oriented(orientation, *ODD_TAGS[odd])))
        plain = Image.open(io.BytesIO(saved(HOPPER, image_format, exif=oriented(orientation))))
        assert (np.asarray(ImageOps.exif_transpose(plain).convert("RGB")) == np.asarray(opened)).all()


def test_a_cameras_exif_that_pillow_cannot_write_back():
    odd = IMAGES / "exif_orientation_odd_interop.jpg"
    with Image.open(odd) as image, pytest.raises(Exception):  # noqa: B017 - whatever it is, it is Pillow's
        ImageOps.exif_transpose(image)
    with Image.open(odd) as image:
        upright = image.transpose(Image.Transpose.ROTATE_270)
    assert (np.asarray(load_image(odd)) == np.asarray(upright)).all()


@pytest.mark.parametrize("exif", [b"Exif\0\0", b"Exif\0\0no TIFF", oriented(9), oriented(0), oriented(6)[:14]])
def test_exif_that_says_nothing_turns_nothing(exif: bytes):
    assert load_image(saved(HOPPER, "JPEG", exif=exif)).size == HOPPER.size


XMP = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="r" xmlns:tiff="t"><rdf:Description tiff:Orientation="6"/>'
)
IN_A_BROWSER = {
    "a wrong checksum of a text": lambda: with_chunks(saved(HOPPER, "PNG"), chunk(b"tEXt", b"k\0v", checksum=1)),
    "a wrong checksum of the transparency": lambda: with_chunks(
        saved(Image.new("RGB", (8, 8), "black"), "PNG"), chunk(b"tRNS", bytes(6), checksum=1)
    ),
    "EXIF of a PNG": lambda: saved(HOPPER.crop((0, 0, 128, 64)), "PNG", exif=oriented(6)),
    "odd EXIF": JPEGS["a camera's, with odd EXIF"],
    "an orientation in XMP alone": lambda: saved(HOPPER.crop((0, 0, 128, 64)), "JPEG", xmp=XMP),
    "an orientation of another type": lambda: saved(HOPPER.crop((0, 0, 128, 64)), "JPEG", exif=oriented(6, tag_type=4)),
}
DRAW = """async url => {
    const image = new Image()
    image.src = url
    await image.decode()
    const canvas = new OffscreenCanvas(image.naturalWidth, image.naturalHeight)
    const context = canvas.getContext('2d')
    context.drawImage(image, 0, 0)
    return [canvas.width, canvas.height, Array.from(context.getImageData(0, 0, canvas.width, canvas.height).data)]
}"""


@pytest.fixture(scope="module")
def page():
    with chromium() as browser:
        yield browser.new_page()


@pytest.mark.parametrize("name", IN_A_BROWSER)
def test_it_looks_as_in_a_browser(page, name: str):
    data = IN_A_BROWSER[name]()
    width, height, pixels = page.evaluate(DRAW, f"data:image/*;base64,{b64encode(data).decode()}")
    shown = np.asarray(pixels).reshape(height, width, 4)[:, :, :3]
    opened = np.asarray(load_image(data)).astype(int)
    assert opened.shape == shown.shape
    assert np.abs(opened - shown).mean() < 2  # decoders round


def test_a_jpeg_of_many_scans_is_refused_where_decoding_takes_long():
    """libjpeg-turbo's own advice; one such file of 224 KiB held a decoder for a minute."""
    with pytest.raises(ImageError, match="progressive JPEG of 1500 scans over 6000 x 6000 pixels"):
        load_image(jpeg_of_many_scans(6000, 1500))
    assert load_image(jpeg_of_many_scans(6000, 20)).size == (6000, 6000)
    assert load_image(jpeg_of_many_scans(300, 1500)).size == (300, 300)


SLOW = {
    "fill bytes before a marker": saved(HOPPER, "JPEG")[:2] + b"\xff" * 10**7 + saved(HOPPER, "JPEG")[2:],
    "a PPM's comment of 10 MB": b"P6\n#" + b"a" * 10**7 + b"\n2 2\n255\n" + bytes(12),
    "a PPM in text": b"P3\n1800 1800\n255\n" + b"1 " * (1800 * 1800 * 3),
    "a PNG of one pixel's width": saved(Image.new("RGB", (1, 10**6)), "PNG"),
    "a PGM whose numbers never come": b"P5\n" + b"#\n" * 10**6,
}


@pytest.mark.parametrize("name", SLOW)
def test_no_file_is_read_byte_by_byte(name: str):
    """By the processor time that it takes, of which a byte in Python needs half a microsecond."""
    started = time.process_time()
    with contextlib.suppress(ImageError):
        assert load_image(SLOW[name]).size == HOPPER.size
    assert time.process_time() - started < 1


def test_fill_bytes_change_no_pixel():
    filled = load_image(SLOW["fill bytes before a marker"])
    assert (np.asarray(filled) == np.asarray(load_image(saved(HOPPER, "JPEG")))).all()


@pytest.mark.parametrize("mode", ["1", "L", "RGB"])
def test_binary_anymaps_are_opened_with_comments_too(mode: str):
    plain = saved(HOPPER.convert(mode), "PPM")
    commented = plain[:2] + b"\n# by a camera\n" + plain[3:]
    assert (np.asarray(load_image(commented)) == np.asarray(HOPPER.convert(mode).convert("RGB"))).all()
