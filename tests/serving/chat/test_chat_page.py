"""The chat page in a real Chromium, on real servers: ask, follow up, choose, stop, and what is said when it fails."""

import contextlib
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from PIL import Image
from playwright.sync_api import Browser, expect

from qwen_vqa.serving import DEMO_IMAGES
from tests.browser import Wire
from tests.chat import Chat, chat_page, visit
from tests.server import Server
from tests.serving.conftest import GuardedServer

NUMBER, SHAPES, EMOJI = (DEMO_IMAGES / f"{name}.png" for name in ("number", "shapes", "emoji"))
OTHERS = 12


def test_an_upload_is_asked_about_and_the_answer_says_what_it_cost(chat: Chat):
    chat.ask("What number is written here?", NUMBER)
    assert chat.answers(1) == ["436"]
    assert re.match(r"qwen-vqa-demo · \d+\.\d\d s · \d+ prompt tokens \(65 of images\) · 4 answer", chat.small_print())


def test_a_follow_up_question_is_about_the_image_of_the_first(chat: Chat):
    chat.ask("What shape is pink?", SHAPES)
    chat.answers(1)
    chat.ask("Where is the ring?")
    assert chat.answers(2) == ["ring", "bottom left"]
    assert "(65 of images)" in chat.small_print()


def test_two_images_go_with_one_question(chat: Chat):
    chat.ask("Which picture has a number, the first or the second?", NUMBER, EMOJI)
    chat.answers(1)
    assert "(130 of images)" in chat.small_print()


def test_a_removed_image_is_not_sent_again(chat: Chat):
    chat.ask("What shape is pink?", SHAPES)
    chat.answers(1)
    chat.page.get_by_role("button", name="Remove").click()
    expect(chat.page.get_by_test_id("stChatMessage").get_by_test_id("stImage")).to_have_count(0)
    chat.ask("Where is the ring?")
    chat.answers(2)
    assert "of images" not in chat.small_print()


def test_a_new_conversation_forgets_the_old(chat: Chat):
    chat.ask("What shape is pink?", SHAPES)
    chat.answers(1)
    chat.page.get_by_role("button", name="New conversation").click()
    expect(chat.page.get_by_text("Or begin with one of these")).to_be_visible()
    chat.page.evaluate("idle()")  # the box stands elsewhere now; the old one goes once the page is drawn
    chat.ask("What number is written here?")
    chat.answers(1)
    assert "of images" not in chat.small_print()


def test_an_example_is_one_click_and_offers_what_to_ask_next(chat: Chat):
    chat.page.get_by_role("button", name="What shape is pink?").click()
    chat.answers(1)
    chat.page.get_by_role("button", name="What color is the ring?").click()
    assert chat.answers(2) == ["ring", "pink"]


def test_an_adapter_answers_when_it_is_chosen(chat: Chat, demo_server: Server):
    chat.choose("sentences (adapter)")
    chat.ask("What number is written here?", NUMBER)
    assert chat.answers(1) != ["436"]
    assert chat.small_print().startswith("sentences · ")


def test_a_file_that_is_no_image_is_refused_before_it_is_sent_and_the_question_stays(chat: Chat, tmp_path: Path):
    (tmp_path / "notes.png").write_text("not a picture")
    chat.ask("What is this?", tmp_path / "notes.png")
    assert "notes.png: not an image that can be read" in chat.error()
    expect(chat.page.get_by_test_id("stChatInputTextArea")).to_have_value("What is this?")
    expect(chat.page.get_by_test_id("stChatMessage")).to_have_count(0)


def test_a_large_photo_is_scaled_before_it_is_sent(chat: Chat, tmp_path: Path):
    Image.open(NUMBER).resize((4000, 3000)).save(tmp_path / "photo.png")
    chat.ask("What number is written here?", tmp_path / "photo.png")
    assert chat.answers(1) == ["436"]
    chat.page.get_by_role("button", name="Remove").hover()
    expect(chat.page.get_by_text("4000 x 3000, sent as JPEG of 2048 x 1536")).to_be_visible()


