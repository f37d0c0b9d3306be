"""Data URLs in the spellings that clients send."""

import base64
import textwrap

import pytest

from qwen_vqa.plugin.images.data_url import data_url_bytes
from qwen_vqa.plugin.images.image_limits import ImageError, ImageLimits

DATA = bytes(range(256)) * 4 + b"?>~"  # every letter of base64, and padding
CODE = base64.b64encode(DATA + b"\xff").decode()
URL_SAFE = base64.urlsafe_b64encode(DATA + b"\xff").decode()
LIMITS = ImageLimits(max_bytes=4096)


def read(url: str) -> bytes:
    return data_url_bytes(url, "messages[0].content[1]", LIMITS)


@pytest.mark.parametrize(
    "url",
    [
        f"data:image/png;base64,{CODE}",
        f"data:image/jpg;base64,{CODE}",
        f"DATA:IMAGE/PNG;BASE64,{CODE}",
        f"data:;base64,{CODE}",
        f"data:base64,{CODE}",
        f"data:application/octet-stream;base64,{CODE}",
        f"data:image/png;name=a.png;base64,{CODE}",
        "data:image/png;base64,\n" + "\n".join(textwrap.wrap(CODE, 76)),
        "data:image/png;base64," + "%0A".join(textwrap.wrap(CODE, 76)),
        f"data:image/png;base64,{CODE.replace('+', '%2B').replace('/', '%2F').replace('=', '%3D')}",
        f"data:image/png;base64,{URL_SAFE}",
        f"data:image/png;base64,{CODE.rstrip('=')}",
    ],
)
def test_is_read(url: str):
    assert "+" in CODE and "/" in CODE and CODE.endswith("=")
    assert read(url) == DATA + b"\xff"


@pytest.mark.parametrize("media_type", ["text/plain", "multipart/form-data", "application/pdf"])
def test_an_image_is_one_whatever_its_type_says(media_type: str):
    picture = b"\x89PNG\r\n\x1a\n" + DATA
    assert read(f"data:{media_type};base64,{base64.b64encode(picture).decode()}") == picture


@pytest.mark.parametrize(
    ("url", "fault"),
    [
        ("data:image/png;base64", "without a comma"),
        ("data:image/png,abc", "not base64"),
        ("data:text/html;base64,PGI+", "type 'text/html'"),
        ("data:image/png;base64,", "empty"),
        ("data:image/png;base64,====", "empty"),
        ("data:image/png;base64,ab!d", r"character '!' at 2"),
        ("data:image/png;base64,abcde", "cut off"),
        ("data:image/png;base64,ábcd", "character 'á' at 0"),
        ("data:image/png;base64,QUJD=QUJD", "character '=' at 4"),
    ],
)
def test_is_refused_with_the_fault(url: str, fault: str):
    with pytest.raises(ImageError, match=rf"messages\[0\]\.content\[1\]: .*{fault}"):
        read(url)


def test_a_large_one_is_refused_before_it_is_decoded(monkeypatch):
    monkeypatch.setattr(base64, "b64decode", lambda *args, **kwargs: pytest.fail("decoded"))
    with pytest.raises(ImageError, match=r"larger than the limit of 0\.004 MiB"):
        read("data:image/png;base64," + "A" * 10_000)


def test_just_over_the_limit_is_refused_too():
    with pytest.raises(ImageError, match="larger than the limit"):
        read("data:image/png;base64," + base64.b64encode(bytes(4097)).decode())
    assert len(read("data:image/png;base64," + base64.b64encode(bytes(4096)).decode())) == 4096
