"""How many threads the engine gets on a CPU: from the machine, from the container's share, or as set."""

import os
from argparse import Namespace
from pathlib import Path

import psutil
import pytest

from qwen_vqa.serving.cpu.threads import BIND, RESERVED, THREADS, WAIT, Machine, choose_threads, cpu_share
from tests.server import Server

ONE_PART = Namespace(tensor_parallel_size=1, pipeline_parallel_size=1, data_parallel_size=1)
TWO_PARTS = Namespace(tensor_parallel_size=2, pipeline_parallel_size=1, data_parallel_size=1)


@pytest.mark.parametrize(
    ("machine", "environment", "variables", "reason"),
    [
        (Machine(2, 1), {}, {BIND: "nobind", THREADS: "2", WAIT: "passive"}, "2 (one for each core"),
        (Machine(64, 2), {}, {WAIT: None}, "bound by vLLM to 64 cores but one"),
        (Machine(64, 2), {WAIT: "active"}, {WAIT: "active"}, "bound by vLLM to 64 cores but one"),
        (Machine(8, 2), {}, {WAIT: None}, "2 NUMA"),
        (Machine(64, 2, share=4.0), {}, {BIND: "nobind", THREADS: "4", WAIT: "passive"}, "may use 4 of 64 cores"),
        (Machine(64, 2, share=0.5), {}, {BIND: "nobind", THREADS: "1", WAIT: "passive"}, "may use 0.5 of 64 cores"),
        (Machine(2, 1, share=16.0), {}, {BIND: "nobind", THREADS: "2", WAIT: "passive"}, "2 (one for each core"),
        (Machine(2, 1), {BIND: "0-1"}, {WAIT: None}, f"as set: {BIND}=0-1"),
        (Machine(2, 1), {RESERVED: "1"}, {WAIT: None}, f"as set: {RESERVED}=1"),
        (Machine(2, 1), {THREADS: "1"}, {BIND: "nobind", WAIT: "passive"}, f"1, as set by {THREADS}"),
        (Machine(2, 1), {WAIT: "active"}, {BIND: "nobind", THREADS: "2", WAIT: "active"}, "2 (one for each core"),
    ],
)
def test_threads_from_the_machine_or_as_set(machine, environment, variables, reason):
    choice = choose_threads(ONE_PART, machine, environment)
    assert choice.variables == variables
    assert reason in choice.reason


def test_an_engine_of_several_parts_is_bound_by_vllm():
    choice = choose_threads(TWO_PARTS, Machine(2, 1), {})
    assert choice.variables == {WAIT: None}
    assert choice.unbound is None


@pytest.mark.parametrize(
    ("machine", "environment", "unbound"),
    [
        (Machine(2, 1), {}, 2),
        (Machine(64, 2), {}, None),
        (Machine(64, 2, share=4.0), {}, 4),
        (Machine(2, 1), {THREADS: "1"}, 1),
        (Machine(2, 1), {THREADS: "3,2"}, 3),
        (Machine(2, 1), {THREADS: "many"}, None),
        (Machine(2, 1), {BIND: "0-1"}, None),
    ],
)
def test_the_number_of_threads_where_they_are_not_bound(machine, environment, unbound):
    assert choose_threads(ONE_PART, machine, environment).unbound == unbound


def test_the_environment_is_as_before_afterwards(monkeypatch):
    monkeypatch.delenv(BIND, raising=False)
    monkeypatch.setenv(THREADS, "7")
    choice = choose_threads(ONE_PART, Machine(2, 1), {})
    with choice.applied():
        assert (os.environ[BIND], os.environ[THREADS]) == ("nobind", "2")
    assert BIND not in os.environ
    assert os.environ[THREADS] == "7"


@pytest.mark.parametrize(
    ("files", "share"),
    [
        ({"cpu.max": "200000 100000\n"}, 2.0),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "150000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 1.5),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({}, None),
    ],
)
def test_the_containers_share(tmp_path: Path, files, share):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert cpu_share(tmp_path) == share


@pytest.mark.cpu
def test_the_server_says_it_and_its_engine_has_it(demo_server: Server):
    assert f"threads: 1, as set by {THREADS}; not bound to cores" in demo_server.log.read_text()
    processes = psutil.Process(demo_server.process.pid).children(recursive=True)
    [engine] = [process for process in processes if "EngineCore" in " ".join(process.cmdline())]
    assert set(engine.cpu_affinity()) == os.sched_getaffinity(0)
