"""Images of a request, opened by the loader that training uses: one picture gives the same pixels in both."""

from pathlib import Path

from PIL import Image
from vllm import envs
from vllm.multimodal.media import MediaConnector, MediaWithBytes
from vllm.multimodal.media.connector import MEDIA_CONNECTOR_REGISTRY
from vllm.multimodal.media.image import ImageMediaIO

from qwen_vqa.plugin.image_loader import load_image

NAME = "qwen_vqa"


class QwenVqaImageIO(ImageMediaIO):
    """vLLM's image reader with our loader inside."""

    def load_bytes(self, data: bytes) -> MediaWithBytes[Image.Image]:  # type: ignore[override] # as vLLM's own
        """An image file's bytes to an RGB picture; vLLM keeps the bytes, whose hash is the cache key."""
        return MediaWithBytes(load_image(data), data)

    def load_file(self, filepath: Path) -> MediaWithBytes[Image.Image]:  # type: ignore[override] # as vLLM's own
        """As `load_bytes`."""
        return self.load_bytes(filepath.read_bytes())


@MEDIA_CONNECTOR_REGISTRY.register(NAME)
class QwenVqaMediaConnector(MediaConnector):
    """vLLM's connector, fetching as it does, with our image reader. VLLM_MEDIA_CONNECTOR chooses it."""

    def fetch_image(self, image_url: str, *, image_mode: str | None = "RGB") -> Image.Image:
        """As vLLM's; the picture is RGB whatever the mode asked for."""
        return self.load_from_url(image_url, QwenVqaImageIO(), fetch_timeout=envs.VLLM_IMAGE_FETCH_TIMEOUT)

    async def fetch_image_async(self, image_url: str, *, image_mode: str | None = "RGB") -> Image.Image:
        """As vLLM's; the picture is RGB whatever the mode asked for."""
        return await self.load_from_url_async(image_url, QwenVqaImageIO(), fetch_timeout=envs.VLLM_IMAGE_FETCH_TIMEOUT)
