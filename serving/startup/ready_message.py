"""What `serve` says when it is ready: where it is, a snippet to paste, and the demo's first answer."""

import json
import os
import threading
import time
from argparse import Namespace
from pathlib import Path

from openai import DefaultHttpxClient, OpenAI, OpenAIError

from qwen_vqa.plugin.command.installed_command import typed_command
from qwen_vqa.plugin.images.message_parts import data_url, user_message
from qwen_vqa.serving import DEMO_IMAGES, DEMO_NAME
from qwen_vqa.serving.observability.log import is_json, say, show
from qwen_vqa.serving.process.supervisor import RESTARTS

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


def say_ready(args: Namespace, started: float, port_is_ours: threading.Event) -> None:
    """Beside the server, which answers by now: print address and snippet, and ask the demo its first question.

    Args:
        started: `time.monotonic()` at the start of this process.
        port_is_ours: when no other process answers on the port.
    """
    threading.Thread(target=_welcome, args=(args, started, port_is_ours), daemon=True).start()


def _welcome(args: Namespace, started: float, port_is_ours: threading.Event) -> None:
    port_is_ours.wait()
    say(f"ready after {time.monotonic() - started:.0f} s")
    if os.environ.get(RESTARTS, "0") == "0" and not is_json():
        _introduce(args)


def _introduce(args: Namespace) -> None:
    url = server_url(args)
    key = args.admission.first_key or "none"
    model = args.trained_adapter or args.served_model_name[0]
    adapters = [module.name for module in args.lora_modules or []]
    example = _example() if model == DEMO_NAME and not args.uds else None
    names = ", ".join([args.served_model_name[0], *(f"{name} (adapter)" for name in adapters)])
    lines = [f"\nserving {names} at {f'unix:{args.uds}' if args.uds else url}\n"]
    if example and (args.admission.first_key or not args.admission.keys):
        # Our own certificate need not be one that this machine trusts.
        client = OpenAI(base_url=url, api_key=key, http_client=DefaultHttpxClient(verify=False))
        lines.append(_first_answer(client, model, example))
    question = example[1] if example else "What is in the picture?"
    image = _short(example[0]) if example else "photo.png"
    if not args.uds:
        where = f"--url {url} --model {model}{' --api-key YOUR_KEY' if args.admission.keys else ''}"
        lines.append(f'Ask it in the terminal:\n\n    {typed_command()} ask "{question}" {image} {where}\n')
    lines.append("Ask it from Python (pip install openai):\n")
    lines.append(
        SNIPPET.format(
            url=url,
            key="YOUR_KEY" if args.admission.keys else "none",
            image=image,
            model=model,
            question=question,
        )
    )
    lines.append("Stop the server with Ctrl-C.")
    show("\n".join(lines))


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
    try:
        reply = client.chat.completions.create(
            model=model,
            messages=[user_message(question, [data_url(image.read_bytes())])],  # type: ignore[list-item] # a dict
        )
    except OpenAIError as error:
        return f"its first question failed: {error}\n"
    return f"asked about {_short(image)}: {question}\nanswer: {reply.choices[0].message.content}\n"


def _short(path: Path) -> str:
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
