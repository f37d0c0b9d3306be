"""Asking a server through the OpenAI API, greedily, many questions at once."""

import asyncio
import io
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from openai import APIError, AsyncOpenAI
from tqdm import tqdm

from qwen_vqa.plugin.errors import UserError
from qwen_vqa.plugin.images.image_limits import ImageError
from qwen_vqa.plugin.images.image_source import open_image
from qwen_vqa.plugin.images.message_parts import data_url, image_part
from qwen_vqa.train.data.row import Picture
from qwen_vqa.train.evaluation.questions import Prompt
from qwen_vqa.train.evaluation.replies import Record, Reply
from qwen_vqa.train.verify.served_stages import served_models

MAX_TOKENS = 64  # of an answer, CONCURRENCY and REQUEST_SECONDS: where a measurement asks (`ask_server`)
CONCURRENCY = 16
REQUEST_SECONDS = 1800.0
GIVE_UP_AFTER = 20  # failures with nothing answered between them
# What any server takes as it is; other files are sent as PNG.
_SIGNATURES = {b"\xff\xd8\xff": "jpeg", b"\x89PNG": "png"}


@dataclass(frozen=True)
class ServerModel:
    """A model of a server, by name; answers have at most `max_tokens` tokens.

    Args:
        url: the API's address, ending in /v1.
        retries: of a request that is refused with 429, meets a 5xx or no connection; with growing pauses.
    """

    url: str
    name: str
    api_key: str
    max_tokens: int
    concurrency: int
    timeout: float
    retries: int = 4

    @classmethod
    def find(cls, url: str, name: str | None, api_key: str, **settings: Any) -> "ServerModel":
        """The server's model of that name, or the first that it lists.

        Raises:
            UserError: nothing answers there, or it has no such model.
        """
        names = served_models(url, api_key)
        if name is not None and name not in names:
            raise UserError(f"{url} does not serve {name!r}; it has {', '.join(names)}.")
        return cls(url, name or names[0], api_key, **settings)

    def ask(self, prompts: Sequence[Prompt], record: Record) -> None:
        """Call `record` with the reply to each prompt, in the order in which they come.

        Raises:
            UserError: one request after another fails; what was recorded before stands.
        """
        asyncio.run(self._ask(prompts, record))

    async def _ask(self, prompts: Sequence[Prompt], record: Record) -> None:
        if not prompts:
            return
        waiting = deque(prompts)
        failures = 0

        async def work(client: AsyncOpenAI) -> None:
            nonlocal failures
            while waiting:
                reply = await self._reply(client, waiting.popleft())
                record(reply)
                failures = failures + 1 if reply.fault else 0
                if failures >= GIVE_UP_AFTER:
                    raise UserError(f"the last {GIVE_UP_AFTER} requests to {self.url} failed: {reply.fault}")

        async with AsyncOpenAI(
            base_url=self.url, api_key=self.api_key, max_retries=self.retries, timeout=self.timeout
        ) as client:
            workers = [asyncio.create_task(work(client)) for _ in range(min(self.concurrency, len(prompts)))]
            try:
                # Not gather: interrupted, it would wait for workers whose one cancellation a library has swallowed.
                done, _ = await asyncio.wait(workers, return_when=asyncio.FIRST_EXCEPTION)
                for worker in done:
                    worker.result()
            finally:
                for worker in workers:
                    worker.cancel()

    async def _reply(self, client: AsyncOpenAI, prompt: Prompt) -> Reply:
        try:
            messages = await asyncio.to_thread(request_messages, prompt)
            completion = await client.chat.completions.create(
                model=self.name,
                messages=messages,  # type: ignore[arg-type] # the SDK types each part
                max_tokens=self.max_tokens,
                temperature=0,
                # Else vLLM takes the penalty in the checkpoint's generation config.
                extra_body={"repetition_penalty": 1.0},
            )
        except (APIError, ImageError) as error:
            return Reply(prompt, fault=str(error))
        if not completion.choices or completion.choices[0].message.content is None:
            return Reply(prompt, fault="the server sent no answer")
        return Reply(prompt, completion.choices[0].message.content.strip())


def request_messages(prompt: Prompt) -> list[dict[str, Any]]:
    """The messages as a client sends them: pictures as data URLs.

    Raises:
        ImageError: a picture cannot be opened.
    """
    pictures = iter(prompt.pictures)

    def part(one: dict[str, Any]) -> dict[str, Any]:
        return one if one["type"] != "image" else image_part(picture_url(next(pictures)))

    return [
        {**message, "content": [part(one) for one in message["content"]]}
        if isinstance(message["content"], list)
        else message
        for message in prompt.messages
    ]


def picture_url(picture: Picture) -> str:
    """The picture's file, if it is a JPEG or PNG; else as a PNG of the same pixels."""
    source = picture.source
    data = source if isinstance(source, bytes) else b"" if isinstance(source, str) else _bytes(source)
    kind = next((kind for signature, kind in _SIGNATURES.items() if data.startswith(signature)), None)
    if kind is None:
        buffer = io.BytesIO()
        open_image(source).save(buffer, "PNG")
        kind, data = "png", buffer.getvalue()
    return data_url(data, f"image/{kind}")


def _bytes(path: Any) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ImageError(f"{path}: {error.strerror}") from error


def ask_server(
    url: str, name: str | None, asked: Sequence[Prompt], label: str, max_tokens: int = MAX_TOKENS
) -> list[Reply]:
    """Greedy answers of a server's model, or why there is none, in the order of `asked`.

    Args:
        url: the API's address, ending in /v1.
        name: the model's on the server; None for the first.
        label: what the progress bar says.

    Raises:
        UserError: there is no such model, or one request after another fails.
    """
    model = ServerModel.find(url, name, "none", max_tokens=max_tokens, concurrency=CONCURRENCY, timeout=REQUEST_SECONDS)
    replies: dict[int, Reply] = {}
    with tqdm(total=len(asked), desc=f"asking {label}", unit="question") as progress:

        def record(reply: Reply) -> None:
            replies[id(reply.prompt)] = reply
            progress.update()

        model.ask(asked, record)
    return [replies[id(prompt)] for prompt in asked]
