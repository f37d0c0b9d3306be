"""One browser and one chat page for all tests here; which server the page talks to is the wire's business."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser

from tests.browser import Wire, chromium, wire
from tests.chat import Chat, chat_page, visit
from tests.server import Server


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    with chromium() as running:
        yield running


@pytest.fixture(scope="package")
def laid() -> Iterator[Wire]:
    with wire() as one:
        yield one


@pytest.fixture(scope="package")
def guarded_key() -> str:
    return "chat-once-a-minute-secret-0123456789"


@pytest.fixture(scope="package")
def page_url(laid: Wire, guarded_key: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with chat_page(laid.url, tmp_path_factory.mktemp("chat") / "page.log", guarded_key) as url:
        yield url


@pytest.fixture
def chat(browser: Browser, page_url: str, laid: Wire, demo_server: Server) -> Iterator[Chat]:
    """A new visitor to the page of the demo's server."""
    laid.lay(demo_server.url)
    with visit(browser, page_url) as visitor:
        yield visitor
