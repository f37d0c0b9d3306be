"""Several API processes before one engine (`--api-servers 2`): all that holds for one holds for both. In this order."""

import contextlib
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import pytest
import torch
from openai import APIError, BadRequestError, OpenAI, RateLimitError

from qwen_vqa.serving.process.lifecycle import DRAINING, ENGINE_DIED
from qwen_vqa.train.model.reference_checkpoint import load_processor, load_reference
from qwen_vqa.train.verify.served_stages import ServedModel
from qwen_vqa.train.verify.stage_comparison import Reference, Tolerance, compare_answer
from qwen_vqa.train.verify.verify_cases import case, picture
from tests.limits_database import LimitsDatabase, limits_database
from tests.server import ONE_CORE, SERVE, START_SECONDS, free_port
from tests.vllm_copy import in_a_copy, server

pytestmark = pytest.mark.cpu
TOLERANCE = Tolerance.of(torch.float32)
NAME = "tiny"
LIMITS: dict[str, dict] = {"operator": {}, "five-a-minute": {"requests_per_minute": 5}, "one-at-once": {"running": 1}}
DRAIN_SECONDS = 4
LONG = 900  # tokens; more than there is time for


def key(name: str) -> str:
    return f"{name}-secret-0123456789"


@dataclass
class Servers:
    """One address, two API processes."""

    address: str
    process: subprocess.Popen
    log: Path
    limits: LimitsDatabase

    def client(self, name: str = "operator") -> OpenAI:
        """A new one each time, and with it a new connection."""
        return OpenAI(base_url=f"{self.address}/v1", api_key=key(name), max_retries=0, timeout=120)

    def ask(self, name: str = "operator", **options):
        messages = [{"role": "user", "content": "hi"}]
        with self.client(name) as client:
            return client.chat.completions.create(model=NAME, messages=messages, **{"max_tokens": 2, **options})

    def metric(self, start: str) -> float:
        headers = {"Authorization": f"Bearer {key('operator')}"}
        lines = httpx.get(f"{self.address}/metrics", headers=headers).text.splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(start))

    def ready(self) -> bool:
        with contextlib.suppress(httpx.TransportError):
            return httpx.get(f"{self.address}/ready").status_code == 200
        return False

    def until_ready(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not self.ready():
            assert self.process.poll() is None and time.monotonic() < deadline, self.log.read_text()[-3000:]
            time.sleep(0.1)

    def tree(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def api_processes(self) -> list[psutil.Process]:
        return [one for one in self.tree() if "spawn_main" in " ".join(one.cmdline())]

    def engine(self) -> psutil.Process:
        return next(one for one in self.tree() if "EngineCore" in " ".join(one.cmdline()))


class Reader(threading.Thread):
    """Reads a stream beside the test."""

    def __init__(self, servers: Servers, tokens: int, name: str = "operator", answers: int = 1):
        super().__init__(daemon=True)
        self.client = servers.client(name)
        self.tokens, self.answers = tokens, answers
        self.pieces = 0
        self.finish_reason: str | None = None
        self.error: APIError | None = None
        self.start()
        deadline = time.monotonic() + 60
        while self.pieces < 2:
            assert self.is_alive() and time.monotonic() < deadline
            time.sleep(0.01)

    def run(self) -> None:
        messages = [{"role": "user", "content": "hi"}]
        options = {"max_tokens": self.tokens, "n": self.answers, "stream": True, "extra_body": {"ignore_eos": True}}
        try:
            for chunk in self.client.chat.completions.create(model=NAME, messages=messages, **options):
                self.pieces += 1
                if chunk.choices and chunk.choices[0].finish_reason:
                    self.finish_reason = chunk.choices[0].finish_reason
        except APIError as error:
            self.error = error


@pytest.fixture(scope="module")
def servers(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    folder = tmp_path_factory.mktemp("api-servers")
    (folder / "tmp").mkdir()
    entries = [{"name": name, "key": key(name), **limits} for name, limits in LIMITS.items()]
    (folder / "keys.json").write_text(json.dumps({"keys": entries}))
    with limits_database(folder) as database:
        port, log = free_port(), folder / "log"
        flags = [str(tiny_checkpoint), "--served-model-name", NAME, "--dtype", "float32", "--enforce-eager"]
        flags += ["--port", str(port), "--api-servers", "2", "--drain-seconds", str(DRAIN_SECONDS)]
        flags += ["--api-keys-file", str(folder / "keys.json"), "--limits-storage", database.url]
        environment = {**os.environ, **ONE_CORE, "TMPDIR": str(folder / "tmp")}
        with log.open("w") as output:
            process = subprocess.Popen([*SERVE, *flags], stdout=output, stderr=subprocess.STDOUT, env=environment)
        try:
            found = Servers(f"http://127.0.0.1:{port}", process, log, database)
            found.until_ready()
            yield found
        finally:
            process.kill()  # the others go with it
            process.wait()


def test_both_answer_as_trained_and_refused_requests_spoil_no_picture(servers: Servers, tiny_checkpoint: Path):
    reference = Reference(load_reference(tiny_checkpoint, torch.float32), load_processor(tiny_checkpoint))
    before = [process.cpu_times().user for process in servers.api_processes()]
    cases = [case(f"picture {seed}", picture(seed, 90, 60), f"What is {seed}?") for seed in range(8)]

    def answers_are_right(one) -> str | None:
        served = ServedModel(f"{servers.address}/v1", NAME, key("operator"), {"ignore_eos": True})
        for _ in range(2):
            with pytest.raises(BadRequestError, match="999999"):  # found out after the picture was prepared
                servers.client().chat.completions.create(
                    model=NAME, messages=one.request_messages(), logit_bias={"999999": 1}
                )
            result = compare_answer(one, reference, served.answer(one, 4), TOLERANCE)
            if not result.equal:
                return result.detail
        return None

    with ThreadPoolExecutor(8) as pool:
        for _ in range(3):
            assert list(pool.map(answers_are_right, cases)) == [None] * 8
    after = [process.cpu_times().user for process in servers.api_processes()]
    assert len(after) == 2
    assert all(later - earlier > 0.1 for later, earlier in zip(after, before, strict=True)), "both have worked"


def test_a_keys_limits_are_those_of_both_together(servers: Servers):
    for _ in range(5):
        servers.ask("five-a-minute")
    for _ in range(6):  # at either process
        with pytest.raises(RateLimitError):
            servers.ask("five-a-minute")
    reader = Reader(servers, LONG, "one-at-once", answers=8)
    answers: list = []
    waiting = [threading.Thread(target=lambda: answers.append(servers.ask("one-at-once"))) for _ in range(4)]
    for one in waiting:
        one.start()
    time.sleep(0.5)
    assert not answers, "all wait, whichever process has them"
    reader.client.close()
    for one in waiting:
        one.join(30)
    assert len(answers) == 4


def test_either_process_shows_the_metrics_of_both(servers: Servers):
    ours = 'qwen_vqa_requests_total{key="operator",route="/v1/chat/completions",status="200"}'
    before = servers.metric(ours), servers.metric("vllm:request_success_total")
    for _ in range(10):
        servers.ask()
    for _ in range(6):
        assert servers.metric(ours) == before[0] + 10
        assert servers.metric("vllm:request_success_total") == before[1] + 10
    readers = [Reader(servers, LONG, answers=16) for _ in range(4)]
    deadline = time.monotonic() + 5
    while {servers.metric("qwen_vqa_queue_running_requests") for _ in range(4)} != {4}:
        assert time.monotonic() < deadline and all(reader.is_alive() for reader in readers)
        time.sleep(0.1)
    for reader in readers:
        reader.client.close()


@pytest.mark.parametrize("victim", ["engine", "API process"])
def test_one_that_is_killed_ends_streams_with_an_error_and_all_are_started_again(servers: Servers, victim: str):
    readers = [Reader(servers, LONG, answers=8) for _ in range(4)]
    tree = [one for one in servers.tree() if "resource_tracker" not in " ".join(one.cmdline())]
    (servers.engine() if victim == "engine" else servers.api_processes()[0]).kill()
    for reader in readers:
        reader.join(10)
        assert not reader.is_alive(), "the stream hangs"
        assert reader.error is not None and reader.finish_reason is None
    if victim == "engine":
        assert all(ENGINE_DIED in str(reader.error) for reader in readers)
    _, alive = psutil.wait_procs(tree, timeout=20)
    assert not alive
    servers.until_ready()
    servers.ask()
    assert servers.metric("qwen_vqa_restarts_total") == (1 if victim == "engine" else 2)


def test_told_to_stop_both_finish_what_runs_and_nothing_is_left(servers: Servers):
    tree = servers.tree()
    temporary = Path(servers.log.parent / "tmp")
    shared = {Path(region.path) for one in tree for region in one.memory_maps() if region.path.startswith("/dev/shm")}
    cut_off = [Reader(servers, LONG, answers=16) for _ in range(4)]
    readers = [Reader(servers, 60) for _ in range(4)]
    servers.process.send_signal(signal.SIGTERM)
    for reader in readers:
        reader.join(DRAIN_SECONDS + 10)
        assert reader.finish_reason == "length"
    for reader in cut_off:
        reader.join(DRAIN_SECONDS + 10)
        assert reader.error is not None and DRAINING in str(reader.error)
    assert servers.process.wait(DRAIN_SECONDS + 30) == 0
    _, alive = psutil.wait_procs(tree, timeout=10)
    assert not alive
    assert not [path for path in shared if path.exists()]
    assert not list(temporary.iterdir())
    assert "Traceback" not in servers.log.read_text()


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--requests-per-minute", "5"], "--requests-per-minute need --limits-storage"),
        (["--running-per-caller", "5"], "--running-per-caller need --limits-storage"),
        (["--open-routes", "adapters"], "--open-routes adapters"),
        (["--mm-processor-cache-type", "shm"], "--mm-processor-cache-type shm"),
    ],
)
def test_what_two_processes_cannot_do_together_is_refused(tiny_checkpoint: Path, flags: list[str], named: str):
    run = in_a_copy(server, str(tiny_checkpoint), "--api-servers", "2", *flags)
    assert run.returncode == 2
    assert named in run.stderr.splitlines()[-1]


@pytest.mark.parametrize("flags", [["--api-servers", "0"], ["--api-server-count", "2"]])
def test_another_number_of_processes_is_refused(tiny_checkpoint: Path, flags: list[str]):
    run = in_a_copy(server, str(tiny_checkpoint), *flags)
    assert run.returncode == 2
    assert "--api-servers" in run.stderr.splitlines()[-1]