def test_the_servers_refusal_of_a_web_address_is_shown_with_its_place(chat: Chat):
    chat.attach_url("http://127.0.0.1:1/secret.png")
    expect(chat.page.get_by_test_id("stBottom").get_by_role("button", name="Remove")).to_be_visible()
    chat.ask("What is this?")
    message = chat.error()
    assert "The server refuses this (400). Image 1 of question 1 (secret.png): port 1 is not fetched from" in message
    assert "messages[" not in message


def test_an_address_that_is_none_is_refused_at_once(chat: Chat):
    chat.attach_url("/etc/passwd")
    assert "begins with https:// or http://" in chat.error()


def test_a_question_goes_on_when_the_server_was_away_and_is_back(chat: Chat, laid: Wire, demo_server: Server):
    chat.ask("What shape is pink?", SHAPES)
    chat.answers(1)
    laid.cut()
    chat.ask("Where is the ring?")
    assert f"No server answers at {laid.url}. Start it with qwen-vqa serve" in chat.error()
    expect(chat.page.get_by_text("not available")).to_be_visible()
    laid.lay(demo_server.url)
    expect(chat.page.get_by_text("check_circle")).to_be_visible()
    chat.page.get_by_role("button", name="Ask again").click()
    assert chat.answers(2) == ["ring", "bottom left"]


def test_a_page_without_a_server_says_so_and_wakes_up_when_there_is_one(
    browser: Browser, page_url: str, laid: Wire, demo_server: Server
):
    laid.cut()
    with visit(browser, page_url) as chat:
        assert "No server answers" in chat.error()
        laid.lay(demo_server.url)
        expect(chat.page.get_by_text("Or begin with one of these")).to_be_visible()


def test_a_model_that_is_gone_is_said_and_another_takes_over(chat: Chat, laid: Wire, tiny_server: Server):
    chat.choose("sentences (adapter)")
    laid.lay(tiny_server.url)
    expect(chat.page.get_by_text(re.compile(r"sentences is no longer served; questions now go to \S+"))).to_be_visible()


def test_too_many_requests_are_refused_with_the_time_to_wait(
    browser: Browser, page_url: str, laid: Wire, guarded_server: GuardedServer, guarded_key: str
):
    assert guarded_key in guarded_server.keys.values()
    laid.lay(guarded_server.url)
    with visit(browser, page_url) as chat:
        chat.ask("first")
        chat.answers(1)
        chat.ask("second")
        assert re.search(r"Too much at once \(429\)\. .+ try again in \d+ s\.", chat.error())
        assert guarded_key not in chat.page.content()


def test_a_key_that_the_server_refuses_is_said_and_not_shown(
    browser: Browser, guarded_server: GuardedServer, tmp_path: Path
):
    key = "nobodys-secret-0123456789"
    with chat_page(guarded_server.url, tmp_path / "page.log", key) as url, visit(browser, url) as chat:
        assert "refuses this page's API key" in chat.error()
        assert key not in chat.page.content()
    assert key not in (tmp_path / "page.log").read_text()


def metric(server: Server, name: str) -> float:
    """The sum of a metric's series; `name` is a regular expression."""
    metrics = httpx.get(server.url.removesuffix("/v1") + "/metrics").text
    return sum(float(value) for value in re.findall(rf"^{name}.* (\S+)$", metrics, re.M))


def long_answers(server: Server) -> float:
    """Answers of more than 500 tokens that the server wrote to their end, once nothing runs any more."""
    deadline = time.monotonic() + 60
    while metric(server, "vllm:num_requests_running"):
        assert time.monotonic() < deadline, "the server still works on it"
        time.sleep(0.1)
    shorter = metric(server, r'vllm:request_generation_tokens_bucket{.*le="500.0"')
    return metric(server, "vllm:request_generation_tokens_count") - shorter


