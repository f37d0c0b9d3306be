"""Images of a chat: looked at before they are sent, and sent no larger than a model can use."""

import mimetypes
from dataclasses import dataclass
from io import BytesIO
from urllib.parse import urlsplit

from PIL import Image

from qwen_vqa.plugin.errors import UserError
from qwen_vqa.plugin.images.image_loader import load_image
from qwen_vqa.plugin.images.message_parts import data_url

# A file within both goes to the server byte for byte; a larger one is scaled, since every question sends it again.
LARGEST_SIDE = 2048
LARGEST_BYTES = 2 * 2**20
THUMBNAIL_SIDE = 512
JPEG_QUALITY = 92
SUFFIXES = ("png", "jpg", "jpeg", "webp", "gif", "avif", "heic", "tif", "tiff", "bmp", "ppm")


@dataclass(frozen=True, eq=False)
class ChatPicture:
    """An image in the chat.

    `url` is what the server gets, a data URL or a web address; `shown` is what the page shows, a small file's bytes
    or the web address; `scaled` says what was done to it, if anything.
    """

    name: str
    url: str
    shown: bytes | str
    scaled: str = ""


def picture_from_file(data: bytes, name: str) -> ChatPicture:
    """An upload, read by the loader that training and serving use, within its limits.

    Raises:
        ImageError: not an image, broken, or too large.
    """
    image = load_image(data, name)
    shown = _jpeg(image, THUMBNAIL_SIDE)
    if max(image.size) <= LARGEST_SIDE and len(data) <= LARGEST_BYTES:
        return ChatPicture(name, data_url(data, mimetypes.guess_type(name)[0] or "image/png"), shown)
    sent = image.copy()
    sent.thumbnail((LARGEST_SIDE, LARGEST_SIDE))
    scaled = f"{image.width} x {image.height}, sent as JPEG of {sent.width} x {sent.height}"
    return ChatPicture(name, data_url(_jpeg(sent, LARGEST_SIDE), "image/jpeg"), shown, scaled)


def picture_from_url(url: str) -> ChatPicture:
    """An image on the web: the server fetches it, and says if it cannot.

    Raises:
        UserError: not an http(s) address.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise UserError(f"{url}: an address that begins with https:// or http:// is needed.")
    return ChatPicture(parts.path.rpartition("/")[2] or parts.netloc, url, url)


def _jpeg(image: Image.Image, side: int) -> bytes:
    small = image.copy()
    small.thumbnail((side, side))
    buffer = BytesIO()
    small.save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()
