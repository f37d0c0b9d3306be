"""Images of a request, opened by the loader that training uses: one picture gives the same pixels in both."""

import asyncio
import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar, NoReturn

from PIL import Image

from qwen_vqa.plugin.data_url import is_data_url
from qwen_vqa.plugin.image_detail import view_of, with_detail
from qwen_vqa.plugin.image_fetch import DEFAULT_RULES, FetchRules
from qwen_vqa.plugin.image_loader import ImageError, load_image
from qwen_vqa.plugin.image_source import url_bytes
from qwen_vqa.serving.content_checks import PlacedImage
from qwen_vqa.serving.metrics import IMAGE_DECODE, IMAGE_FETCH
from qwen_vqa.serving.request_images import RequestImages, request_images
from qwen_vqa.serving.request_record import request_record
from qwen_vqa.serving.vllm_api import MEDIA_CONNECTOR_REGISTRY, MediaConnector, MediaWithBytes, VLLMValidationError

NAME = "qwen_vqa"
# Pictures decoded at once: beside the event loop, and few, since one of the largest takes hundreds of megabytes.
_DECODERS = ThreadPoolExecutor(min(4, os.cpu_count() or 1), thread_name_prefix="decode-image")


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
        loop = asyncio.get_running_loop()
        try:
            with IMAGE_FETCH.labels("data" if is_data_url(image_url) else "web").time():
                data = await url_bytes(image_url, image.place, self.rules)
            request.spend(len(data), "bytes", self.rules.limits.max_bytes, image.place)
            opened: Any = await loop.run_in_executor(_DECODERS, _opened, data, request, image, self.rules)
            return opened  # with its bytes, which vLLM's own types do not say
        except ImageError as error:
            request_record().refused = "image"
            raise ImageRefusedError(str(error), parameter=image.place) from error

    def load_from_url(self, url: str, *args: Any, **kwargs: Any) -> NoReturn:  # type: ignore[override] # never returns
        """Refuses: through this vLLM would fetch sound and film, unchecked, which the model does not take."""
        raise ImageRefusedError("only images are taken.", parameter="messages")

    async def load_from_url_async(self, url: str, *args: Any, **kwargs: Any) -> NoReturn:  # type: ignore[override] # never returns
        """As `load_from_url`."""
        self.load_from_url(url)


def _opened(data: bytes, request: RequestImages, image: PlacedImage, rules: FetchRules) -> MediaWithBytes[Image.Image]:
    most = rules.limits.max_pixels
    request.spend(0, "pixels", most, image.place)  # once it is too much, no more are decoded
    with IMAGE_DECODE.time():
        picture = with_detail(load_image(data, image.place, rules.limits), image.detail)
    request.spend(picture.width * picture.height, "pixels", most, image.place)
    # vLLM's cache key is the bytes and this: details that mean another view do not share an entry.
    return MediaWithBytes(picture, data, {"view": view_of(image.detail)})
