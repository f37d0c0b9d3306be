"""What the server says of itself: /metrics before, during and after a cell, vLLM's and `qwen-vqa serve`'s own."""

import threading
import urllib.error
import urllib.request
from collections import defaultdict
from dataclasses import dataclass, field

from prometheus_client.parser import text_string_to_metric_families

COUNTERS = {
    "prefix_cache_hits": "vllm:prefix_cache_hits_total",
    "prefix_cache_queries": "vllm:prefix_cache_queries_total",
    "mm_cache_hits": "vllm:mm_cache_hits_total",
    "mm_cache_queries": "vllm:mm_cache_queries_total",
    "preemptions": "vllm:num_preemptions_total",
    "queue_seconds": "vllm:request_queue_time_seconds_sum",
    "queued_requests": "vllm:request_queue_time_seconds_count",
    "prompt_tokens": "vllm:prompt_tokens_total",
    "generation_tokens": "vllm:generation_tokens_total",
}
GAUGES = {
    "running": "vllm:num_requests_running",
    "waiting": "vllm:num_requests_waiting",
    "kv_cache": "vllm:kv_cache_usage_perc",
}
# The fair queue in which `qwen-vqa serve` holds requests before the engine; other servers have none.
FAIR_QUEUE_COUNTERS = {
    "fair_queue_seconds": "qwen_vqa_queue_wait_seconds_sum",
    "fair_queued_requests": "qwen_vqa_queue_wait_seconds_count",
}
FAIR_QUEUE_GAUGES = {"fair_queue_waiting": "qwen_vqa_queue_waiting_requests"}
FETCH_SECONDS = 5.0


def read_metrics(url: str, headers: dict[str, str]) -> dict[str, float] | None:
    """The server's metrics by our names, summed over its engines; None from a server without vLLM's."""
    address = url.rstrip("/").removesuffix("/v1") + "/metrics"
    try:
        with urllib.request.urlopen(urllib.request.Request(address, headers=headers), timeout=FETCH_SECONDS) as answer:
            text = answer.read().decode()
        samples: defaultdict[str, float] = defaultdict(float)
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                samples[sample.name] += sample.value
    except (OSError, ValueError):  # urllib's errors are OSErrors; ValueError: it is no metrics page
        return None
    if not any(name.startswith("vllm:") for name in samples):
        return None
    found = {ours: samples.get(theirs, 0.0) for ours, theirs in (COUNTERS | GAUGES).items()}
    fair_queue = (FAIR_QUEUE_COUNTERS | FAIR_QUEUE_GAUGES).items()
    return found | {ours: samples[theirs] for ours, theirs in fair_queue if theirs in samples}


@dataclass
class ServerWatch:
    """Looks at the metrics at the start, every `interval` seconds and at the end of a cell."""

    url: str
    headers: dict[str, str]
    interval: float = 1.0
    _before: dict[str, float] | None = None
    _seen: list[dict[str, float]] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def start(self) -> None:
        """Read once, and go on reading in a thread."""
        self._before = read_metrics(self.url, self.headers)
        if self._before is not None:
            self._thread = threading.Thread(target=self._watch, daemon=True)
            self._thread.start()

    def finish(self) -> dict[str, float | None] | None:
        """What happened since the start; None from a server without metrics.

        Hit rates are shares of looked up tokens (prefix cache) and images (cache of processed images). `waiting` and
        `running` are requests, `kv_cache` a share; they are seen once in `interval`. `queue_seconds` is what a
        request waited on average in the engine, by the server's count; `fair_queue_seconds` and `fair_queue_waiting`
        are the same of the queue before the engine that `qwen-vqa serve` has, and None elsewhere.
        """
        self._stop.set()
        if self._thread:
            self._thread.join()
        after = read_metrics(self.url, self.headers)
        if self._before is None or after is None:
            return None
        gained = {name: after[name] - self._before[name] for name in after if name in COUNTERS | FAIR_QUEUE_COUNTERS}
        result: dict[str, float | None] = {
            "prefix_cache_hit_rate": _share(gained["prefix_cache_hits"], gained["prefix_cache_queries"]),
            "mm_cache_hit_rate": _share(gained["mm_cache_hits"], gained["mm_cache_queries"]),
            "queue_seconds": _share(gained["queue_seconds"], gained["queued_requests"]),
            "fair_queue_seconds": _share(gained.get("fair_queue_seconds", 0), gained.get("fair_queued_requests", 0)),
            "preemptions": gained["preemptions"],
            "prompt_tokens": gained["prompt_tokens"],
            "generation_tokens": gained["generation_tokens"],
        }
        for name in GAUGES | FAIR_QUEUE_GAUGES:
            values = [seen[name] for seen in self._seen if name in seen]
            result[f"{name}_max"] = max(values, default=None)
            result[f"{name}_mean"] = sum(values) / len(values) if values else None
        return result

    def _watch(self) -> None:
        while not self._stop.wait(self.interval):
            seen = read_metrics(self.url, self.headers)
            if seen is not None:
                self._seen.append(seen)


def _share(part: float, whole: float) -> float | None:
    return part / whole if whole else None
