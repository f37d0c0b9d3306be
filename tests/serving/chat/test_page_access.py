"""The chat page for those who do not see it, use no mouse, like it dark, or have a phone: axe-core and the keyboard."""

from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Locator, Page, expect

from qwen_vqa.serving import DEMO_IMAGES
from tests.browser import Wire
from tests.chat import Chat, visit
from tests.server import Server

PHONE: dict[str, Any] = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}
WIDE: dict[str, Any] = {}
# A refused file's chip is Streamlit's: a button (try again) in which another stands (remove).
STREAMLITS_OWN = {"nested-interactive": ".stFileChip"}
MOST_KEYS = 60
LISTEN = """
() => {
  let speaks, said;
  window.heard = [];
  new MutationObserver(() => {
    const now = document.querySelector("[role=status].st-key-announced");
    if (now && now === speaks && now.innerText !== said) heard.push(now.innerText);
    [speaks, said] = [now, now?.innerText];
  }).observe(document.body, {childList: true, subtree: true, characterData: true, attributes: true});
}
"""


def violations(page: Page) -> list[str]:
    """What axe-core finds, each with the elements and its reason."""
    found = Axe().run(page).response["violations"]
    return [
        f"{rule['id']}: {node['target']} {[one['message'] for one in node['any'] + node['all'] + node['none']]}"
        for rule in found
        for node in rule["nodes"]
        if STREAMLITS_OWN.get(rule["id"]) not in node["target"]
    ]


def nothing_open(page: Page) -> None:
    """No menu, tooltip or popover stands over the page any more."""
    page.mouse.move(0, 0)
    expect(page.locator("#stFloatingOverlayPortal > *")).to_have_count(0)


def press_until(page: Page, key: str, wanted: Locator) -> None:
    """Go with a key alone to what is wanted."""
    for _ in range(MOST_KEYS):
        page.keyboard.press(key)
        if wanted.evaluate("element => element === document.activeElement"):
            return
    raise AssertionError(f"{key} does not reach {wanted}")


@pytest.mark.parametrize(("form", "scheme"), [(WIDE, "dark"), (PHONE, "light")], ids=["wide and dark", "phone"])
def test_axe_finds_nothing_in_any_state_of_the_page(
    browser: Browser, page_url: str, laid: Wire, demo_server: Server, tmp_path: Path, form: dict, scheme: str
):
    laid.lay(demo_server.url)
    with visit(browser, page_url, color_scheme=scheme, **form) as chat:
        # The page's style comes with a part of Streamlit that the browser loads a moment later.
        expect(chat.page.get_by_test_id("stCaptionContainer").last).to_have_css("opacity", "0.8")
        nothing_open(chat.page)
        assert violations(chat.page) == []
        if form is PHONE:
            chat.page.get_by_test_id("stExpandSidebarButton").click()
        chat.page.get_by_text("Settings").click()
        chat.choose("sentences (adapter)", "Compare with")
        expect(chat.page.get_by_role("textbox", name="System prompt")).to_be_visible()
        nothing_open(chat.page)
        assert violations(chat.page) == []
        if form is PHONE:
            chat.page.get_by_role("button", name="Collapse sidebar").click()
        chat.ask("What shape is pink?", DEMO_IMAGES / "shapes.png")
        chat.answers(2)
        for popover in ("Picture from the web", "Take a picture", "Copy"):
            chat.page.get_by_role("button", name=popover).first.click()
            expect(chat.page.get_by_test_id("stPopoverBody")).to_be_visible()
            assert violations(chat.page) == []
            chat.page.keyboard.press("Escape")
            nothing_open(chat.page)
        chat.attach_url("/etc/passwd")
        chat.error()
        chat.page.keyboard.press("Escape")
        (tmp_path / "paper.pdf").write_bytes(b"%PDF-1.4")
        chat.page.locator("[data-testid=stChatInput] input[type=file]").first.set_input_files(tmp_path / "paper.pdf")
        expect(chat.page.get_by_test_id("stFileChip")).to_be_visible()
        nothing_open(chat.page)
        assert violations(chat.page) == []


def test_a_refused_pdf_says_in_words_why(chat: Chat, tmp_path: Path):
    (tmp_path / "paper.pdf").write_bytes(b"%PDF-1.4")
    chat.page.locator("[data-testid=stChatInput] input[type=file]").first.set_input_files(tmp_path / "paper.pdf")
    said = chat.page.get_by_test_id("stFileChip").get_by_role("alert")
    expect(said).to_contain_text("pdf")
    box = said.bounding_box()
    assert box is not None and box["width"] > 100 and box["height"] > 12


def test_each_answer_is_read_out_by_an_element_that_was_there_before(chat: Chat):
    """Screen readers read what changes in an element of this role, not an element that comes with its text."""
    chat.page.evaluate(LISTEN)
    chat.ask("What shape is pink?", DEMO_IMAGES / "shapes.png")
    chat.answers(1)
    chat.ask("Where is the ring?")
    chat.answers(2)
    expect(chat.page.get_by_role("status").filter(has_text="bottom left")).to_have_count(1)
    heard = chat.page.evaluate("heard")
    assert [text for text in heard if "written" not in text] == ["ring", "bottom left"]


def test_a_conversation_has_a_main_heading(chat: Chat):
    heading = chat.page.get_by_role("main").get_by_role("heading", level=1)
    expect(heading).to_have_count(1)
    chat.page.get_by_role("button", name="What shape is pink?").click()
    chat.answers(1)
    expect(heading).to_have_count(1)
    expect(heading).to_have_text("Conversation")


def test_the_system_s_dark_mode_is_honoured(browser: Browser, page_url: str, laid: Wire, demo_server: Server):
    laid.lay(demo_server.url)
    light = (
        "() => getComputedStyle(document.querySelector('.stApp')).backgroundColor.match(/\\d+/g).every(c => c > 128)"
    )
    for scheme, expected in (("light", True), ("dark", False)):
        with visit(browser, page_url, color_scheme=scheme) as chat:
            assert chat.page.evaluate(light) is expected


def test_a_phone_opens_at_the_top_and_shows_the_newest_answer(
    browser: Browser, page_url: str, laid: Wire, demo_server: Server
):
    laid.lay(demo_server.url)
    with visit(browser, page_url, **PHONE) as chat:
        expect(chat.page.get_by_text("Or begin with one of these")).to_be_visible()
        expect(chat.page.get_by_role("heading", name="Ask about a picture")).to_be_in_viewport()
        for count in range(1, 4):
            chat.ask("What number is written here?", DEMO_IMAGES / "number.png")
            chat.answers(count)
        expect(chat.page.get_by_text("answer tokens").last).to_be_in_viewport()
        expect(chat.page.get_by_text("answer tokens").first).not_to_be_in_viewport()


def test_the_keyboard_alone_asks_follows_up_and_begins_anew(chat: Chat):
    page = chat.page
    press_until(page, "Tab", page.get_by_role("button", name="What shape is pink?"))
    page.keyboard.press("Enter")
    chat.answers(1)
    press_until(page, "Tab", page.get_by_test_id("stChatInputTextArea"))
    page.keyboard.type("Where is the ring?")
    page.keyboard.press("Enter")
    assert chat.answers(2) == ["ring", "bottom left"]
    press_until(page, "Shift+Tab", page.get_by_role("button", name="Remove shapes.png"))
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="Remove")).to_have_count(0)
    press_until(page, "Shift+Tab", page.get_by_role("button", name="New conversation"))
    page.keyboard.press("Enter")
    expect(page.get_by_text("Or begin with one of these")).to_be_visible()
