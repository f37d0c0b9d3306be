"""Why the load generator speaks HTTP through aiohttp: its CPU per request beside that of OpenAI's SDK.

python -m qwen_vqa.benchmarks.server_cost.client_choice
"""

import argparse
import asyncio
from dataclasses import replace
from typing import Any

from openai import AsyncOpenAI

from qwen_vqa.benchmarks.load_generator.client_overhead import REQUESTS, USERS, measure_ceiling, null_server
from qwen_vqa.benchmarks.load_generator.conversation_runner import cpu_seconds
from qwen_vqa.benchmarks.load_generator.null_server import MODEL
from qwen_vqa.benchmarks.load_generator.workload import WorkloadSpec, conversations
from qwen_vqa.benchmarks.script import run


def main() -> None:
    """Print both clients' CPU milliseconds per request, three rounds in turns."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-tokens", type=int, default=32, help="per request (default: %(default)s)")
    args = parser.parse_args()
    spec = WorkloadSpec(((MODEL, 1.0),), output_tokens=(args.output_tokens, args.output_tokens))
    for _ in range(3):
        ours = measure_ceiling(spec)
        with null_server() as url:
            sdk = asyncio.run(_sdk_cpu_seconds(url, REQUESTS, USERS, spec)) / REQUESTS * 1000
        print(
            f"CPU per request of {args.output_tokens} tokens: aiohttp {ours.cpu_ms_per_request:.2f} ms "
            f"({ours.requests_per_second:.0f}/s at most), OpenAI SDK {sdk:.2f} ms ({1000 / sdk:.0f}/s), "
            f"ratio {sdk / ours.cpu_ms_per_request:.1f}"
        )


async def _sdk_cpu_seconds(url: str, requests: int, users: int, spec: WorkloadSpec) -> float:
    """CPU seconds of the same requests through OpenAI's SDK, in this process."""
    of_the_model = replace(spec, models=((MODEL, 1.0),))
    messages: list[Any] = [c.turns[0].message() for c in conversations(of_the_model, 0, requests)]
    client = AsyncOpenAI(base_url=url, api_key="none", max_retries=0, timeout=60)
    waiting = iter(messages)

    async def user() -> None:
        for message in waiting:
            stream = await client.chat.completions.create(
                model=MODEL, messages=[message], max_tokens=spec.output_tokens[1], stream=True, temperature=0
            )
            async for _ in stream:
                pass

    used = cpu_seconds()
    await asyncio.gather(*(user() for _ in range(users)))
    return cpu_seconds() - used


if __name__ == "__main__":
    run("client_choice", main)
