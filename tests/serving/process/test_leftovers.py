"""What a server leaves when it is killed, and who buries whom."""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from qwen_vqa.serving.process.leftovers import own_name
from tests.namespaces import may_unshare
from tests.server import ONE_CORE, SERVE, Server, free_port
from tests.serving.asgi import ask, image_part
from tests.serving.process.test_supervisor import until

HOLD = "import os, sys, time\nfrom pathlib import Path\nfrom qwen_vqa.serving.process.leftovers import own_name\n"
HOLD += "with own_name(os.environ, Path(sys.argv[1])):\n    print(os.environ['QWEN_VQA_SERVER_NAME'], flush=True)\n"
HOLD += "    time.sleep(60)\n"


@contextlib.contextmanager
def running(
    first: tuple[str, ...] = (), log: Path | None = None, flags: tuple[str, ...] = (), **environment: str
) -> Iterator[tuple[str, psutil.Popen]]:
    """The demo's server from its start on, `first` before its command and `flags` behind it: address and process."""
    port = free_port()
    command = [*first, *SERVE, "--port", str(port), "--enforce-eager", *flags]
    with (log or Path(os.devnull)).open("w") as output:
        process = psutil.Popen(command, stdout=output, stderr=output, env={**os.environ, **ONE_CORE, **environment})
        try:
            yield f"http://127.0.0.1:{port}", process
        finally:
            kill_all(process)
            process.wait()


def kill_all(process: psutil.Popen) -> None:
    """kill -9 of a process and all below it, none of which has time to notice the others' end."""
    with contextlib.suppress(psutil.NoSuchProcess):
        everything = [process, *process.children(recursive=True)]
        for one in everything:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.send_signal(signal.SIGSTOP)
        for one in everything:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()


def ready(address: str) -> bool:
    return httpx.get(f"{address}/ready").status_code == 200


def things_of(process: psutil.Popen, *places: Path) -> set[Path]:
    """What lies in these folders with the name of a server."""
    children = process.children(recursive=True)
    name = next(child.environ()["QWEN_VQA_SERVER_NAME"] for child in children)
    named = [path for place in places for path in place.glob(f"*{name}*")]
    return {*named, *(path for folder in named if folder.is_dir() for path in folder.iterdir())}


@pytest.mark.parametrize(
    ("flags", "kept"), [((), ["vllm_mm_"]), (("--tensor-parallel-size", "2"), ["vllm_mm_", "psm_"])], ids=["one", "two"]
)
def test_everything_killed_leaves_nothing_after_the_next_start(
    flags: tuple[str, ...], kept: list[str], tiny_server: Server, tmp_path: Path
):
    """Of one worker; of two, which get their work through shared memory."""
    places = (Path("/dev/shm"), Path(tempfile.gettempdir()))
    with running(flags=flags, VLLM_CPU_OMP_THREADS_BIND="nobind") as (address, process):
        until(lambda: ready(address), 120)
        things = things_of(process, *places)
        tree = process.children(recursive=True)
        kill_all(process)
        psutil.wait_procs(tree, 5)
    kinds = [*kept, "vllm_dist_", ".lock"]
    assert all(any(kind in path.name for path in things) for kind in kinds), things
    left = {path for path in things if path.exists()}
    assert all(any(kind in path.name for path in left) for kind in [*kept, "vllm_dist_"])
    log = tmp_path / "next.log"
    with running(log=log) as (address, _):
        until(lambda: httpx.get(f"{address}/health").status_code == 200)
    assert not any(path.exists() for path in left)
    assert "MiB that a killed server left in /dev/shm" in log.read_text()
    assert ask(tiny_server.client, image_part()).choices, "a server that lives keeps what it has"


def test_what_a_living_server_has_stays_and_what_a_dead_one_had_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    shared_memory = tmp_path / "shm"
    shared_memory.mkdir()
    foreign = shared_memory / "vllm_mm_somebody_elses"
    foreign.touch()
    command = [sys.executable, "-c", HOLD, str(shared_memory)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        name = other.stdout.readline().strip()
        block = shared_memory / f"vllm_mm_{name}_1"
        block.write_bytes(b"x" * 10_000)
        folder = tmp_path / "tmp" / f"qwen-vqa-{name}"
        (folder / "vllm_dist_1").touch()
        with own_name({}, shared_memory):
            assert block.exists() and (folder / "vllm_dist_1").exists()
        other.kill()
        other.wait()
        with own_name({}, shared_memory):
            assert not block.exists() and not folder.exists()
    assert list(shared_memory.iterdir()) == [foreign]
    assert not list((tmp_path / "tmp").iterdir())


def test_a_server_that_ends_by_itself_leaves_nothing():
    with running() as (address, process):
        until(lambda: ready(address), 120)
        things = things_of(process, Path("/dev/shm"), Path(tempfile.gettempdir()))
        assert things
        process.terminate()
        assert process.wait(30) == 0
        assert not any(path.exists() for path in things)


def test_a_killed_supervisor_takes_the_server_and_its_engine_with_it_at_once():
    with running() as (address, process):
        until(lambda: ready(address), 120)
        tree = process.children(recursive=True)
        assert len(tree) >= 2
        process.kill()
        _, alive = psutil.wait_procs(tree, 3)
        assert not alive
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{address}/health")


def test_an_engine_does_not_outlive_its_supervisor_and_server_killed_together():
    with running() as (address, process):
        until(lambda: ready(address), 120)
        server, *rest = process.children(recursive=True)
        for one in (process, server):
            one.send_signal(signal.SIGSTOP)
        for one in (process, server):
            one.kill()
        _, alive = psutil.wait_procs(rest, 3)
        assert not [one.cmdline() for one in alive if "resource_tracker" not in " ".join(one.cmdline())]


@pytest.mark.skipif(not may_unshare("-Urpf", "--mount-proc"), reason="no PID namespaces for this user")
def test_as_a_containers_first_process_it_leaves_no_zombies():
    with running(first=("unshare", "-Urpf", "--kill-child", "--mount-proc")) as (address, process):
        until(lambda: ready(address), 120)
        first = next(one for one in process.children(recursive=True) if "EngineCore" in one.name())
        first.kill()
        until(lambda: not ready(address))
        until(lambda: ready(address), 120)
        supervisor = process.children()[0]
        # An orphan of somebody else's, as `docker exec` leaves them.
        enter = ["nsenter", "-t", str(supervisor.pid), "-U", "-p", "--preserve-credentials"]
        subprocess.run([*enter, "sh", "-c", "sleep 0.1 &"], check=True)
        time.sleep(1)
        zombies = [one for one in supervisor.children(recursive=True) if one.status() == psutil.STATUS_ZOMBIE]
        assert not zombies
