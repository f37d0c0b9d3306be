"""What one request may ask for: images, answers, tokens."""

import json
import re

import pytest
from openai import BadRequestError

from qwen_vqa.serving.admission.request_json import SentJson
from qwen_vqa.serving.errors.refusals import RefusedError
from tests.serving.asgi import BOUNDS, ask, image, image_part


@pytest.mark.parametrize(
    "parts",
    [
        [{"type": "image_url", "image_url": {"url": "data:,", "detail": detail}} for detail in ("low", "high", "low")],
        [{"type": "input_image", "image_url": "data:,", "detail": detail} for detail in ("low", "auto", "low")],
    ],
)
def test_images_in_low_detail_are_counted_apart(parts: list[dict]):
    asked = BOUNDS.check(SentJson(json.dumps({"messages": [{"role": "user", "content": parts}]}).encode()))
    assert (asked.images, asked.low_detail) == (3, 2)


@pytest.mark.parametrize(
    ("request_body", "images"),
    [
        ({"messages": [{"role": "user", "content": "image_url"}]}, 0),
        ({"messages": [{"role": "user", "content": [image(), {"type": "text", "text": "a"}, image()]}]}, 2),
        ({"messages": [{"role": "user", "content": [{"image_url": "data:,"}]}]}, 1),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "data:,"}]}]}, 1),
        ({"input": "text"}, 0),
        (
            {
                "messages": [
                    {"content": [{"type": "tool_result", "content": [{"type": "image", "source": {"data": ""}}]}]}
                ]
            },
            1,
        ),
        ({"messages": [[{"content": [image()]}], [{"content": [image()]}]]}, 2),
        ({"messages": [], "tools": [{"function": {"parameters": {"properties": {"image_url": {}}}}}]}, 0),
        ({"messages": "nonsense", "input": 3}, 0),
        ([1, 2], 0),
    ],
)
def test_images_are_counted_wherever_the_apis_have_them(request_body, images: int):
    assert BOUNDS.check(SentJson(json.dumps(request_body).encode())).images == images


@pytest.mark.parametrize(
    ("request_body", "named"),
    [
        ({"messages": [{"content": [image()] * 5}]}, r"5 images; .* at most 4 \(--max-images\)"),
        ({"n": 4}, r"n is 4; .* at most 3 \(--max-n\)"),
        ({"n": "4"}, "n is 4"),
        ({"n": 4.0}, "n is 4"),
        ({"best_of": 9}, "n is 9"),
        ({"prompt": ["a", "b"], "n": 2}, "n is 4"),
        ({"prompt": [[1, 2], [3], [4], [5]]}, "n is 4"),
        ({"max_tokens": 601}, r"max_tokens is 601; .* at most 600 \(--max-output-tokens\)"),
        ({"max_completion_tokens": 1e30}, "max_completion_tokens is 1"),
        ({"max_tokens": 10**400}, "max_tokens is 1000"),
        ({"max_output_tokens": 601}, "max_output_tokens is 601"),
        ({"background": True}, "background is not served"),
    ],
)
def test_more_than_a_bound_is_400_with_the_bound_named(request_body: dict, named: str):
    with pytest.raises(RefusedError) as error:
        BOUNDS.check(SentJson(json.dumps(request_body).encode()))
    assert error.value.status == 400
    assert error.value.param
    assert re.search(named, error.value.message)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"\xff\xfe\x00",
        b"null",
        b'{"n": null, "max_tokens": null, "prompt": null}',
        b'{"n": 3, "max_tokens": 600, "prompt": [1, 2, 3, 4, 5]}',
        b'{"n": -1, "max_tokens": "many", "messages": {}}',
        b'{"n": NaN, "max_tokens": []}',
    ],
)
def test_what_is_within_bounds_or_the_routes_own_to_refuse_passes(body: bytes):
    assert BOUNDS.check(SentJson(body)).images == 0


def test_json_nested_too_deeply_is_refused():
    with pytest.raises(RefusedError, match="nested too deeply"):
        BOUNDS.check(SentJson(b"[" * 200_000))


def test_the_running_server_names_its_bounds(guarded_server):
    client = guarded_server.client_with(guarded_server.keys["alice"])
    with pytest.raises(BadRequestError, match="at most 4"):
        ask(client, *[image_part()] * 5)
    with pytest.raises(BadRequestError, match="n is 4"):
        ask(client, n=4)
    with pytest.raises(BadRequestError, match="max_tokens is 601"):
        ask(client, max_tokens=601)
    with pytest.raises(BadRequestError, match="max_output_tokens is 601"):
        client.responses.create(model="tiny", input="hi", max_output_tokens=601)
    assert len(ask(client, n=3).choices) == 3
    unbounded = client.chat.completions.create(
        model="tiny",
        messages=[{"role": "user", "content": "hi"}],
        extra_body={"ignore_eos": True},
    )
    assert unbounded.usage.completion_tokens == 600, "a request that names no max_tokens gets the bound"
