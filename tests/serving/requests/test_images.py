"""Images that users send to the running server: what is taken, in every API, and what is refused at once."""

import base64
import contextlib
import io
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from openai import BadRequestError
from PIL import Image

from qwen_vqa.plugin.images.image_loader import load_image
from tests.hostile_images import jpeg_of_many_scans
from tests.image_server import HOPPER, ImageServer, png
from tests.server import Server
from tests.serving.test_api import IMAGES, ask, data_url, message, prompt_ids
from tests.tiny import picture

IMAGE_TOKENS = 5


def image_part(url: str, **image_url) -> dict:
    return {"type": "image_url", "image_url": {"url": url, **image_url}}


def user(*parts: dict | str) -> dict:
    return {
        "role": "user",
        "content": [{"type": "text", "text": part} if isinstance(part, str) else part for part in parts],
    }


def encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


def post(server: Server, path: str, body: object) -> httpx.Response:
    return httpx.post(server.url.removesuffix("/v1") + path, json=body, timeout=60)


def test_every_way_to_send_an_image_shows_the_model_the_same(tiny_server: Server, trusted_images: ImageServer):
    expected = ask(tiny_server, message(load_image(HOPPER), "what?"))
    code = encoded(HOPPER)
    for url in (
        f"data:image/jpeg;base64,{code}",
        f"data:;base64,{code}",
        f"data:image/jpeg;base64,{code[:100]}\n{code[100:].rstrip('=')}",
        trusted_images.url("/hopper.jpg"),
        trusted_images.url("/redirect?/hopper.jpg"),
    ):
        assert ask(tiny_server, user(image_part(url), "what?")) == expected
    assert ask(tiny_server, message(picture(1), "what?")) != expected


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        ((IMAGES / "decompression_bomb.gif").read_bytes(), "pixels are more than the limit of 50,000,000"),
        (None, "13000 x 13000 pixels are more than the limit of 50,000,000"),
        ((IMAGES / "truncated_jpeg.jpg").read_bytes()[:-9], "broken or truncated"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 100 100\n", "not an image that can be read"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not an image that can be read"),
        (bytes(21 * 2**20), "larger than the limit of 20 MiB"),
        (b"", "empty"),
    ],
    ids=["gigapixel GIF", "13000x13000 PNG", "truncated", "EPS", "SVG", "21 MiB", "nothing"],
)
def test_a_bad_image_is_refused_at_once_with_its_place(data: bytes | None, fault: str, tiny_server: Server):
    if data is None:
        buffer = io.BytesIO()
        Image.new("1", (13_000, 13_000)).save(buffer, "PNG")
        data = buffer.getvalue()
        assert len(data) < 30_000
    url = f"data:image/png;base64,{encoded(data)}"
    started = time.monotonic()
    with pytest.raises(BadRequestError) as error:
        ask(tiny_server, user("first"), user("look", image_part(data_url(picture(1))), image_part(url)))
    assert time.monotonic() - started < 3
    assert error.value.status_code == 400
    assert error.value.param == "messages[1].content[2]"
    assert error.value.message.count("messages[1].content[2]: ") == 1
    assert fault in error.value.message


@pytest.mark.parametrize(
    ("url", "fault"),
    [
        ("file:///etc/passwd", "file URLs are not read"),
        ("/etc/passwd", "expected an http, https or data URL"),
        (encoded(HOPPER), "expected an http, https or data URL"),
        ("data:image/png;base64,@@@@", "cannot be decoded"),
        ("http://no-such-host.invalid/a.png", "no host is called no-such-host.invalid"),
    ],
)
def test_a_url_that_leads_nowhere_is_400(url: str, fault: str, tiny_server: Server):
    with pytest.raises(BadRequestError, match=rf"messages\[0\]\.content\[0\]: .*{fault}"):
        ask(tiny_server, user(image_part(url), "what?"))


@pytest.mark.parametrize(
    ("path", "fault"),
    [
        ("/status/404", "status 404"),
        ("/status/503", "status 503"),
        ("/page", "not an image"),
        ("/loop", "more than 3 redirects"),
        ("/drip", "took longer than 3 s"),
        ("/big", "larger than the limit"),
        ("/chunked", "larger than the limit|broken"),
    ],
)
def test_a_web_server_that_misbehaves_is_400(path: str, fault: str, tiny_server: Server, trusted_images: ImageServer):
    with pytest.raises(BadRequestError, match=fault):
        ask(tiny_server, user(image_part(trusted_images.url(path)), "what?"))


