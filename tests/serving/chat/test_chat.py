"""The chat page's parts without a browser: what is sent, what is said, and how the page is started."""

import argparse
import base64
import io
import json
import re
import subprocess
import sys

import pytest
from PIL import Image

from qwen_vqa.plugin.errors import UserError
from qwen_vqa.serving.chat.chat import _command, _environment, build_parser
from qwen_vqa.serving.chat.conversation import ChatConversation, ChatTurn, ModelReply
from qwen_vqa.serving.chat.export import as_json, as_markdown
from qwen_vqa.serving.chat.pictures import LARGEST_BYTES, LARGEST_SIDE, picture_from_file, picture_from_url
from qwen_vqa.serving.chat.problems import in_users_words
from qwen_vqa.serving.chat.server import ChatServer, StreamedReply
from qwen_vqa.serving.chat.session import ChatSession
from qwen_vqa.serving.chat.text import answer, plain
from tests.server import Server, free_port
from tests.serving.conftest import GuardedServer
from tests.tiny import picture

CHAT = [sys.executable, "-m", "qwen_vqa.serving.cli", "chat"]


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def a_picture(seed: int, name: str = "blocks.png"):
    return picture_from_file(png(picture(seed)), name)


def answered(question: str, *pictures, text: str = "yes", **reply) -> ChatTurn:
    return ChatTurn(question, list(pictures), "tiny", StreamedReply(text, done=True, **reply))


def image_part(one) -> dict:
    return {"type": "image_url", "image_url": {"url": one.url}}


def test_a_question_is_sent_with_the_turns_before_it_and_their_images():
    first, second = a_picture(0), a_picture(1)
    chat = ChatConversation(
        [answered("What is this?", first, second, text="blocks"), ChatTurn("Which colour?", [], "tiny")]
    )
    assert chat.messages("Be brief.") == [
        {"role": "system", "content": "Be brief."},
        {
            "role": "user",
            "content": [image_part(first), image_part(second), {"type": "text", "text": "What is this?"}],
        },
        {"role": "assistant", "content": "blocks"},
        {"role": "user", "content": "Which colour?"},
    ]


@pytest.mark.parametrize(
    ("turn", "sent"),
    [
        (answered("q", text="half", stopped=True), True),
        (answered("q", text="half", problem="broke"), False),
        (answered("q", text="", problem="refused"), False),
        (answered("q", text="", stopped=True), False),
    ],
    ids=["stopped", "broken off", "refused", "stopped before anything came"],
)
def test_what_was_answered_is_remembered_and_what_failed_is_not(turn: ChatTurn, sent: bool):
    chat = ChatConversation([turn, ChatTurn("next", [], "tiny")])
    assert len(chat.messages()) == (3 if sent else 1)


def test_an_image_without_words_is_a_question():
    one = a_picture(0)
    assert ChatConversation([ChatTurn("", [one], "tiny")]).messages() == [
        {"role": "user", "content": [image_part(one)]}
    ]


def test_a_turn_that_was_only_a_removed_image_goes_with_it():
    one, other = a_picture(0), a_picture(1)
    chat = ChatConversation([answered("", one), answered("And this?", one, other)])
    chat.remove(one)
    assert [(turn.question, turn.pictures) for turn in chat.turns] == [("And this?", [other])]


def test_the_servers_place_is_named_in_the_users_words():
    chat = ChatConversation(
        [answered("refused", problem="no"), answered("a", a_picture(0)), ChatTurn("b", [a_picture(1)], "")]
    )
    places, prompted = chat.places(), chat.places("Be brief.")
    assert places["messages[0].content[0]"] == "image 1 of question 2 (blocks.png)"
    assert prompted["messages[3].content[0]"] == "image 1 of question 3 (blocks.png)"
    assert places["messages[2].content[1]"] == places["messages[2]"] == "question 3"
    assert places["messages[1]"] == "the answer to question 2" and prompted["messages[0]"] == "the system prompt"
    assert "messages[9]" not in places and "max_tokens" not in places


@pytest.mark.parametrize(
    ("problem", "place", "said"),
    [
        ("messages[0].content[1]: no image.", "messages[0].content[1]", "Image 2 of question 1 (b.png): no image."),
        ("Bad messages[0].content[1].image_url.url", "", "Bad image 2 of question 1 (b.png)"),
        ("No image.", "messages[0].content[1].image_url", "No image. That is image 2 of question 1 (b.png)."),
        ("max_tokens is too large.", "max_tokens", "max_tokens is too large."),
        ("messages[7] is odd.", "messages[7]", "messages[7] is odd."),
    ],
)
def test_a_problem_names_its_place_as_the_user_does(problem: str, place: str, said: str):
    chat = ChatConversation([ChatTurn("b", [a_picture(0, "a.png"), a_picture(1, "b.png")], "")])
    assert in_users_words(problem, place, chat.places()) == said


def test_of_two_compared_models_each_is_told_its_own_answers():
    first = answered("What is this?", text="a ring")
    first.compared = ModelReply("other", StreamedReply("a donut", done=True))
    second = answered("Sure?", text="yes")
    second.compared = ModelReply("other", StreamedReply("", problem="refused"))
    chat = ChatConversation([first, second, ChatTurn("Why?", [], "tiny")])
    told = {model: [one["content"] for one in chat.messages(model=model)] for model in ("tiny", "other")}
    assert told["tiny"] == ["What is this?", "a ring", "Sure?", "yes", "Why?"]
    assert told["other"] == ["What is this?", "a donut", "Sure?", "yes", "Why?"]