@contextlib.contextmanager
def others(server: Server) -> Iterator[None]:
    """They ask at the same time, so that the server is slow."""
    client = server.client
    message = {"role": "user", "content": "Tell me more."}
    with ThreadPoolExecutor(OTHERS) as pool:
        asking = [
            pool.submit(client.chat.completions.create, model="tiny", messages=[message], max_tokens=450, temperature=0)
            for _ in range(OTHERS)
        ]
        yield
    for one in asking:
        one.result()


@pytest.fixture
def rambling(browser: Browser, page_url: str, laid: Wire, tiny_server: Server) -> Iterator[Chat]:
    """A visitor whose question a random model answers, at length and beside others'."""
    laid.lay(tiny_server.url)
    with visit(browser, page_url) as chat:
        chat.page.get_by_text("Settings").click()
        box = chat.page.get_by_role("spinbutton", name="Longest answer, in tokens")
        box.fill("900")
        box.press("Enter")
        chat.long_answers_before = long_answers(tiny_server)
        with others(tiny_server):
            chat.ask("Tell me everything.")
            expect(chat.page.get_by_text("▍")).to_contain_text(re.compile(r"\w{5}"))
            yield chat


def test_stop_keeps_what_came_and_the_server_stops_working(rambling: Chat, tiny_server: Server):
    rambling.page.get_by_role("button", name="Stop").click()
    expect(rambling.page.get_by_text(re.compile(r"s · stopped"))).to_be_visible()
    assert len(rambling.page.get_by_test_id("stChatMessage").last.inner_text()) > len("tiny · 1.00 s · stopped") + 5
    assert long_answers(tiny_server) == rambling.long_answers_before


def test_the_server_stops_working_when_the_page_is_closed(rambling: Chat, tiny_server: Server):
    rambling.page.close()
    assert long_answers(tiny_server) == rambling.long_answers_before


def test_an_answer_goes_on_while_a_setting_is_changed(rambling: Chat, tiny_server: Server):
    rambling.page.get_by_role("textbox", name="System prompt").fill("Be brief.")
    rambling.page.get_by_role("textbox", name="System prompt").press("Control+Enter")
    rambling.answers(1)
    assert " 900 answer tokens" in rambling.small_print()
    assert long_answers(tiny_server) == rambling.long_answers_before + 1


def test_an_answer_that_breaks_off_is_said_so_and_can_be_asked_for_again(rambling: Chat, laid: Wire):
    laid.cut()
    assert "broke before the answer was complete" in rambling.error()
    expect(rambling.page.get_by_role("button", name="Ask again")).to_be_visible()


def test_two_visitors_see_nothing_of_each_other(browser: Browser, page_url: str, chat: Chat):
    chat.ask("What number is written here?", NUMBER)
    chat.answers(1)
    with visit(browser, page_url) as other:
        expect(other.page.get_by_text("Or begin with one of these")).to_be_visible()
        assert "436" not in other.page.inner_text("body")


def test_the_page_asks_no_other_host_for_anything(browser: Browser, page_url: str, laid: Wire, demo_server: Server):
    laid.lay(demo_server.url)
    context = browser.new_context()
    asked: list[str] = []
    context.on("request", lambda request: asked.append(request.url))
    page = context.new_page()
    page.goto(page_url)
    page.get_by_role("button", name="What shape is pink?").click()
    expect(page.get_by_text("answer tokens")).to_be_visible()
    assert asked and all(url.startswith((page_url, "data:", "blob:")) for url in asked), asked
    context.close()


def test_an_address_is_attached_once(chat: Chat):
    chat.attach_url("https://example.org/picture.png")
    expect(chat.page.get_by_role("button", name="Remove")).to_have_count(1)
    for _ in range(3):
        chat.look()
    expect(chat.page.get_by_role("button", name="Remove")).to_have_count(1)