def test_slow_fetches_do_not_hold_up_others(tiny_server: Server, trusted_images: ImageServer):
    slow = user(image_part(trusted_images.url("/drip")), "what?")
    with ThreadPoolExecutor(4) as pool:
        fetches = [pool.submit(ask, tiny_server, slow) for _ in range(4)]
        began = time.monotonic()
        ask(tiny_server, message("hi"), max_tokens=1)
        assert time.monotonic() - began < 2.5  # the fetches take 3 s
        assert all(isinstance(fetch.exception(), BadRequestError) for fetch in fetches)


def test_decoding_does_not_hold_up_others(tiny_server: Server):
    buffer = io.BytesIO()
    Image.new("RGB", (7000, 7000), "red").save(buffer, "PNG")
    large = user(image_part(f"data:image/png;base64,{encoded(buffer.getvalue())}"), "what?")
    root = tiny_server.url.removesuffix("/v1")
    with ThreadPoolExecutor(1) as pool, httpx.Client() as client:
        began = time.monotonic()
        answer = pool.submit(ask, tiny_server, large, max_tokens=1)
        waits = []
        while not answer.done():
            waits.append(client.get(root + "/health").elapsed.total_seconds())
        took = time.monotonic() - began
    assert answer.result() is not None
    assert max(waits) < took / 2, (took, max(waits))


def test_details_are_validated_and_mean_the_same_view(tiny_server: Server):
    url = data_url(picture(31))
    answers = {
        ask(tiny_server, user(image_part(url, **detail), "what?"))
        for detail in ({}, {"detail": "low"}, {"detail": "high"}, {"detail": "auto"})
    }
    assert len(answers) == 1
    for wrong in ("medium", "", 3, ["low"]):
        with pytest.raises(BadRequestError) as error:
            ask(tiny_server, user("?", image_part(url, detail=wrong)))
        assert error.value.param == "messages[0].content[1].image_url.detail"
        assert "one of low, high, auto" in error.value.message


def test_an_image_may_not_be_called_by_a_key_of_the_cache(tiny_server: Server):
    with pytest.raises(BadRequestError, match=r"content\[0\]\.uuid"):
        ask(tiny_server, user({**image_part(data_url(picture(1))), "uuid": "mine"}))


def test_the_responses_api_takes_images_by_the_same_loader(tiny_server: Server):
    def respond(url: str, **part):
        content = [{"type": "input_text", "text": "what?"}, {"type": "input_image", "image_url": url, **part}]
        return tiny_server.client.responses.create(
            model="tiny", input=[{"role": "user", "content": content}], max_output_tokens=4, temperature=0
        )

    with_image = respond(data_url(picture(1)), detail="low").usage.input_tokens
    text_only = tiny_server.client.responses.create(
        model="tiny", input=[{"role": "user", "content": "what?"}], max_output_tokens=4
    )
    assert with_image - text_only.usage.input_tokens == IMAGE_TOKENS + 2
    for url in (
        "http://127.0.0.1:1/a.png",
        "file:///etc/passwd",
        data_url((IMAGES / "truncated_jpeg.jpg").read_bytes()[:-9]),
    ):
        with pytest.raises(BadRequestError) as error:
            respond(url)
        assert error.value.param == "input[0].content[1]"
    with pytest.raises(BadRequestError, match=r"input\[0\]\.content\[1\]\.detail"):
        respond(data_url(picture(1)), detail="most")
    with pytest.raises(BadRequestError, match="files by id are not kept"):
        tiny_server.client.responses.create(
            model="tiny", input=[{"role": "user", "content": [{"type": "input_image", "file_id": "file-1"}]}]
        )


def test_the_messages_api_takes_images_by_the_same_loader(tiny_server: Server):
    def send(source: object) -> httpx.Response:
        content = [{"type": "text", "text": "what?"}, {"type": "image", "source": source}]
        body = {"model": "tiny", "max_tokens": 4, "messages": [{"role": "user", "content": content}]}
        return post(tiny_server, "/v1/messages", body)

    good = {"type": "base64", "media_type": "image/png", "data": encoded(png())}
    assert send(good).status_code == 200
    usage = send(good).json()["usage"]  # cached tokens count apart in this API
    assert usage["input_tokens"] + (usage["cache_read_input_tokens"] or 0) > IMAGE_TOKENS
    for source in (
        {"type": "url", "url": "http://127.0.0.1:1/a.png"},
        {"type": "url", "url": "file:///etc/passwd"},
        {
            "type": "base64",
            "media_type": "image/png",
            "data": encoded((IMAGES / "decompression_bomb.gif").read_bytes()),
        },
        {"type": "base64", "media_type": "image/png"},
        {"type": "file", "file_id": "file-1"},
        "a.png",
    ):
        answer = send(source)
        assert answer.status_code == 400, source
        assert answer.json()["type"] == "error"
        assert "messages[0].content[1]" in answer.json()["error"]["message"]


