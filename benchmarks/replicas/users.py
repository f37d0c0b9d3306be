"""Users with OpenAI's SDK and its default retries, who know what the answers should be."""

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any

import httpx
import openai
from openai import AsyncOpenAI
from PIL import Image

from qwen_vqa.plugin.images.message_parts import data_url, user_message
from qwen_vqa.train.drawn.drawing import draw
from qwen_vqa.train.drawn.held_out import cases

SKILLS = ("colour", "shape", "count", "position", "reading, 3 digits", "name", "describe")
MAX_TOKENS = 32
STREAMED = 0.5  # of the requests
# What the SDK raises: its own errors, and httpx's where a stream breaks in the middle.
ERRORS = (openai.APIError, httpx.HTTPError)


@dataclass(frozen=True)
class AskedPicture:
    """A question about a drawn picture, in OpenAI's form."""

    number: int
    message: dict[str, Any]


def questions(number: int) -> list[AskedPicture]:
    """The same ones each time; each about a picture of its own."""
    each = -(-number // len(SKILLS))
    found = [case for skill in SKILLS for case in cases(skill, each)][:number]
    return [AskedPicture(index, _message(case)) for index, case in enumerate(found)]


def _message(case: Any) -> dict[str, Any]:
    buffer = BytesIO()
    Image.fromarray(draw(case.scenes[0])[0]).save(buffer, "PNG")
    return user_message(case.turns[-1].question, [data_url(buffer.getvalue())])


@dataclass
class Tally:
    """What users met.

    Attributes:
        answered: requests with the whole answer that was expected.
        wrong: with another one.
        lost: that ended with an error, after the SDK's own retries.
        retries: what the SDK sent again.
        broken: streams that ended in the middle with an error; the user asked again.
        cut: streams that ended in the middle as if they were whole.
        seconds: of each answered request.
        examples: of what went wrong, by kind.
    """

    answered: int = 0
    wrong: int = 0
    lost: int = 0
    retries: int = 0
    broken: int = 0
    cut: int = 0
    seconds: list[float] = field(default_factory=list)
    examples: dict[str, str] = field(default_factory=dict)
    kinds: dict[str, int] = field(default_factory=dict)

    @property
    def good(self) -> bool:
        """Nothing was lost, wrong, or cut without a word."""
        return not (self.wrong or self.lost or self.cut)

    def note(self, kind: str, example: str) -> None:
        """Count something that went wrong; the first example stays."""
        self.kinds[kind] = self.kinds.get(kind, 0) + 1
        self.examples.setdefault(kind, example[:300])


async def expected_answers(url: str, model: str, asked: Sequence[AskedPicture]) -> dict[int, str]:
    """What the model says, greedily, while nothing happens."""
    async with AsyncOpenAI(base_url=url, api_key="calm") as client:

        async def answer(question: AskedPicture) -> str:
            reply: Any = await client.chat.completions.create(**_request(model, question))
            return reply.choices[0].message.content

        return dict(enumerate(await asyncio.gather(*(answer(question) for question in asked))))


def _request(model: str, question: AskedPicture) -> dict[str, Any]:
    return {"model": model, "messages": [question.message], "max_tokens": MAX_TOKENS, "temperature": 0}


async def use(
    url: str,
    model: str,
    users: int,
    asked: Sequence[AskedPicture],
    expected: dict[int, str],
    tally: Tally,
    goes_on: Callable[[], bool],
) -> None:
    """So many users ask one question after another as long as it `goes_on`; each has a key of his own."""

    async def user(number: int) -> None:
        chance = random.Random(f"user {number}")
        async with AsyncOpenAI(base_url=url, api_key=f"user-{number}") as client:
            while goes_on():
                question = chance.choice(asked)
                started = time.monotonic()
                text = await _ask(client, model, question, chance.random() < STREAMED, tally)
                if text is None:
                    continue
                if text != expected[question.number]:
                    tally.wrong += 1
                    tally.note("wrong", f"expected {expected[question.number]!r}, got {text!r}")
                    continue
                tally.answered += 1
                tally.seconds.append(time.monotonic() - started)

    await asyncio.gather(*(user(number) for number in range(users)))


async def _ask(client: AsyncOpenAI, model: str, question: AskedPicture, stream: bool, tally: Tally) -> str | None:
    """The whole answer; None where the user got none, or another's half."""
    try:
        raw: Any = await client.chat.completions.with_raw_response.create(**_request(model, question), stream=stream)
    except ERRORS as error:
        tally.lost += 1
        tally.note(f"lost: {type(error).__name__}", str(error))
        return None
    tally.retries += raw.retries_taken
    if not stream:
        return raw.parse().choices[0].message.content
    text, finished = "", False
    try:
        async for event in raw.parse():
            for choice in event.choices:
                text += choice.delta.content or ""
                finished = finished or choice.finish_reason is not None
    except ERRORS as error:
        tally.broken += 1
        tally.note(f"broken stream: {type(error).__name__}", str(error))
        return None
    if not finished:
        tally.cut += 1
        tally.note("cut", f"after {text!r}")
        return None
    return text
