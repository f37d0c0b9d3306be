"""The media connector in vLLM's hands: what it gives, what its pictures carry, and what shares a cache entry."""

import asyncio
import base64
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from vllm.config import ModelConfig
from vllm.exceptions import VLLMValidationError
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.hasher import MultiModalHasher
from vllm.multimodal.media import MEDIA_CONNECTOR_REGISTRY
from vllm.multimodal.processing import ProcessorInputs, TimingContext

from qwen_vqa.plugin.images.image_detail import detail_of, with_detail
from qwen_vqa.plugin.images.image_fetch import FetchRules
from qwen_vqa.plugin.images.image_limits import ImageLimits
from qwen_vqa.plugin.registration import register_all
from qwen_vqa.plugin.views.image_processor import QwenVqaImageProcessor
from qwen_vqa.serving.requests import media_connector
from qwen_vqa.serving.requests.request_images import RequestImagesMiddleware
from tests.image_server import png
from tests.tiny import picture, tiny_processor

URL = f"data:image/png;base64,{base64.b64encode(png()).decode()}"


def fetched(*details: str | None, url: str = URL) -> list:
    """What the connector makes of one URL, once for each detail that a request asks for."""
    parts = [{"type": "image_url", "image_url": {"url": url, **({"detail": d} if d else {})}} for d in details]
    body = str({"messages": [{"role": "user", "content": parts}]}).replace("'", '"').encode()
    found = []

    async def app(scope, receive, send) -> None:
        assert (await receive())["body"] == body
        connector = MEDIA_CONNECTOR_REGISTRY.load(media_connector.NAME)
        found.extend(await asyncio.gather(*(connector.fetch_image_async(url) for _ in details)))

    async def receive() -> dict:
        return {"type": "http.request", "body": body}

    async def send(message: dict) -> None:
        pytest.fail(f"answered: {message}")

    scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions"}
    asyncio.run(RequestImagesMiddleware(app)(scope, receive, send))
    return found


def key(item: object) -> str:
    return MultiModalHasher.hash_kwargs("blake3", image=item)


def test_a_picture_carries_its_detail_whatever_the_number_of_its_places():
    assert [detail_of(item.media) for item in fetched("high", None, "low")] == ["high", "auto", "low"]


def test_details_of_one_view_share_a_cache_entry():
    low, high = fetched("low", "high")
    assert key(low) == key(high)
    low.original_bytes = png(2)
    assert key(low) != key(high)


def test_details_of_different_views_share_none(monkeypatch):
    processor = QwenVqaImageProcessor(64, 16, tokens_per_view=16, views={"rule": "tiles"})
    monkeypatch.setattr(media_connector.QwenVqaMediaConnector, "processor", processor)
    low, high, auto = fetched("low", "high", "auto")
    assert key(high) == key(auto) != key(low)


def test_each_pictures_detail_reaches_the_image_processor_through_vllm(tiny_checkpoint: Path, monkeypatch):
    register_all()
    seen = []
    preprocess = QwenVqaImageProcessor.preprocess

    def spy(self, images, **kwargs):
        seen.extend(detail_of(image) for image in images)
        return preprocess(self, images, **kwargs)

    monkeypatch.setattr(QwenVqaImageProcessor, "preprocess", spy)
    processor = MULTIMODAL_REGISTRY.create_processor(ModelConfig(str(tiny_checkpoint), dtype="float32"))
    items = processor.info.parse_mm_data({"image": fetched("high", "low")})
    ids = tiny_processor().tokenizer.encode("<|image_pad|> and <|image_pad|>", add_special_tokens=False)
    processor.apply(ProcessorInputs(prompt=ids, mm_data_items=items), TimingContext())
    assert seen == ["high", "low"]


def test_an_unknown_detail_is_the_image_processors_to_refuse():
    with pytest.raises(ValueError, match="detail 'most': it must be one of low, high, auto"):
        tiny_processor().image_processor(with_detail(picture(1), "most"))


def test_the_connector_fetches_nothing_but_images():
    connector = MEDIA_CONNECTOR_REGISTRY.load(media_connector.NAME)
    for fetch in (connector.fetch_audio, connector.fetch_video):
        with pytest.raises(VLLMValidationError, match="only images are taken"):
            fetch("http://127.0.0.1:9/a")
    for fetch_async in (connector.fetch_audio_async, connector.fetch_video_async):
        with pytest.raises(VLLMValidationError, match="only images are taken"):
            asyncio.run(fetch_async("http://127.0.0.1:9/a"))


def test_offline_the_connector_gives_the_same_picture():
    connector = MEDIA_CONNECTOR_REGISTRY.load(media_connector.NAME)
    assert key(connector.fetch_image(URL)) == key(fetched("auto")[0])


@pytest.mark.parametrize("fit", ["pad", "squash"])
@pytest.mark.parametrize("size", [(90, 60), (1201, 800), (61, 977), (384, 384), (2, 1)])
def test_what_waits_for_the_model_is_small_and_gives_the_pixels_of_the_whole_picture(size, fit: str, monkeypatch):
    processor = QwenVqaImageProcessor(image_size=96, patch_size=12, fit=fit)
    monkeypatch.setattr(media_connector.QwenVqaMediaConnector, "processor", processor)
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    buffer = BytesIO()
    Image.fromarray(noise).save(buffer, "PNG")
    (item,) = fetched("low", url=f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}")
    assert item.media.size == (96, 96) and detail_of(item.media) == "low"
    assert (processor(item.media)["pixel_values"][0] == processor(noise)["pixel_values"][0]).all()


@pytest.mark.parametrize(
    ("limits", "unit"), [(ImageLimits(max_pixels=90 * 60), "pixels"), (ImageLimits(max_bytes=len(png())), "bytes")]
)
def test_a_requests_images_together_are_limited_too(limits: ImageLimits, unit: str, monkeypatch):
    monkeypatch.setattr(media_connector.QwenVqaMediaConnector, "rules", FetchRules(limits))
    assert len(fetched(*["auto"] * 4)) == 4
    with pytest.raises(
        VLLMValidationError, match=rf"\] *: with it, the request's images have more than .* {unit} together"
    ):
        fetched(*["auto"] * 5)


@pytest.mark.parametrize(("path", "root"), [("/v1/messages", ""), ("/v1/messages/", ""), ("/api/v1/messages", "/api")])
def test_content_is_looked_at_wherever_the_app_is_mounted(path: str, root: str):
    sent = []

    async def app(scope, receive, send) -> None:
        pytest.fail("passed on")

    async def receive() -> dict:
        return {"type": "http.request", "body": b'{"messages": []}'}

    async def send(message: dict) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": path, "root_path": root}
    asyncio.run(RequestImagesMiddleware(app)(scope, receive, send))
    assert sent[0]["status"] == 400
    assert b"invalid_request_error" in sent[1]["body"]


def test_a_body_in_pieces_reaches_the_app_whole():
    pieces = [b'{"messages": [{"role": "user", ', b'"content": "hi"}]}']
    got = []

    async def app(scope, receive, send) -> None:
        got.extend([await receive() for _ in range(3)])

    messages = [
        {"type": "http.request", "body": piece, "more_body": number == 0} for number, piece in enumerate(pieces)
    ]
    waiting = [*messages, {"type": "http.disconnect"}]

    async def receive() -> dict:
        return waiting.pop(0)

    scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions"}
    asyncio.run(RequestImagesMiddleware(app)(scope, receive, None))
    assert got == [*messages, {"type": "http.disconnect"}]