def test_tool_results_with_images_are_looked_at_too(tiny_server: Server):
    def send(url: str) -> httpx.Response:
        result = {
            "type": "tool_result",
            "tool_use_id": "1",
            "content": [{"type": "image", "source": {"type": "url", "url": url}}],
        }
        body = {"model": "tiny", "max_tokens": 2, "messages": [{"role": "user", "content": [result]}]}
        return post(tiny_server, "/v1/messages", body)

    answer = send("http://169.254.169.254/latest")
    assert answer.status_code == 400
    assert "messages[0].content[0].content[0]" in answer.json()["error"]["message"]
    assert send(data_url(picture(1))).status_code == 200


def test_sound_and_film_are_not_fetched(tiny_server: Server, trusted_images: ImageServer):
    reached = len(trusted_images.requests)
    for part in (
        {"type": "audio_url", "audio_url": {"url": trusted_images.url("/a.wav")}},
        {"type": "video_url", "video_url": {"url": trusted_images.url("/a.mp4")}},
        {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
        {"type": "image_embeds", "image_embeds": "AAAA"},
        {"type": "image", "image": "a.png"},
        {"image_url": {"url": trusted_images.url("/no-type.png")}},
    ):
        with pytest.raises(BadRequestError, match=r"messages\[0\]\.content\[1\]: a part of type"):
            ask(tiny_server, user("?", part))
    assert len(trusted_images.requests) == reached


def test_images_stay_where_they_are_put(tiny_server: Server):
    image = image_part(data_url(picture(1)))
    last = [part_ids(tiny_server, *parts) for parts in ((image, "ab", "cd"), ("ab", image, "cd"), ("ab", "cd", image))]
    assert len({tuple(ids) for ids in last}) == 3
    assert len({tuple(sorted(ids)) for ids in last}) == 1  # the same tokens, elsewhere


def part_ids(server: Server, *parts: dict | str) -> list[int]:
    return prompt_ids(server, user(*parts))


def test_routes_that_take_messages_are_all_looked_at(tiny_server: Server):
    from qwen_vqa.serving.requests.request_images import CHECKS

    document = httpx.get(tiny_server.url.removesuffix("/v1") + "/openapi.json").json()
    taking = {path for path, methods in document["paths"].items() if _takes_messages(document, methods.get("post"))}
    assert {"/v1/chat/completions", "/v1/messages", "/v1/responses"} <= taking
    assert taking - set(CHECKS) == set()


def _takes_messages(document: dict, operation: dict | None) -> bool:
    schema = str((operation or {}).get("requestBody", ""))
    names = [name for name in document["components"]["schemas"] if f"schemas/{name}'" in schema]
    return any(
        {"messages", "input"} & set(document["components"]["schemas"][name].get("properties", {})) for name in names
    )


def test_pictures_of_clients_who_have_gone_are_not_decoded(tiny_server: Server):
    """Eight of the slowest that are taken, all given up early: another client does not wait for two rounds of them."""

    def ask_about(url: str, seconds: float = 60.0) -> float:
        started = time.monotonic()
        body = {"model": "tiny", "messages": [user(image_part(url), "what?")], "max_tokens": 1}
        with contextlib.suppress(httpx.ReadTimeout):
            reply = httpx.post(f"{tiny_server.url}/chat/completions", json=body, timeout=seconds)
            assert reply.status_code == 200, reply.text
        return time.monotonic() - started

    slow = jpeg_of_many_scans(6000, 22)
    whole = ask_about(f"data:image/jpeg;base64,{encoded(slow)}")
    with ThreadPoolExecutor(8) as pool:
        for number in range(8):
            pool.submit(ask_about, f"data:image/jpeg;base64,{encoded(slow + bytes(number + 1))}", whole / 4)
    assert ask_about(f"data:image/png;base64,{encoded(png())}") < 2 * whole
