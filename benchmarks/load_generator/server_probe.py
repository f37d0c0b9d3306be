"""Before anything is measured: is the server there, which models has it, and what does it do beyond plain OpenAI."""

import asyncio
import json
import time
from dataclasses import dataclass, replace
from typing import Any

import aiohttp

from qwen_vqa.benchmarks.load_generator.records import Record
from qwen_vqa.benchmarks.load_generator.server_metrics import read_metrics
from qwen_vqa.benchmarks.load_generator.streaming_client import Abilities, Client, Target
from qwen_vqa.plugin.errors import UserError

PROBE_TOKENS = 4
# Refusals of a field that a server does not know.
UNKNOWN_FIELD = ("http 400", "http 422")


@dataclass(frozen=True)
class Probed:
    """A target with what its server can do, its models' names, version, and what has to be left out."""

    target: Target
    models: tuple[str, ...]
    version: str | None
    left_out: tuple[str, ...]


def probe(target: Target, model: str | None) -> Probed:
    """Ask for the models, then for one short answer with vLLM's extensions, and without if it refuses them.

    Raises:
        UserError: nobody answers, the key is refused, the model is not there, or it cannot answer.
    """
    return asyncio.run(_probe(target, model))


async def _probe(target: Target, model: str | None) -> Probed:
    async with aiohttp.ClientSession(headers=target.headers, timeout=aiohttp.ClientTimeout(total=30)) as session:
        models = await _models(session, target)
        version = await _version(session, target)
    if model is not None and model not in models:
        raise UserError(f"{target.url} has no model {model}; it has {', '.join(models)}.")
    record = await _ask(target, model or models[0])
    if record.error in UNKNOWN_FIELD:
        target = replace(target, abilities=Abilities(extensions=False))
        record = await _ask(target, model or models[0])
    if record.error:
        raise UserError(f"{target.url} does not answer a first question ({record.error}): {record.detail}")
    abilities = Abilities(
        extensions=target.abilities.extensions,
        usage=record.prompt_tokens is not None,
        chunk_usage=target.abilities.extensions and len(record.chunks) > 1 and record.prompt_tokens is not None,
        exact_length=record.output_tokens == PROBE_TOKENS,
    )
    metrics = await asyncio.to_thread(read_metrics, target.url, target.headers)
    return Probed(
        replace(target, abilities=abilities), models, version, tuple(_left_out(abilities, metrics is not None))
    )


def _left_out(abilities: Abilities, metrics: bool) -> list[str]:
    notes = []
    if not metrics:
        notes.append("no /metrics of vLLM: the server's cache hit rates and queue are left out")
    if not abilities.exact_length:
        notes.append("the server does not keep to the asked output length (no ignore_eos): answers may be shorter")
    if not abilities.usage:
        notes.append("the server does not count tokens (no usage): an event of the stream counts as one token")
    return notes


async def _models(session: aiohttp.ClientSession, target: Target) -> tuple[str, ...]:
    try:
        async with session.get(f"{target.url}/models") as answer:
            if answer.status in (401, 403):
                raise UserError(f"{target.url} refuses the key ({answer.status}); give --api-key or OPENAI_API_KEY.")
            if answer.status != 200:
                raise UserError(f"{target.url}/models answers {answer.status}; --url ends in /v1, as OpenAI's does.")
            names = tuple(model["id"] for model in (await answer.json(content_type=None))["data"])
    except (aiohttp.ClientError, OSError, asyncio.TimeoutError) as error:
        raise UserError(f"nobody answers at {target.url} ({error}); is the server running?") from None
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{target.url}/models is not an OpenAI server's list of models.") from None
    if not names:
        raise UserError(f"{target.url} serves no model.")
    return names


async def _version(session: aiohttp.ClientSession, target: Target) -> str | None:
    try:
        async with session.get(f"{target.url.removesuffix('/v1')}/version") as answer:
            body: Any = json.loads(await answer.text()) if answer.status == 200 else {}
            return body.get("version") if isinstance(body, dict) else None
    except (aiohttp.ClientError, OSError, asyncio.TimeoutError, ValueError):
        return None


async def _ask(target: Target, model: str) -> Record:
    record = Record(0, 0, model, PROBE_TOKENS, 0, False, 0.0)
    async with aiohttp.ClientSession() as session:
        body = target.body(model, [{"role": "user", "content": "Which colour is it?"}], PROBE_TOKENS)
        await Client(target, session, time.monotonic()).ask(record, body)
    return record
