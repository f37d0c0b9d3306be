"""Makes the README's picture of the chat page, on the demo: python -m tests.chat_screenshot [URL of its server]."""

import contextlib
import io
import sys
import tempfile
from pathlib import Path

from PIL import Image

from qwen_vqa.serving import DEMO_IMAGES
from tests.browser import chromium
from tests.chat import chat_page, visit
from tests.server import serving
from tests.tiny import REPOSITORY

PICTURE = REPOSITORY / "serving" / "chat" / "page.png"
COLOURS = 256


def main() -> None:
    """A conversation about two pictures, in few colours."""
    with contextlib.ExitStack() as stack:
        logs = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        url = sys.argv[1] if len(sys.argv) > 1 else stack.enter_context(serving(logs / "server.log")).url
        page_url = stack.enter_context(chat_page(url, logs / "page.log"))
        chat = stack.enter_context(visit(stack.enter_context(chromium()), page_url))
        chat.page.set_viewport_size({"width": 1180, "height": 1080})
        chat.ask("What shape is pink?", DEMO_IMAGES / "shapes.png")
        chat.answers(1)
        chat.ask("Where is the ring?")
        chat.answers(2)
        chat.ask("What number is written here?", DEMO_IMAGES / "number.png")
        chat.answers(3)
        chat.page.mouse.move(5, 800)
        chat.page.wait_for_timeout(1500)
        image = Image.open(io.BytesIO(chat.page.screenshot())).convert("RGB")
        image.quantize(COLOURS, dither=Image.Dither.NONE).save(PICTURE, optimize=True)
    print(f"{PICTURE.relative_to(REPOSITORY)}: {PICTURE.stat().st_size / 1024:.0f} KB")


if __name__ == "__main__":
    main()
