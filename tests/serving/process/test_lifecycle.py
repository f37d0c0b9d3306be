"""A server's whole life, over TLS and with one server: loading, killed, started again, drained. In this order."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil
import pytest
from openai import APIError, DefaultHttpxClient, InternalServerError, OpenAI
from safetensors.torch import load_file, save_file

from qwen_vqa.serving.process.lifecycle import ENGINE_DIED
from tests.certificate import self_signed
from tests.server import ONE_CORE, SERVE, free_port

DRAIN_SECONDS = 3
LONG = 900  # tokens; more than there is time for
SHARED_MEMORY = Path("/dev/shm")


@dataclass
class Life:
    """The server, from before it answers."""

    address: str
    process: subprocess.Popen
    log: Path
    started: float = field(default_factory=time.monotonic)

    def get(self, path: str) -> httpx.Response:
        return httpx.get(self.address + path, verify=False, timeout=10)

    def client(self, retries: int = 0) -> OpenAI:
        http = DefaultHttpxClient(verify=False)
        return OpenAI(base_url=f"{self.address}/v1", api_key="none", max_retries=retries, timeout=60, http_client=http)

    def stream(self, tokens: int, answers: int = 1):
        return self.client().chat.completions.create(
            model="tiny",
            messages=[{"role": "user", "content": "hi"}],
            max_tokens=tokens,
            n=answers,
            stream=True,
            extra_body={"ignore_eos": True},
        )

    def shared_memory(self) -> set[Path]:
        """Files of /dev/shm that its processes have open: others' servers have files there, too."""
        tree = psutil.Process(self.process.pid).children(recursive=True)
        mapped = {Path(region.path) for process in tree for region in process.memory_maps()}
        return {path for path in mapped if path.is_relative_to(SHARED_MEMORY) and path.exists()}

    def engine(self) -> psutil.Process:
        tree = psutil.Process(self.process.pid).children(recursive=True)
        return next(process for process in tree if "EngineCore" in " ".join(process.cmdline()))


class Reader(threading.Thread):
    """Reads a stream to its end beside the test."""

    def __init__(self, stream):
        super().__init__(daemon=True)
        self.stream = stream
        self.pieces = 0
        self.finish_reason: str | None = None
        self.error: APIError | None = None
        self.ended = 0.0
        self.start()

    def run(self) -> None:
        try:
            for chunk in self.stream:
                self.pieces += 1
                if chunk.choices and chunk.choices[0].finish_reason:
                    self.finish_reason = chunk.choices[0].finish_reason
        except APIError as error:
            self.error = error
        self.ended = time.monotonic()

    def running(self) -> "Reader":
        deadline = time.monotonic() + 30
        while self.pieces < 2:
            assert self.is_alive() and time.monotonic() < deadline
            time.sleep(0.01)
        return self


class KeptAlive(threading.Thread):
    """Asks again and again on one connection until it is refused; `ends` is how that was."""

    def __init__(self, life: Life, ends: list[object], pause: float):
        super().__init__(daemon=True)
        self._life, self._ends, self._pause = life, ends, pause
        self.answered = threading.Event()
        self.start()

    def run(self) -> None:
        body = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 8}
        with httpx.Client(verify=False, timeout=30) as client:
            try:
                while (reply := client.post(f"{self._life.address}/v1/chat/completions", json=body)).is_success:
                    self.answered.set()
                    time.sleep(self._pause)
                self._ends.append((reply.status_code, reply.json()["error"]["message"], "retry-after" in reply.headers))
            except httpx.TransportError as error:
                self._ends.append(error)


def last_event(life: Life, path: str, events: list[dict]) -> None:
    """Stream from a path again and again until one ends with an error, and keep that event."""
    body = {"model": "tiny", "max_tokens": LONG, "stream": True, "ignore_eos": True}
    body |= {"prompt": "hi"} if path == "/v1/completions" else {"messages": [{"role": "user", "content": "hi"}]}
    while True:
        with httpx.stream("POST", life.address + path, json=body, verify=False, timeout=60) as reply:
            last = [line for line in reply.iter_lines() if line][-1]
        if "error" in last or reply.status_code != 200:
            return events.append(json.loads(last.removeprefix("data: ")))


@pytest.fixture(scope="module")
def life(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Life]:
    folder = tmp_path_factory.mktemp("life")
    key, certificate = self_signed(folder)
    port, log = free_port(), folder / "life.log"
    arguments = [str(tiny_checkpoint), "--served-model-name", "tiny", "--port", str(port)]
    arguments += ["--ssl-keyfile", str(key), "--ssl-certfile", str(certificate)]
    arguments += ["--drain-seconds", str(DRAIN_SECONDS), "--max-n", "64", "--enforce-eager"]
    with log.open("w") as output:
        process = subprocess.Popen(
            [*SERVE, *arguments], stdout=output, stderr=subprocess.STDOUT, env={**os.environ, **ONE_CORE}
        )
        try:
            yield Life(f"https://127.0.0.1:{port}", process, log)
        finally:
            process.kill()  # the server goes with its supervisor
            process.wait()


