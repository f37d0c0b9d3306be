"""A server that answers at once, without a model: what is measured against it is the client.

python -m qwen_vqa.benchmarks.null_server --port 8001
"""

import argparse
import asyncio
import contextlib
import json

from aiohttp import web

MODEL = "null"


def application() -> web.Application:
    """OpenAI's chat route, streaming as many one-letter tokens as asked for, with usage in each event."""
    app = web.Application(client_max_size=2**28)
    app.add_routes([web.get("/v1/models", _models), web.post("/v1/chat/completions", _chat)])
    return app


async def _models(_: web.Request) -> web.Response:
    return web.json_response({"object": "list", "data": [{"id": MODEL, "object": "model"}]})


async def _chat(request: web.Request) -> web.StreamResponse:
    body = await request.json()
    tokens = body.get("max_tokens") or body["max_completion_tokens"]
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    with contextlib.suppress(ConnectionResetError):  # the client was stopped
        await response.prepare(request)
        for number in range(1, tokens + 1):
            await response.write(_event(number, "stop" if number == tokens else None))
            await asyncio.sleep(0)  # so that events travel one by one, as a model's do
        await response.write(b"data: [DONE]\n\n")
    return response


def _event(number: int, finish_reason: str | None) -> bytes:
    choice = {"index": 0, "delta": {"content": "a"}, "finish_reason": finish_reason}
    usage = {"prompt_tokens": 1, "completion_tokens": number, "total_tokens": number + 1}
    event = {"id": "chatcmpl-0", "object": "chat.completion.chunk", "created": 0, "model": MODEL}
    return b"data: " + json.dumps(event | {"choices": [choice], "usage": usage}).encode() + b"\n\n"


def main() -> None:
    """Serve on this machine until stopped."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=8001, help="(default: %(default)s)")
    web.run_app(application(), host="127.0.0.1", port=parser.parse_args().port, print=None, access_log=None)


if __name__ == "__main__":
    main()
