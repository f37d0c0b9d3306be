"""How soon a second question about the same picture is answered, against the first: what the caches of image features
and of prompts save. One user; each picture is new; the second question has other words, in a conversation of its own.

python benchmarks/comparison/second_question.py --url http://localhost:8000/v1 --pictures 20
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from openai import OpenAI, OpenAIError

from qwen_vqa.benchmarks.environment import environment
from qwen_vqa.benchmarks.load_generator.sample_images import SampleImage
from qwen_vqa.benchmarks.script import run
from qwen_vqa.plugin.errors import UserError
from qwen_vqa.plugin.images.message_parts import user_message

QUESTIONS = ("What is written here?", "Which colour is the largest shape in the picture?")
SIDE = (640, 480)


def first_token_ms(client: OpenAI, model: str, picture: SampleImage, question: str) -> tuple[float, int]:
    """Milliseconds from sending to the first event with text, and how many of the prompt's tokens were cached."""
    asked: Any = user_message(question, [picture.url()])
    started = time.perf_counter()
    stream = client.chat.completions.create(
        model=model,
        messages=[asked],
        max_tokens=4,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"ignore_eos": True, "min_tokens": 4},
    )
    first, cached = 0.0, 0
    for chunk in stream:
        if chunk.choices and chunk.choices[0].delta.content and not first:
            first = 1000 * (time.perf_counter() - started)
        if chunk.usage and chunk.usage.prompt_tokens_details:
            cached = chunk.usage.prompt_tokens_details.cached_tokens or 0
    if not first:
        raise UserError(f"{model} answered {question!r} without a word.")
    return first, cached


def second_questions(url: str, pictures: int, seed: int, model: str | None = None, api_key: str = "none") -> dict:
    """Ask twice about each of so many new pictures; the medians, and each picture's figures.

    first_ms, second_ms: TTFT. ratio: the median of second / first of the same picture. cached_tokens: of the second's
    prompt. first_second_ms_cached: a pair of (TTFT, cached tokens) for each picture.

    Raises:
        UserError: the server could not be asked, or an answer had no word.
    """
    client = OpenAI(base_url=url, api_key=api_key, max_retries=0, timeout=600)
    rows = []
    try:
        model = model or client.models.list().data[0].id
        first_token_ms(client, model, SampleImage(seed, *SIDE), QUESTIONS[0])  # what the first request alone pays
        for number in range(1, pictures + 1):
            picture = SampleImage(seed + number, *SIDE)
            order = QUESTIONS if number % 2 else QUESTIONS[::-1]
            rows.append([first_token_ms(client, model, picture, question) for question in order])
    except OpenAIError as error:
        raise UserError(f"{url}: {error}") from error
    return {
        "model": model,
        "seed": seed,
        "pictures": pictures,
        "first_ms": statistics.median(first for (first, _), _ in rows),
        "second_ms": statistics.median(second for _, (second, _) in rows),
        "ratio": statistics.median(second / first for (first, _), (second, _) in rows),
        "cached_tokens": statistics.median(cached for _, (_, cached) in rows),
        "first_second_ms_cached": rows,
    }


def main() -> int:
    """Ask, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--url", default="http://localhost:8000/v1", help="(default: %(default)s)")
    add("--api-key", default="none", help="(default: none)")
    add("--model", help="(default: the server's first)")
    add("--pictures", type=int, default=20, help="(default: %(default)s)")
    add("--seed", type=int, default=int(time.time()), help="of the pictures (default: new ones each time)")
    add("--json", type=Path, metavar="FILE", help="write everything there (default: not written)")
    args = parser.parse_args()
    if args.pictures < 1:
        raise UserError(f"--pictures {args.pictures}: expected 1 or more.")
    found = second_questions(args.url, args.pictures, args.seed, args.model, args.api_key)
    print(
        f"{found['model']}, {args.pictures} pictures: TTFT p50 of the first question {found['first_ms']:.1f} ms, of "
        f"the second {found['second_ms']:.1f} ms: {found['ratio']:.0%} (median of ratios); "
        f"{found['cached_tokens']:.0f} of its tokens cached"
    )
    if args.json:
        args.json.write_text(json.dumps({"environment": environment(sys.argv), **found}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    run("second_question", main)
