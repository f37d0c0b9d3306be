"""A model with tiles behind the whole server: `detail`, what is counted and cached, and that it answers as trained."""

from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import httpx
import pytest
import torch
from openai import BadRequestError, OpenAI

from qwen_vqa.train.model.reference_checkpoint import load_processor, load_reference
from qwen_vqa.train.verify.served_stages import ServedModel
from qwen_vqa.train.verify.stage_comparison import Reference, Tolerance, compare
from qwen_vqa.train.verify.verify_cases import built_in_cases, case
from tests.server import Server, serving
from tests.serving.requests.test_images import encoded, image_part, user
from tests.tiny import make_checkpoint, picture

VIEWS = {"rule": "tiles", "max_tiles": 6}
WHOLE = 16
SIDE = 4
# Of a picture of 200 x 130 pixels at 64 a tile: two rows of three.
TILED = WHOLE + 2 * SIDE * (3 * SIDE + 1)
WIDE = picture(1, 200, 130)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("tiles") / "tiled", vision_type="clip", views=VIEWS)


@pytest.fixture(scope="module")
def server(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    log = tmp_path_factory.mktemp("log") / "tiles.log"
    with serving(log, str(checkpoint), "--verify", "--dtype", "float32", "--max-images", "64") as running:
        yield running


def messages(*details: str | None) -> list[dict]:
    buffer = BytesIO()
    WIDE.save(buffer, "PNG")
    url = f"data:image/png;base64,{encoded(buffer.getvalue())}"
    parts = [image_part(url, **({} if detail is None else {"detail": detail})) for detail in details]
    return [user(*parts, "what is it?")]


def image_tokens(client: OpenAI, *details: str | None) -> int:
    answer = client.chat.completions.create(model="tiled", messages=messages(*details), max_tokens=1)
    return answer.usage.prompt_tokens_details.multimodal_tokens["image"]


@pytest.mark.parametrize(
    ("detail", "tokens"), [("low", WHOLE), ("high", TILED), ("auto", TILED), ("original", TILED), (None, TILED)]
)
def test_detail_says_whether_there_are_tiles(server: Server, detail: str | None, tokens: int):
    client = OpenAI(base_url=server.url, api_key="none")
    assert image_tokens(client, detail) == tokens
    body = {"model": "tiled", "messages": messages(detail)}
    counted = httpx.post(f"{server.url}/chat/completions/tokens", json=body).json()
    assert counted["image_tokens"] == tokens


def test_one_picture_with_two_details_is_two_cache_entries(server: Server):
    client = OpenAI(base_url=server.url, api_key="none")
    for details in (["low", "high"], ["high", "low"]):
        assert image_tokens(client, *details) == WHOLE + TILED


@pytest.mark.parametrize("case", [*built_in_cases(), case("a wide picture", WIDE, "what is it?")], ids=lambda c: c.name)
def test_it_answers_as_trained(server: Server, checkpoint: Path, case):
    reference = Reference(load_reference(checkpoint, torch.float32), load_processor(checkpoint))
    results = list(compare(case, reference, ServedModel(server.url, "tiled"), Tolerance.of(torch.float32)))
    assert [result.stage for result in results if not result.equal or not result.compared] == [], results[-1].detail


def test_too_many_tiles_for_the_context_are_refused_with_the_numbers(server: Server):
    client = OpenAI(base_url=server.url, api_key="none")
    with pytest.raises(BadRequestError, match=r"\b2[45]\d\d\b.*1024"):
        client.chat.completions.create(model="tiled", messages=messages(*["high"] * 20), max_tokens=1)
    assert image_tokens(client, *["low"] * 20) == 20 * WHOLE
    assert image_tokens(client, "high") == TILED, "the engine goes on"
