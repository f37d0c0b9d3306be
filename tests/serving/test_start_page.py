"""The page at the server's own address."""

from html.parser import HTMLParser

import httpx

from tests.server import Server
from tests.serving.conftest import GUARDED_LIMITS, GuardedServer


class Page(HTMLParser):
    """The text and the links of a page."""

    def __init__(self, html: str):
        super().__init__()
        self.text, self.links = "", []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "a":
            self.links.append(dict(attrs)["href"])

    def handle_data(self, data: str) -> None:
        self.text += data


def get(address: str, **headers: str) -> tuple[httpx.Response, Page]:
    reply = httpx.get(address, headers=headers)
    assert reply.status_code == 200
    assert reply.headers["content-type"].startswith("text/html")
    return reply, Page(reply.text)


def test_without_keys_it_names_the_models_and_its_links_lead_somewhere(tiny_server: Server):
    address = tiny_server.url.removesuffix("v1")
    _, page = get(address)
    assert "tiny, tiny-lora" in page.text
    assert f'base_url="{tiny_server.url}"' in page.text
    assert 'model="tiny"' in page.text
    assert "docs" in page.links
    for link in page.links:
        assert httpx.get(address + link).status_code == 200


def test_with_keys_it_names_nothing_that_takes_a_key(guarded_server: GuardedServer):
    _, page = get(guarded_server.address)
    _, keyed = get(guarded_server.address, **guarded_server.headers("quiet"))
    for text in (page.text, keyed.text):
        assert "tiny" not in text
        assert not any(name in text for name in GUARDED_LIMITS)
        assert "--api-key YOUR_KEY" in text
    assert "docs" not in page.links


def test_a_host_that_is_none_is_not_written_into_it(tiny_server: Server):
    address = tiny_server.url.removesuffix("v1")
    reply, page = get(address, host="<script>alert(1)</script>")
    assert "<script>" not in reply.text
    assert 'base_url="http://localhost/v1"' in page.text
    assert "default-src 'none'" in reply.headers["content-security-policy"]
