"""Ways to bring an image into the chat page: dropped, pasted, or taken with the camera. All in a real Chromium."""

import base64
from pathlib import Path

from playwright.sync_api import Browser, Page, expect

from qwen_vqa.serving import DEMO_IMAGES
from tests.browser import Wire
from tests.chat import Chat, visit
from tests.server import Server

NUMBER = DEMO_IMAGES / "number.png"
INTO_THE_CLIPBOARD = """
async data => {
  const image = await (await fetch(data)).blob();
  await navigator.clipboard.write([new ClipboardItem({"image/png": image})]);
}
"""


def drop(page: Page, file: Path, x: float, y: float) -> None:
    """As the browser does it when a file is dragged in from elsewhere."""
    devtools = page.context.new_cdp_session(page)
    data = {"items": [], "files": [str(file)], "dragOperationsMask": 1}
    for step in ("dragEnter", "dragOver", "drop"):
        devtools.send("Input.dispatchDragEvent", {"type": step, "x": x, "y": y, "data": data})


def test_a_file_is_dropped_on_the_box_and_beside_it_nothing_is_lost(chat: Chat):
    box = chat.page.get_by_test_id("stChatInput").bounding_box()
    assert box is not None
    drop(chat.page, NUMBER, box["x"] + box["width"] / 2, box["y"] - 200)
    expect(chat.page.get_by_text("Or begin with one of these")).to_be_visible()
    drop(chat.page, NUMBER, box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    expect(chat.page.get_by_test_id("stChatInput").get_by_text("number.png")).to_be_visible()
    chat.ask("What number is written here?")
    assert chat.answers(1) == ["436"]


def test_an_image_is_pasted_into_the_box(browser: Browser, page_url: str, laid: Wire, demo_server: Server):
    laid.lay(demo_server.url)
    with visit(browser, page_url, permissions=["clipboard-read", "clipboard-write"]) as chat:
        data = base64.b64encode(NUMBER.read_bytes()).decode()
        chat.page.evaluate(INTO_THE_CLIPBOARD, f"data:image/png;base64,{data}")
        chat.page.get_by_test_id("stChatInputTextArea").focus()
        chat.page.keyboard.press("Control+v")
        expect(chat.page.get_by_test_id("stFileChip")).to_be_visible()
        chat.ask("What number is written here?")
        assert chat.answers(1) == ["436"]


def test_pictures_are_taken_with_the_camera(browser: Browser, page_url: str, laid: Wire, demo_server: Server):
    laid.lay(demo_server.url)
    with visit(browser, page_url, permissions=["camera"]) as chat:
        waiting = chat.page.get_by_test_id("stBottom").get_by_role("button", name="Remove photo")
        chat.page.get_by_role("button", name="Take a picture").click()
        for count in (1, 2):
            chat.page.wait_for_function("() => document.querySelector('video')?.readyState === 4")
            chat.page.get_by_test_id("stCameraInputButton").click()
            expect(waiting).to_have_count(count)
        chat.page.keyboard.press("Escape")
        chat.ask("What is this?")
        chat.answers(1)
        assert "(130 of images)" in chat.small_print()