def test_the_port_answers_long_before_the_model_is_loaded(life: Life):
    while True:
        with contextlib.suppress(httpx.ConnectError):
            alive = life.get("/health")
            break
        assert time.monotonic() - life.started < 5
        time.sleep(0.05)
    assert alive.status_code == 200
    assert life.get("/ready").status_code == 503
    with pytest.raises(InternalServerError, match="loading") as refused:
        life.client().models.list()
    assert refused.value.status_code == 503
    assert int(refused.value.response.headers["retry-after"]) >= 1


def test_it_is_ready_when_it_answers(life: Life):
    deadline = time.monotonic() + 300
    while life.get("/ready").status_code != 200:  # without a pause, for the moment of the change is what matters
        assert life.process.poll() is None and time.monotonic() < deadline
    assert [life.get("/v1/models").status_code for _ in range(30)] == [200] * 30
    reader = Reader(life.stream(5))
    reader.join(60)
    assert reader.finish_reason == "length"


def test_an_engine_that_is_killed_ends_its_streams_with_an_error_and_is_started_again(life: Life):
    before = life.shared_memory()
    assert before, "images go to the engine through shared memory"
    patient: list = []
    ends: list[object] = []
    kept = [KeptAlive(life, ends, pause) for pause in (0, 0.01, 0.03, 0.1, 0.3) for _ in range(3)]
    others: list[threading.Thread] = [*kept]
    events: list[dict] = []
    for path in ("/v1/completions", "/v1/messages"):
        others.append(threading.Thread(target=last_event, args=(life, path, events), daemon=True))
        others[-1].start()
    assert all(one.answered.wait(30) for one in kept)
    reader = Reader(life.stream(LONG)).running()
    engine = life.engine()
    engine.kill()
    reader.join(10)
    assert not reader.is_alive(), "the stream hangs"
    assert reader.error is not None and reader.finish_reason is None
    assert ENGINE_DIED in str(reader.error)
    for other in others:
        other.join(30)
    assert len(ends) == 15
    assert all(end[0] == 503 and end[1].startswith(ENGINE_DIED) and end[2] for end in ends), ends
    assert [event["error"]["message"] for event in events] == [ENGINE_DIED] * 2

    def ask() -> None:
        patient.append(life.client(retries=30).models.list())

    waiting = threading.Thread(target=ask, daemon=True)
    waiting.start()
    replies, deadline = [], time.monotonic() + 240
    while not replies or replies[-1].status_code != 200:
        assert time.monotonic() < deadline
        replies.append(life.get("/ready"))  # a closed port would raise here
        assert life.get("/health").status_code == 200
        time.sleep(0.1)
    refused = {reply.status_code for reply in replies[:-1]}
    assert refused == {503}
    assert all(int(reply.headers["retry-after"]) >= 1 for reply in replies[:-1])
    assert "started again" in replies[0].json()["error"]["message"]
    waiting.join(60)
    assert patient, "OpenAI's SDK gets over it by its own retries"
    assert life.engine().pid != engine.pid
    left = {path for path in before - life.shared_memory() if path.exists()}
    assert not left, "the engine that died left shared memory behind"


def test_told_to_stop_it_finishes_what_runs_and_takes_nothing_new(life: Life):
    long = Reader(life.stream(LONG, answers=64)).running()
    short = Reader(life.stream(60)).running()
    began = time.monotonic()
    life.process.send_signal(signal.SIGTERM)
    while life.get("/ready").status_code == 200:
        assert time.monotonic() < began + 5
    reply = httpx.post(f"{life.address}/v1/chat/completions", json={}, verify=False)
    assert reply.status_code == 503
    assert int(reply.headers["retry-after"]) >= 1
    assert reply.json()["error"]["message"] == "The server is shutting down."
    assert life.get("/ready").status_code == 503
    assert life.get("/health").status_code == 200
    counted = [line for line in life.get("/metrics").text.splitlines() if line.startswith("qwen_vqa_refused_total{")]
    assert counted == ['qwen_vqa_refused_total{reason="service_unavailable"} 1.0'], "/ready is no refused request"
    for reader in (short, long):
        reader.join(DRAIN_SECONDS + 5)
        assert not reader.is_alive()
    assert short.finish_reason == "length" and short.error is None and short.ended > began
    assert long.finish_reason is None and "shutting down" in str(long.error)
    assert life.process.wait(20) == 0, life.log.read_text()[-2000:]
    assert DRAIN_SECONDS <= time.monotonic() - began < DRAIN_SECONDS + 15


def test_weights_that_do_not_fit_end_the_first_start(tiny_checkpoint: Path, tmp_path: Path):
    folder = tmp_path / "broken"
    shutil.copytree(tiny_checkpoint, folder)
    weights = load_file(folder / "model.safetensors")
    weights["connector.linear_1.weight"] = weights["connector.linear_1.weight"][:-1].clone()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    command = [*SERVE, str(folder), "--port", str(free_port())]
    run = subprocess.run(
        command, capture_output=True, text=True, timeout=300, env={**os.environ, **ONE_CORE}, check=False
    )
    assert run.returncode not in (0, 2)
    assert "not tried again" in run.stderr
