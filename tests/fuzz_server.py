"""Thousands of malformed requests against a running server: none may end in a 5xx, and its memory must stay flat.

    python -m tests.fuzz_server --requests 2000 [--seed 1] [--url http://127.0.0.1:8000/v1 --model NAME]

Half come from the generator of `tests/fuzzing.py`, half from schemathesis, which reads the server's OpenAPI document
and makes bodies that break it. Without --url, a tiny model is served for the run.
"""

import argparse
import tempfile
import time
import warnings
from collections import Counter
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from itertools import cycle, islice
from pathlib import Path

import httpx
import psutil
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.schemas import APIOperation

from tests.fuzzing import malformed_requests
from tests.server import Server, serving
from tests.tiny import make_checkpoint

TIMEOUT = 60
# An operator's business (scaling, weights, adapters); closed, too.
SKIPPED = (
    "/load",
    "/unload",
    "/v1/load",
    "/v1/unload",
    "/scale",
    "/is_scaling",
    "/internal",
    "/inference",
    "/ping",
)
LIMITS = ("max_tokens", "max_completion_tokens", "max_output_tokens", "min_tokens", "n")
ROUNDS = 20
GROWTH_MIB = 64


@dataclass(frozen=True)
class Address:
    """A server that runs already, with /v1."""

    url: str


@dataclass
class Outcome:
    """Statuses by kind of request, what ended in 5xx or in no answer, and resident memory in MiB along the way."""

    statuses: Counter = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)

    @property
    def requests(self) -> int:
        """How many were answered or lost."""
        return sum(self.statuses.values())

    def note(self, kind: str, status: int, path: str, body: object, answer: str) -> None:
        """Count an answer; keep what a 5xx was given for."""
        self.statuses[kind, status] += 1
        if status >= 500 or status == 0:
            self.failures.append(f"{status} {path}\n    sent {str(body)[:1500]}\n    got  {answer[:300]}")


def fuzz(
    server: Server | Address, requests: int, seed_number: int, model: str, outcome: Outcome, pid: int | None = None
) -> None:
    """Send the generator's requests, one after another."""
    root = server.url.removesuffix("/v1")
    step = max(1, requests // 8)
    with httpx.Client(timeout=TIMEOUT) as client:
        for number, request in enumerate(islice(malformed_requests(seed_number, model), requests)):
            if pid and number % step == 0:
                outcome.memory.append(resident(pid))
            headers = {"Content-Type": "application/json"}
            try:
                answer = client.post(root + request.path, content=request.body, headers=headers)
                outcome.note(request.kind, answer.status_code, request.path, request.body, answer.text)
            except httpx.HTTPError as error:
                outcome.note(request.kind, 0, request.path, request.body, repr(error))


def fuzz_by_schema(
    server: Server | Address, requests: int, seed_number: int, outcome: Outcome, pid: int | None = None
) -> None:
    """Send what schemathesis makes of the OpenAPI document: bodies that break it, and odd ones that keep it."""
    root = server.url.removesuffix("/v1")
    document = httpx.get(root + "/openapi.json").json()
    document["paths"] = {path: item for path, item in document["paths"].items() if not path.startswith(SKIPPED)}
    operations = [result.ok() for result in schemathesis.openapi.from_dict(document).get_all_operations()]
    turns = [(operation, mode) for mode in GenerationMode for operation in operations]
    sent, wanted = outcome.requests, outcome.requests + requests
    for number, (operation, mode) in enumerate(cycle(turns)):
        left = wanted - outcome.requests
        if left <= 0 or number >= ROUNDS * len(turns):
            break
        if pid and number % len(operations) == 0:
            outcome.memory.append(resident(pid))
        # An operation without a body has few cases or none; those with one take their share in the next round.
        share = max(1, min(left, requests // len(turns)))
        _send_cases(root, operation, mode, share, seed_number + number, outcome)
    print(f"{outcome.requests - sent} requests to {len(operations)} operations by their schema", flush=True)


def _send_cases(
    root: str, operation: APIOperation, mode: GenerationMode, count: int, seed_number: int, outcome: Outcome
) -> None:
    @seed(seed_number)
    @settings(
        max_examples=count,
        phases=[Phase.generate],
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def send(case: schemathesis.Case) -> None:
        if isinstance(case.body, dict):  # how long an answer may be is not what is looked at here
            case.body.update({limit: 1 for limit in LIMITS if isinstance(case.body.get(limit), int)})
        kind = f"schema, {mode.value}"
        try:
            answer = case.call(base_url=root, timeout=TIMEOUT)
            outcome.note(kind, answer.status_code, case.path, case.body, answer.text)
        except OSError as error:  # as those of requests are
            outcome.note(kind, 0, case.path, case.body, repr(error))

    with suppress(Unsatisfiable):  # nothing to break in it
        send()


def resident(pid: int) -> float:
    """MiB of the server and its processes."""
    process = psutil.Process(pid)
    return sum(each.memory_info().rss for each in [process, *process.children(recursive=True)]) / 2**20


def main() -> int:
    """Run, print the counts, and fail for any 5xx, lost request or growing memory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--url", help="of a server that runs already, with /v1")
    parser.add_argument("--model", default="tiny", help="what that server calls its model")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    started = time.monotonic()
    with ExitStack() as stack:
        server = Address(args.url) if args.url else stack.enter_context(_tiny_server())
        pid = server.process.pid if isinstance(server, Server) else None
        outcome, quarter = Outcome(), args.requests // 4
        fuzz_by_schema(server, quarter, args.seed, outcome, pid)
        fuzz(server, quarter, args.seed, args.model, outcome, pid)
        # So far, what is loaded when it is first asked for, and caches that are bounded; from here it must be flat.
        warmed = len(outcome.memory)
        fuzz_by_schema(server, quarter, args.seed + 1000, outcome, pid)
        fuzz(server, args.requests - 3 * quarter, args.seed + 1000, args.model, outcome, pid)
        alive = httpx.get(server.url.removesuffix("/v1") + "/health").status_code == 200
        memory = [*outcome.memory, *([resident(pid)] if pid else [])]
    statuses, failures = outcome.statuses, outcome.failures
    for kind in sorted({kind for kind, _ in statuses}):
        counts = {status: number for (name, status), number in sorted(statuses.items()) if name == kind}
        print(f"{kind:<16s} {sum(counts.values()):5d} requests, by status {counts}")
    print(f"seed {args.seed}, {sum(statuses.values())} requests in {time.monotonic() - started:.0f} s")
    growth = memory[-1] - memory[warmed] if memory else 0
    print(f"memory in MiB: {', '.join(f'{value:.0f}' for value in memory)}; in the second half {growth:+.0f}")
    print(f"5xx or no answer: {len(failures)}; the server is {'alive' if alive else 'gone'}")
    print("\n".join(failures[:20]))
    return 0 if alive and not failures and growth < GROWTH_MIB else 1


def _tiny_server():
    folder = Path(tempfile.mkdtemp())
    import qwen_vqa.train.model.reference_model  # noqa: F401 - registers the model with transformers

    return serving(folder / "log", str(make_checkpoint(folder / "tiny")), "--open-routes", "docs")


if __name__ == "__main__":
    raise SystemExit(main())
