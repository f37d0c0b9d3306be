"""What `serve` says when it is ready: where it is, a snippet to paste, and the demo's first answer."""

import base64
import json
import threading
import time
from argparse import Namespace
from pathlib import Path

import httpx
from openai import OpenAI, OpenAIError

from qwen_vqa.serving import DEMO_IMAGES, DEMO_NAME

SNIPPET = """\
    import base64
    from openai import OpenAI

    client = OpenAI(base_url="{url}", api_key="{key}")
    image = base64.b64encode(open("{image}", "rb").read()).decode()
    answer = client.chat.completions.create(
        model="{model}",
        messages=[{{"role": "user", "content": [
            {{"type": "image_url", "image_url": {{"url": f"data:image/png;base64,{{image}}"}}}},
            {{"type": "text", "text": "{question}"}},
        ]}}],
    )
    print(answer.choices[0].message.content)
"""


def welcome_when_ready(args: Namespace, started: float) -> None:
    """Wait beside the server until it answers; then print address and snippet, and ask the demo its first question.

    `started` is `time.monotonic()` at the start of the command.
    """
    threading.Thread(target=_welcome, args=(args, started), daemon=True).start()


def _welcome(args: Namespace, started: float) -> None:
    health = server_url(args).removesuffix("/v1") + "/health"
    while not _answers(health):
        time.sleep(0.2)
    print(f"qwen-vqa: ready after {time.monotonic() - started:.0f} s", flush=True)
    _introduce(args)


def _answers(health: str) -> bool:
    try:
        return httpx.get(health, verify=False).status_code == 200  # our own certificate, if any
    except httpx.HTTPError:
        return False


def _introduce(args: Namespace) -> None:
    url = server_url(args)
    key = args.guard.first_key or "none"
    model = args.served_model_name[0]
    adapters = [module.name for module in args.lora_modules or []]
    example = _example() if model == DEMO_NAME else None
    names = ", ".join([model, *(f"{name} (adapter)" for name in adapters)])
    lines = [f"\nserving {names} at {url}\n"]
    if example and (args.guard.first_key or not args.guard.keys):
        lines.append(_first_answer(OpenAI(base_url=url, api_key=key), model, example))
    lines.append("Ask it from Python (pip install openai):\n")
    lines.append(
        SNIPPET.format(
            url=url,
            key="YOUR_KEY" if args.guard.keys else "none",
            image=_short(example[0]) if example else "photo.png",
            model=model,
            question=example[1] if example else "What is in the picture?",
        )
    )
    lines.append("Stop the server with Ctrl-C.")
    print("\n".join(lines), flush=True)


def server_url(args: Namespace) -> str:
    """The API's address, as a client on this machine writes it."""
    scheme = "https" if args.ssl_keyfile and args.ssl_certfile else "http"
    host = "localhost" if args.host in (None, "0.0.0.0", "127.0.0.1", "::") else args.host
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{args.port}/v1"


def _example() -> tuple[Path, str] | None:
    listing = DEMO_IMAGES / "examples.json"
    if not listing.is_file():
        return None
    first = json.loads(listing.read_text(encoding="utf-8"))[0]
    return DEMO_IMAGES / first["image"], first["question"]


def _first_answer(client: OpenAI, model: str, example: tuple[Path, str]) -> str:
    image, question = example
    data = base64.b64encode(image.read_bytes()).decode()
    try:
        reply = client.chat.completions.create(
            model=model,
            messages=[
                {
                    "role": "user",
                    "content": [
                        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}},
                        {"type": "text", "text": question},
                    ],
                }
            ],
        )
    except OpenAIError as error:
        return f"its first question failed: {error}\n"
    return f"asked about {_short(image)}: {question}\nanswer: {reply.choices[0].message.content}\n"


def _short(path: Path) -> str:
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
