"""The engine's process as a copy of the API's: what it has, and what stays with the one it is a copy of."""

import os
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest
import torch

from qwen_vqa.serving.cpu.engine_process import METHOD, may_copy
from qwen_vqa.serving.cpu.threads import ThreadChoice
from qwen_vqa.train.verify.local_server import started_server
from tests.server import ONE_CORE, Server

pytestmark = pytest.mark.cpu

UNBOUND, BOUND = ThreadChoice({}, "", 2), ThreadChoice({}, "")
# As the server does it: an event loop with a handler, in which a process is started that is told to stop.
COPY = """
import asyncio, multiprocessing, os, signal, sys
import torch
from torch._inductor import config
from qwen_vqa.serving.cpu.engine_process import METHOD, copied, hold_to_one_thread

hold_to_one_thread()
matrix = torch.randn(400, 400)
expected = matrix @ matrix  # without any thread that a copy would wait for

def in_the_copy(pipe):
    signal.signal(signal.SIGTERM, lambda *_: pipe.send("told to stop"))
    torch.testing.assert_close(matrix @ matrix, expected)
    compiler = (config.compile_threads, config.cpp.dynamic_threads)
    pipe.send((torch.get_num_threads(), os.environ[METHOD], compiler))
    os.kill(os.getpid(), signal.SIGTERM)

async def main():
    told = []
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, told.append, "parent")
    ours, theirs = multiprocessing.Pipe()
    os.environ.pop(METHOD, None)
    os.environ.update(TORCHINDUCTOR_COMPILE_THREADS="7", TORCHINDUCTOR_CPP_DYNAMIC_THREADS="1")
    with copied(2):
        process = multiprocessing.get_context(os.environ[METHOD]).Process(target=in_the_copy, args=(theirs,))
        process.start()
    assert METHOD not in os.environ
    assert ours.poll(60), "the copy hangs"
    assert ours.recv() == (2, "spawn", (7, True))
    assert ours.poll(60) and ours.recv() == "told to stop"
    await asyncio.to_thread(process.join)
    await asyncio.sleep(0.1)
    assert not told, "the copy's signal was taken for this process's own"
    assert torch.get_num_threads() == 1
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.apply(torch.get_num_threads) == 1, "later ones are left alone"

asyncio.run(main())
print("all seen")
"""


def test_a_copy_computes_with_its_threads_and_keeps_its_signals_to_itself() -> None:
    run = subprocess.run([sys.executable, "-c", COPY], capture_output=True, text=True, timeout=120, check=False)
    assert run.stdout.strip() == "all seen", run.stderr


@pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="PyTorch without MKL")
def test_mkl_chooses_its_threads_in_a_copy_as_in_a_new_process() -> None:
    """MKL's log says of each product whether it chose, and how many threads: the parent's product, then the copy's."""
    surroundings = {**os.environ, "MKL_VERBOSE": "1"}
    command = [sys.executable, "-c", COPY]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=surroundings)
    products = [line for line in run.stdout.splitlines() if "SGEMM" in line]
    assert [("Dyn:1" in line, "NThr:2" in line) for line in products] == [(False, False), (True, True)], run.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere, a copy is not safe")
@pytest.mark.parametrize(
    ("threads", "environment", "expected"),
    [
        (UNBOUND, {}, True),
        (UNBOUND, {METHOD: "fork"}, True),
        (UNBOUND, {METHOD: "spawn"}, False),
        (BOUND, {}, False),
    ],
)
def test_a_copy_where_threads_are_not_bound_and_the_user_wants_no_other(threads, environment, expected) -> None:
    assert may_copy(threads, environment) is expected


def engine_of(process: subprocess.Popen) -> psutil.Process:
    tree = psutil.Process(process.pid).children(recursive=True)
    return next(one for one in tree if "EngineCore" in " ".join(one.cmdline()))


def listened_to(process: psutil.Process) -> set[int]:
    return {one.laddr.port for one in process.net_connections("tcp") if one.status == psutil.CONN_LISTEN}


def loaded_at(process: psutil.Process) -> bytes:
    """Addresses of the program: a new process has it anywhere, a copy where its parent has it."""
    return Path(f"/proc/{process.pid}/auxv").read_bytes()


def test_the_servers_engine_is_a_copy_and_does_not_hold_its_port(demo_server: Server) -> None:
    engine = engine_of(demo_server.process)
    assert loaded_at(engine) == loaded_at(engine.parent())
    port = urlsplit(demo_server.url).port
    assert port in listened_to(engine.parent())
    assert port not in listened_to(engine)
    assert "the engine's process is a copy of the API's" in demo_server.log.read_text()


def test_a_new_process_where_the_user_wants_it(tiny_checkpoint: Path, tmp_path: Path) -> None:
    surroundings = {**os.environ, **ONE_CORE, METHOD: "spawn"}
    log = tmp_path / "log"
    command = [str(tiny_checkpoint), "--enforce-eager"]
    with log.open("w") as output, started_server(command, output, output, surroundings) as (_, process):
        engine = engine_of(process)
        assert loaded_at(engine) != loaded_at(engine.parent())
    assert "a copy of the API's" not in log.read_text()