def test_an_export_has_all_that_was_said_and_the_images():
    one = a_picture(0)
    compared = answered("What is this?", one, text="a ring")
    compared.compared = ModelReply("other", StreamedReply("a donut", done=True))
    chat = ChatConversation([compared, answered("refused?", text="", problem="too long")])
    markdown = as_markdown(chat)
    for said in ("image: blocks.png", "What is this?", "## tiny\n\na ring", "## other\n\na donut", "too long"):
        assert said in markdown
    assert json.loads(as_json(chat, "Be brief.")) == {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": [image_part(one), {"type": "text", "text": "What is this?"}]},
            {"role": "assistant", "content": "a ring"},
        ]
    }


def test_a_small_file_is_sent_byte_for_byte():
    data = png(picture(3))
    url = picture_from_file(data, "blocks.png").url
    assert url.startswith("data:image/png;base64,") and base64.b64decode(url.partition(",")[2]) == data


def test_a_large_photo_is_sent_smaller_and_that_is_said():
    data = png(Image.effect_noise((3000, 1500), 90))
    assert len(data) > LARGEST_BYTES
    one = picture_from_file(data, "photo.png")
    sent = base64.b64decode(one.url.partition(",")[2])
    assert Image.open(io.BytesIO(sent)).size == (LARGEST_SIDE, 1024) and len(sent) < LARGEST_BYTES
    assert one.scaled == "3000 x 1500, sent as JPEG of 2048 x 1024"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"not a picture", "not an image"),
        (png(picture(0))[:-40], "broken or truncated"),
        (b"", "it is empty"),
        (bytes(21 * 2**20), "larger than the limit of 20 MiB"),
    ],
    ids=["text", "truncated", "empty", "too large"],
)
def test_a_file_that_is_no_usable_image_is_refused_by_name(data: bytes, message: str):
    with pytest.raises(UserError, match=rf"photo\.png: .*{message}"):
        picture_from_file(data, "photo.png")


@pytest.mark.parametrize(
    "url", ["/etc/passwd", "file:///etc/passwd", "photo.png", "https://", "data:image/png;base64,"]
)
def test_what_is_no_web_address_is_refused(url: str):
    with pytest.raises(UserError, match="begins with https:// or http://"):
        picture_from_url(url)


def test_an_answer_fetches_no_image_and_keeps_its_prices():
    assert "![" not in answer("![x](https://example.org/?said=secret)")
    assert answer("from $5 to $10") == r"from \$5 to \$10"


def test_text_of_others_is_no_markdown():
    assert plain("**a** [b](http://c)") == r"\*\*a\*\* \[b\]\(http\://c\)"


def test_no_key_stands_on_the_command_line_of_the_page():
    args = build_parser(argparse.ArgumentParser()).parse_args(["--api-key", "sk-secret", "--port", "9000"])
    assert "sk-secret" not in " ".join(_command(args))
    assert _environment(args)["STREAMLIT_BROWSER_GATHER_USAGE_STATS"] == "false"


def test_an_address_that_is_none_is_refused_before_the_page_starts():
    ended = subprocess.run([*CHAT, "--url", "localhost:8000"], capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert ended.stderr == ("qwen-vqa: --url localhost:8000: an address such as http://localhost:8000/v1 is needed.\n")


def test_without_streamlit_it_says_how_to_install_it():
    without = "import sys; sys.modules['streamlit'] = None; from qwen_vqa.serving.cli import main; sys.exit(main())"
    ended = subprocess.run([sys.executable, "-c", without, "chat"], capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert "Streamlit" in ended.stderr and "make setup" in ended.stderr and "'.[chat]'" in ended.stderr


def test_where_no_server_is_that_is_what_is_said():
    url = f"http://127.0.0.1:{free_port()}/v1"
    session = ChatSession(ChatServer(url, ""))
    session.look()
    assert session.models == () and session.served.problem.startswith(f"No server answers at {url}.")


def test_a_refused_key_is_said_and_not_repeated(guarded_server: GuardedServer):
    problem = ChatServer(guarded_server.url, "sk-nobodys-secret-0123").served().problem
    assert "refuses this page's API key" in problem and "sk-nobodys" not in problem


def test_adapters_are_told_from_base_models_and_have_their_context(tiny_server: Server):
    session = ChatSession(ChatServer(tiny_server.url, ""))
    assert session.look() and not session.look()
    assert [(model.name, model.base) for model in session.models] == [("tiny", None), ("tiny-lora", "tiny")]
    session.settings.model = "tiny-lora"
    assert session.context() == 1024


@pytest.mark.parametrize(
    ("request_fields", "problem", "place"),
    [
        ({"model": "gone"}, r"The model `gone` does not exist\..* \(404\)", "model"),
        ({"max_tokens": 9999}, r"The server refuses this \(400\)\. max_tokens=9999 cannot be greater", "max_tokens"),
        ({"messages": [{"role": "user", "content": []}]}, r"refuses this \(400\)", "messages[0]"),
    ],
    ids=["model", "max_tokens", "empty"],
)
def test_the_servers_own_words_and_place_are_kept(tiny_server: Server, request_fields: dict, problem: str, place: str):
    asked = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}], **request_fields}
    running = ChatServer(tiny_server.url, "").ask(asked)
    assert running.wait(60)
    assert re.search(problem, running.reply.problem) and running.reply.place.startswith(place)
    assert "Error code" not in running.reply.problem
