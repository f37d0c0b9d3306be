"""The server's own metrics, beside vLLM's in the same /metrics; named by Prometheus' conventions.

Labels take few values each: `route` is a path of `route_rules` or "other", `key` a name in the operator's keys file
("" without keys), `reason` a word of ours or `http_STATUS`. Nothing that a client writes becomes a label.
"""

import asyncio
import os
from collections.abc import Callable, Sequence

from prometheus_client import Counter, Gauge, Histogram

SECONDS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 60)

REQUESTS = Counter("qwen_vqa_requests_total", "Requests that were answered.", ["route", "key", "status"])
REQUEST_SECONDS = Histogram(
    "qwen_vqa_request_seconds", "From a request's first byte to its answer's last.", ["route"], buckets=SECONDS
)
REFUSED = Counter("qwen_vqa_refused_total", "Requests that were refused.", ["reason"])
QUEUE_WAIT = Histogram("qwen_vqa_queue_wait_seconds", "Waiting for a turn in the fair queue.", buckets=SECONDS)
QUEUE_WAITING = Gauge(
    "qwen_vqa_queue_waiting_requests", "Requests that wait for a turn now.", multiprocess_mode="livesum"
)
QUEUE_RUNNING = Gauge(
    "qwen_vqa_queue_running_requests", "Requests that have their turn now.", multiprocess_mode="livesum"
)
IMAGE_TOKENS = Counter("qwen_vqa_image_tokens_total", "Tokens of the images that were opened.")
IMAGE_FETCH = Histogram(
    "qwen_vqa_image_fetch_seconds", "Getting an image's file, from the web or a data URL.", ["source"], buckets=SECONDS
)
IMAGE_DECODE = Histogram("qwen_vqa_image_decode_seconds", "Opening an image's file.", buckets=SECONDS)
LIMITS_STORE_UP = Gauge(
    "qwen_vqa_limits_store_up", "0 while --limits-storage does not answer.", multiprocess_mode="livemin"
)
LIMITS_UNCOUNTED = Counter(
    "qwen_vqa_limits_uncounted_total", "Limits that were not counted, since --limits-storage did not answer."
)
RESTART_COUNT = Counter("qwen_vqa_restarts_total", "Starts after the first, by the supervisor.")
DRAINING = Gauge("qwen_vqa_draining", "1 while the server takes no more requests.", multiprocess_mode="livemax")
# Where it is set, several API processes keep their counters in files there, and each of them shows those of all.
FILES = "PROMETHEUS_MULTIPROC_DIR"
WRITE_SECONDS = 0.5
_writing: set[asyncio.Task[None]] = set()


def watch(
    waiting: Callable[[], float], running: Callable[[], float], draining: Callable[[], bool], restarts: int
) -> None:
    """Have the gauges show these, and count the restarts so far."""
    gauges = ((QUEUE_WAITING, waiting), (QUEUE_RUNNING, running), (DRAINING, draining))
    if FILES in os.environ:
        _writing.add(asyncio.create_task(_keep_writing(gauges)))
    else:
        for gauge, value in gauges:
            gauge.set_function(value)
    RESTART_COUNT.inc(restarts)
    LIMITS_STORE_UP.set(1)  # it was asked before the model was loaded
    for source in ("data", "web"):
        IMAGE_FETCH.labels(source)  # there from the start, so that a rate has a first value


async def _keep_writing(gauges: Sequence[tuple[Gauge, Callable[[], float]]]) -> None:
    """Into their files, where nobody asks for a value when it is shown."""
    while True:
        for gauge, value in gauges:
            gauge.set(value())
        await asyncio.sleep(WRITE_SECONDS)
