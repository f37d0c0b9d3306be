"""What can be done with the chat page's answers: copied, saved, and compared with another model's."""

import json

from playwright.sync_api import Browser, expect

from qwen_vqa.serving import DEMO_IMAGES
from tests.browser import Wire
from tests.chat import Chat, visit
from tests.server import Server

SHAPES = DEMO_IMAGES / "shapes.png"


def test_an_answer_is_copied(browser: Browser, page_url: str, laid: Wire, demo_server: Server):
    laid.lay(demo_server.url)
    with visit(browser, page_url, permissions=["clipboard-read", "clipboard-write"]) as chat:
        chat.ask("Where is the ring?", SHAPES)
        chat.answers(1)
        chat.page.get_by_role("button", name="Copy", exact=True).click()
        chat.page.get_by_test_id("stCode").hover()
        chat.page.get_by_role("button", name="Copy to clipboard").click()
        chat.page.wait_for_function("async () => await navigator.clipboard.readText() === 'bottom left'")


def test_a_conversation_is_saved_to_read_and_to_send_again(chat: Chat, demo_server: Server):
    chat.ask("What shape is pink?", SHAPES)
    chat.answers(1)
    with chat.page.expect_download() as markdown:
        chat.page.get_by_role("button", name="Markdown").click()
    assert "## qwen-vqa-demo\n\nring" in markdown.value.path().read_text()
    with chat.page.expect_download() as saved:
        chat.page.get_by_role("button", name="JSON").click()
    messages = json.loads(saved.value.path().read_text())["messages"]
    assert messages[-1] == {"role": "assistant", "content": "ring"}
    again = demo_server.client.chat.completions.create(
        model="qwen-vqa-demo", messages=messages[:-1], temperature=0, max_tokens=16
    )
    assert again.choices[0].message.content == "ring"


def test_two_models_answer_one_question_side_by_side(chat: Chat):
    chat.choose("sentences (adapter)", "Compare with")
    chat.ask("What number is written here?", DEMO_IMAGES / "number.png")
    first, second = chat.answers(2)
    assert first == "436" and second != "436" and "436" in second
    left, right = (chat.page.get_by_text(f"{model} · ").bounding_box() for model in ("qwen-vqa-demo", "sentences"))
    assert left is not None and right is not None
    assert abs(left["y"] - right["y"]) < 40 and right["x"] > left["x"] + 100


def test_a_compared_model_that_is_gone_is_said(chat: Chat, laid: Wire, tiny_server: Server):
    chat.choose("sentences (adapter)", "Compare with")
    laid.lay(tiny_server.url)
    chat.look()
    expect(chat.page.get_by_text("sentences is no longer served")).to_be_visible()
    chat.ask("What is this?")
    chat.answers(1)
