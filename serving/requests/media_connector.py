"""Images of a request, opened by the loader that training uses: one picture gives the same pixels in both."""

import asyncio
from functools import partial
from typing import Any, ClassVar, NoReturn

from PIL import Image

from qwen_vqa.plugin.images.data_url import data_url_bytes, is_data_url
from qwen_vqa.plugin.images.image_detail import with_detail
from qwen_vqa.plugin.images.image_fetch import DEFAULT_RULES, FetchRules
from qwen_vqa.plugin.images.image_limits import ImageError
from qwen_vqa.plugin.images.image_loader import load_image
from qwen_vqa.plugin.images.image_source import url_bytes
from qwen_vqa.plugin.views.image_processor import QwenVqaImageProcessor
from qwen_vqa.serving.observability.metrics import IMAGE_DECODE, IMAGE_FETCH, IMAGE_TOKENS
from qwen_vqa.serving.observability.request_record import request_record
from qwen_vqa.serving.requests.content_checks import PlacedImage
from qwen_vqa.serving.requests.decoders import Decoders, DecodingEndedError, GoingOn
from qwen_vqa.serving.requests.request_images import RequestImages, request_images
from qwen_vqa.serving.vllm_server_api import (
    MEDIA_CONNECTOR_REGISTRY,
    MediaConnector,
    MediaWithBytes,
    VLLMValidationError,
)

NAME = "qwen_vqa"
_DECODERS = Decoders()


class ImageRefusedError(VLLMValidationError):
    """An image of a request that is not taken: 400, with the message and part as `param`."""

    def __str__(self) -> str:
        return str(self.args[0])  # vLLM's would name the parameter a second time


@MEDIA_CONNECTOR_REGISTRY.register(NAME)
class QwenVqaMediaConnector(MediaConnector):
    """Fetches and opens images under `rules`, and nothing else. VLLM_MEDIA_CONNECTOR chooses it.

    vLLM makes one for each message with images; the rules are the server's, set once before it serves.
    """

    rules: ClassVar[FetchRules] = DEFAULT_RULES
    processor: ClassVar[QwenVqaImageProcessor] = QwenVqaImageProcessor()

    def fetch_image(self, image_url: str, *, image_mode: str | None = "RGB") -> Image.Image:
        """As vLLM's; the picture is RGB whatever the mode asked for."""
        return asyncio.run(self.fetch_image_async(image_url))

    async def fetch_image_async(self, image_url: str, *, image_mode: str | None = "RGB") -> Image.Image:
        """As vLLM's; the picture is RGB whatever the mode asked for, and carries its `detail`.

        Raises:
            ImageRefusedError: it cannot be had or opened; the message begins with its place in the request.
        """
        request = request_images()
        image = request.place_of(image_url)
        try:
            if is_data_url(image_url):  # read in the thread that opens it: another one would cost more than the reading
                work = partial(self._read_and_opened, image_url, request, image)
            else:
                with IMAGE_FETCH.labels("web").time():
                    data = await url_bytes(image_url, image.place, self.rules)
                work = partial(self._opened, data, request, image)
            opened: Any = await _DECODERS.run(request_record().caller, work)
            return opened  # with its bytes, which vLLM's own types do not say
        except (ImageError, DecodingEndedError) as error:
            request_record().refused = "image"
            message = str(error) if isinstance(error, ImageError) else f"{image.place}: {error}; send a smaller one."
            raise ImageRefusedError(message, parameter=image.place) from error

    def load_from_url(self, url: str, *args: Any, **kwargs: Any) -> NoReturn:  # type: ignore[override] # never returns
        """Refuses: through this vLLM would fetch sound and film, unchecked, which the model does not take."""
        raise ImageRefusedError("only images are taken.", parameter="messages")

    async def load_from_url_async(self, url: str, *args: Any, **kwargs: Any) -> NoReturn:  # type: ignore[override] # never returns
        """As `load_from_url`."""
        self.load_from_url(url)

    def _read_and_opened(
        self, url: str, request: RequestImages, image: PlacedImage, going_on: GoingOn
    ) -> MediaWithBytes[Image.Image]:
        with IMAGE_FETCH.labels("data").time():
            data = data_url_bytes(url, image.place, self.rules.limits)
        return self._opened(data, request, image, going_on)

    def _opened(
        self, data: bytes, request: RequestImages, image: PlacedImage, going_on: GoingOn
    ) -> MediaWithBytes[Image.Image]:
        request.spend(len(data), "bytes", self.rules.limits.max_bytes, image.place)
        most = self.rules.limits.max_pixels
        request.spend(0, "pixels", most, image.place)  # once it is too much, no more are decoded
        with IMAGE_DECODE.time():
            picture = with_detail(load_image(data, image.place, self.rules.limits, going_on), image.detail)
            request.spend(picture.width * picture.height, "pixels", most, image.place)
            IMAGE_TOKENS.inc(self.processor.tokens_of(picture))
            # What waits for the model is small: a whole picture takes up to 150 MB.
            seen = self.processor.shrunk(picture)
        # vLLM's cache key is the bytes and this: details that mean other views do not share an entry.
        return MediaWithBytes(seen, data, {"view": self.processor.view_key(image.detail)})
