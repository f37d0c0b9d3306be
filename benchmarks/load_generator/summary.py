"""From records to numbers: the one place where each reported figure is defined."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from qwen_vqa.benchmarks.load_generator.records import Record
from qwen_vqa.plugin.errors import UserError

PERCENTILES = (50, 90, 95, 99)
# What a bound can be put on; the values are milliseconds.
BOUNDED: dict[str, Callable[[Record], float | None]] = {
    "ttft": lambda record: record.ttft,
    "tpot": lambda record: record.tpot,
    "e2e": lambda record: record.e2e,
}


@dataclass(frozen=True)
class Bounds:
    """What counts as a good request, in milliseconds: {"ttft": 500, "tpot": 50}."""

    milliseconds: tuple[tuple[str, float], ...]

    @classmethod
    def parse(cls, text: str) -> "Bounds":
        """From "ttft:500,tpot:50".

        Raises:
            UserError: another name, or no positive number.
        """
        bounds = []
        for part in text.split(","):
            name, _, value = part.partition(":")
            try:
                number = float(value)
            except ValueError:
                number = -1.0
            if name not in BOUNDED or not number > 0:
                raise UserError(f"--goodput {text}: expected NAME:MILLISECONDS of {', '.join(BOUNDED)}.")
            bounds.append((name, number))
        return cls(tuple(bounds))

    def met_by(self, record: Record) -> bool:
        """Whether a request ended well and within every bound; one token has no TPOT, and meets it."""
        if record.error:
            return False
        return all((BOUNDED[name](record) or 0.0) * 1000 <= bound for name, bound in self.milliseconds)


def distribution(values: list[float], scale: float = 1000.0) -> dict[str, float] | None:
    """Mean, percentiles (linear between the two nearest, as numpy's default), and largest; None of nothing.

    `scale` 1000 makes milliseconds of seconds.
    """
    if not values:
        return None
    array = np.asarray(values) * scale
    points = {f"p{point}": float(np.percentile(array, point)) for point in PERCENTILES}
    return {"mean": float(array.mean()), **points, "max": float(array.max()), "n": len(values)}


def summarise(records: list[Record], seconds: float, bounds: Bounds | None = None) -> dict:
    """The figures of a cell that took `seconds` from its start to the end of its last request.

    requests_per_second: requests that ended well / seconds.
    output_tokens_per_second: their output tokens (the server's usage) / seconds.
    ttft, tpot, itl, e2e (ms): see `Record`; of requests that ended well. itl is over all their tokens after the first
      event, so that long answers weigh more.
    send_delay (ms): sent - intended; what the client itself was late.
    goodput_per_second: requests that ended well and within every bound / seconds. Failed ones are not good.
    decode_tokens_per_second: see `decode_speed`.
    errors: failed requests by kind; error_share: failed / all that ended.
    other_length: answers that have not as many tokens as asked for.
    cached_token_share: prompt tokens that the server took from its prefix cache / prompt tokens, by its usage.
    """
    good = [record for record in records if not record.error]
    failed = [record for record in records if record.error]
    seconds = max(seconds, 1e-9)
    prompt = sum(record.prompt_tokens or 0 for record in good)
    result = {
        "requests": len(records),
        "completed": len(good),
        "failed": len(failed),
        "seconds": seconds,
        "requests_per_second": len(good) / seconds,
        "output_tokens_per_second": sum(record.output_tokens for record in good) / seconds,
        "decode_tokens_per_second": decode_speed(good),
        "ttft": distribution([record.ttft for record in good]),
        "tpot": distribution([record.tpot for record in good if record.tpot is not None]),
        "itl": distribution([gap for record in good for gap in record.inter_token_latencies]),
        "e2e": distribution([record.e2e for record in good]),
        "send_delay": distribution([record.sent - record.intended for record in records]),
        "error_share": len(failed) / len(records) if records else 0.0,
        **failures(records),
        "output_tokens": sum(record.output_tokens for record in good),
        "prompt_tokens": prompt,
        "image_tokens": sum(record.image_tokens or 0 for record in good),
        "cached_token_share": sum(record.cached_tokens or 0 for record in good) / prompt if prompt else None,
        "other_length": sum(record.output_tokens != record.asked_tokens for record in good),
        "repeated_images": sum(record.repeated_image for record in records),
        "later_turns": _turns(good),
    }
    if bounds:
        met = sum(bounds.met_by(record) for record in records)
        result["goodput_per_second"] = met / seconds
        result["good_share"] = met / len(records) if records else 0.0
    return result


def failures(records: list[Record]) -> dict:
    """Failed requests by kind, and the first message of each."""
    failed = [record for record in records if record.error]
    return {
        "errors": dict(Counter(record.error for record in failed).most_common()),
        "error_examples": {record.error: record.detail for record in reversed(failed)},
    }


def decode_speed(records: list[Record]) -> float | None:
    """Output tokens a second of all requests together while all of them decode; None where they never do.

    That is after the last one's first token and before the first one's last. Of each request those events count that
    lie there: its tokens after the first of them / the time from the first to the last. With one
    request this is 1 / TPOT, where its first event brought one token.
    """
    if not records or any(len(record.chunks) < 2 for record in records):
        return None
    begin = max(record.chunks[0][0] for record in records)
    end = min(record.chunks[-1][0] for record in records)
    speed = 0.0
    for record in records:
        inside = [(time, tokens) for time, tokens in record.chunks if begin <= time <= end]
        if len(inside) < 2 or inside[-1][0] == inside[0][0]:
            return None
        speed += sum(tokens for _, tokens in inside[1:]) / (inside[-1][0] - inside[0][0])
    return speed


def _turns(good: list[Record]) -> dict | None:
    """TTFT of first and of later turns apart, where there are any: the later ones find their image in the caches."""
    later = [record.ttft for record in good if record.turn > 0]
    if not later:
        return None
    return {
        "first_ttft": distribution([record.ttft for record in good if record.turn == 0]),
        "later_ttft": distribution(later),
    }
