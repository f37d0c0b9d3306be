"""A server without a model: what is measured against it is the client.

python -m qwen_vqa.benchmarks.load_generator.null_server --port 8001
python -m qwen_vqa.benchmarks.load_generator.null_server --ttft 500 --itl 40

It answers at once, or to the clock: then what a load generator ought to find is known.
"""

import argparse
import asyncio
import contextlib
import json
import os
import signal
import sys
import threading

from aiohttp import web

MODEL = "null-server"  # guidellm takes "null" for no model
TTFT = web.AppKey("ttft", float)
ITL = web.AppKey("itl", float)


def application(ttft: float = 0, itl: float = 0) -> web.Application:
    """OpenAI's chat route, streaming as many one-letter tokens as asked for, with usage in each event.

    Args:
        ttft: seconds from a request's arrival to its first token.
        itl: seconds from each token to the next. Each is due at a time of its own: one that is late delays no other.
    """
    app = web.Application(client_max_size=2**28)
    app[TTFT], app[ITL] = ttft, itl
    app.add_routes([web.get("/v1/models", _models), web.post("/v1/chat/completions", _chat)])
    return app


async def _models(_: web.Request) -> web.Response:
    return web.json_response({"object": "list", "data": [{"id": MODEL, "object": "model"}]})


async def _chat(request: web.Request) -> web.StreamResponse:
    loop = asyncio.get_running_loop()
    first = loop.time() + request.app[TTFT]
    body = await request.json()
    tokens = body.get("max_tokens") or body["max_completion_tokens"]
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    with contextlib.suppress(ConnectionResetError):  # the client was stopped
        await response.prepare(request)
        for number in range(1, tokens + 1):
            # Also where nothing is to be waited for: so events travel one by one, as a model's do.
            await asyncio.sleep(max(0, first + (number - 1) * request.app[ITL] - loop.time()))
            await response.write(_event(number, "stop" if number == tokens else None))
        await response.write(b"data: [DONE]\n\n")
    return response


def _event(number: int, finish_reason: str | None) -> bytes:
    choice = {"index": 0, "delta": {"content": "a"}, "finish_reason": finish_reason}
    usage = {"prompt_tokens": 1, "completion_tokens": number, "total_tokens": number + 1}
    event = {"id": "chatcmpl-0", "object": "chat.completion.chunk", "created": 0, "model": MODEL}
    return b"data: " + json.dumps(event | {"choices": [choice], "usage": usage}).encode() + b"\n\n"


def _stop_at_eof() -> None:
    while os.read(sys.stdin.fileno(), 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def main() -> None:
    """Serve on this machine until stopped."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=8001, help="(default: %(default)s)")
    parser.add_argument("--ttft", type=float, default=0, help="milliseconds to the first token (default: %(default)s)")
    parser.add_argument("--itl", type=float, default=0, help="milliseconds between tokens (default: %(default)s)")
    parser.add_argument(
        "--until-eof",
        action="store_true",
        help="stop when standard input ends, as it does with the process that holds it (default: until stopped)",
    )
    args = parser.parse_args()
    if args.until_eof:
        threading.Thread(target=_stop_at_eof, daemon=True).start()
    app = application(args.ttft / 1000, args.itl / 1000)
    web.run_app(app, host="127.0.0.1", port=args.port, print=None, access_log=None)


if __name__ == "__main__":
    main()
