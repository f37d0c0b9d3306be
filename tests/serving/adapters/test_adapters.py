"""Adapters that come and go while the server runs, and what the others' requests see of it: nothing."""

import shutil
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
import torch
from openai import NotFoundError

from qwen_vqa.plugin.errors import UserError
from qwen_vqa.serving.adapters.adapter_slots import DEFAULT_ADAPTERS, DEFAULT_RANK, complete_adapters
from qwen_vqa.serving.checked_checkpoint import checked_checkpoint
from qwen_vqa.serving.serve import _complete_admission, _parse
from qwen_vqa.train.model.reference_adapter import attach_adapter
from qwen_vqa.train.model.reference_checkpoint import load_processor, load_reference
from qwen_vqa.train.verify.served_stages import ServedAnswer, ServedModel
from qwen_vqa.train.verify.stage_comparison import Reference, Tolerance, compare_answer
from qwen_vqa.train.verify.verify_cases import VerifyCase, case, picture
from tests.serving.conftest import GuardedServer
from tests.tiny import make_adapter

TOLERANCE = Tolerance.of(torch.float32)
CASES = [case(f"picture {seed}", picture(seed, 90, 60), f"What is {seed}?") for seed in range(4)]
SLOTS = 3  # the guarded server's --max-adapters


@pytest.fixture(scope="module")
def adapters(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Four random adapters: one more than the server holds."""
    folder = tmp_path_factory.mktemp("adapters")
    return {f"lora-{seed}": make_adapter(tiny_checkpoint, folder / f"lora-{seed}", seed) for seed in range(1, 5)}


@pytest.fixture
def server(guarded_server: GuardedServer) -> Iterator[GuardedServer]:
    """Without adapters, before and after."""
    yield guarded_server
    for name in names(guarded_server)[1:]:
        assert unload(guarded_server, name).status_code == 200


def load(server: GuardedServer, name: str, path: Path | str, **options) -> httpx.Response:
    body = {"lora_name": name, "lora_path": str(path), **options}
    return httpx.post(f"{server.url}/load_lora_adapter", json=body, headers=server.headers("operator"), timeout=120)


def unload(server: GuardedServer, name: str) -> httpx.Response:
    headers = server.headers("operator")
    return httpx.post(f"{server.url}/unload_lora_adapter", json={"lora_name": name}, headers=headers, timeout=120)


def names(server: GuardedServer) -> list[str]:
    return [model.id for model in server.client_with(server.keys["alice"]).models.list()]


def model(server: GuardedServer, name: str) -> ServedModel:
    return ServedModel(server.url, name, server.keys["alice"], {"ignore_eos": True})


def reference(checkpoint: Path, adapter: Path | None = None) -> Reference:
    trained = load_reference(checkpoint, torch.float32)
    if adapter:
        trained.language_model = attach_adapter(trained.language_model, adapter)
    return Reference(trained, load_processor(checkpoint))


def assert_equal(trained: Reference, served: ServedModel, asked: list[VerifyCase]) -> None:
    """The served answers are the reference's, token by token, within 1e-3."""
    for one in asked:
        assert_right(trained, one, served.answer(one, 16))


def assert_right(trained: Reference, asked: VerifyCase, answer: ServedAnswer) -> None:
    result = compare_answer(asked, trained, answer, TOLERANCE)
    assert result.equal, (asked.name, result.detail)


def test_an_adapter_comes_answers_as_trained_and_goes(server, adapters, tiny_checkpoint):
    folder = adapters["lora-1"]
    assert load(server, "one", folder).status_code == 200
    base, listed = server.client_with(server.keys["alice"]).models.list()
    assert (base.id, listed.id, listed.parent, listed.root) == ("tiny", "one", "tiny", str(folder))
    assert_equal(reference(tiny_checkpoint, folder), model(server, "one"), CASES[:2])
    assert unload(server, "one").status_code == 200
    assert names(server) == ["tiny"]
    with pytest.raises(NotFoundError, match="one"):
        server.client_with(server.keys["alice"]).chat.completions.create(
            model="one", messages=[{"role": "user", "content": "hi"}]
        )


def test_base_requests_stay_right_while_adapters_come_are_used_and_go(server, adapters, tiny_checkpoint):
    """Every slot is taken and given back many times, beside base requests in the same batches."""
    stop, rounds = threading.Event(), []

    def come_and_go() -> None:
        while not stop.is_set():
            name, folder = list(adapters.items())[len(rounds) % len(adapters)]
            assert load(server, name, folder).status_code == 200
            rounds.append(model(server, name).answer(CASES[0], 12).token_ids)
            assert unload(server, name).status_code == 200

    answers = []
    with ThreadPoolExecutor(4) as pool:
        changing = pool.submit(come_and_go)
        while len(rounds) < 4 * SLOTS and not changing.done():
            answers.append(list(pool.map(lambda one: model(server, "tiny").answer(one, 16), CASES[:2])))
        stop.set()
        changing.result()
    trained = reference(tiny_checkpoint)
    assert len(answers) > SLOTS
    for pair in answers:
        for one, answer in zip(CASES[:2], pair, strict=True):
            assert_right(trained, one, answer)
    # The same adapter answers the same each time, whatever slot it got; another answers otherwise.
    assert [len({tuple(answer) for answer in rounds[start::4]}) for start in range(4)] == [1] * 4
    assert len({tuple(answer) for answer in rounds}) == 4


def test_all_slots_taken_base_and_each_adapter_are_right_in_one_batch(server, adapters, tiny_checkpoint):
    chosen = dict(list(adapters.items())[:SLOTS])
    for name, folder in chosen.items():
        assert load(server, name, folder).status_code == 200
    with ThreadPoolExecutor(4) as pool:
        taken = list(pool.map(lambda name: model(server, name).answer(CASES[1], 16), ["tiny", *chosen]))
    for folder, answer in zip([None, *chosen.values()], taken, strict=True):
        assert_right(reference(tiny_checkpoint, folder), CASES[1], answer)


def test_one_more_than_there_is_room_for_is_409_and_says_what_to_unload(server, adapters):
    *first, last = adapters
    for name in first:
        assert load(server, name, adapters[name]).status_code == 200
    refused = load(server, last, adapters[last])
    assert refused.status_code == 409
    error = refused.json()["error"]
    assert error["code"] == "adapters_full"
    assert f"holds 3 adapters (--max-adapters): {', '.join(first)}. Unload one" in error["message"]
    assert names(server) == ["tiny", *first]
    assert unload(server, first[0]).status_code == 200
    assert load(server, last, adapters[last]).status_code == 200


def test_replaced_from_the_same_folder_it_answers_with_the_new_weights(server, adapters, tiny_checkpoint, tmp_path):
    """Also where the prompt is in vLLM's prefix cache, which knows an adapter by name and path alone."""
    long = [case("long", picture(5, 90, 60), "What is in this picture? " * 20)]
    folder = shutil.copytree(adapters["lora-1"], tmp_path / "changing")
    assert load(server, "changing", folder).status_code == 200
    assert_equal(reference(tiny_checkpoint, folder), model(server, "changing"), long)
    shutil.copytree(adapters["lora-2"], folder, dirs_exist_ok=True)
    assert load(server, "changing", folder, load_inplace=True).status_code == 200
    assert_equal(reference(tiny_checkpoint, folder), model(server, "changing"), long)
    # And unloaded, changed, loaded again.
    assert unload(server, "changing").status_code == 200
    shutil.copytree(adapters["lora-3"], folder, dirs_exist_ok=True)
    assert load(server, "changing", folder).status_code == 200
    assert_equal(reference(tiny_checkpoint, folder), model(server, "changing"), long)
    assert_equal(reference(tiny_checkpoint), model(server, "tiny"), long)


def test_the_folder_may_go_once_the_adapter_is_loaded(server, adapters, tiny_checkpoint, tmp_path):
    folder = shutil.copytree(adapters["lora-2"], tmp_path / "gone")
    assert load(server, "gone", folder).status_code == 200
    shutil.rmtree(folder)
    for name in ("lora-1", "lora-3"):
        assert load(server, name, adapters[name]).status_code == 200
        model(server, name).answer(CASES[0], 4)
    assert_equal(reference(tiny_checkpoint, adapters["lora-2"]), model(server, "gone"), CASES[:1])


def stream(server: GuardedServer, name: str):
    return server.client_with(server.keys["alice"]).chat.completions.create(
        model=name,
        messages=[{"role": "user", "content": "Tell me all."}],
        temperature=0,
        max_tokens=500,
        stream=True,
        extra_body={"ignore_eos": True},
    )


def text(chunks) -> str:
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


def test_a_base_stream_goes_on_unharmed_while_adapters_are_replaced(server, adapters, tmp_path):
    """vLLM computes it anew then, from its prompt and what it has answered."""
    alone = text(stream(server, "tiny"))
    folder = shutil.copytree(adapters["lora-1"], tmp_path / "changing")
    assert load(server, "changing", folder).status_code == 200
    running = stream(server, "tiny")
    begun = text([next(running) for _ in range(3)])
    for _ in range(3):
        assert load(server, "changing", folder, load_inplace=True).status_code == 200
    assert begun + text(running) == alone


def test_a_stream_of_an_unloaded_adapter_ends_as_it_would_and_its_place_is_free_after(server, adapters):
    assert load(server, "leaving", adapters["lora-1"]).status_code == 200
    alone = text(stream(server, "leaving"))
    running = stream(server, "leaving")
    next(running)
    assert unload(server, "leaving").status_code == 200
    refused = load(server, "leaving", adapters["lora-2"])
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "adapter_in_use")
    assert refused.headers["retry-after"] == "1"
    assert alone.endswith(text(running))
    deadline = time.monotonic() + 10
    while (again := load(server, "leaving", adapters["lora-2"])).status_code == 409 and time.monotonic() < deadline:
        time.sleep(0.2)
    assert again.status_code == 200


def broken(adapters: dict[str, Path], tmp_path: Path) -> Path:
    folder = shutil.copytree(adapters["lora-1"], tmp_path / "broken")
    (folder / "adapter_model.safetensors").write_bytes(b"x" * 99)
    return folder


@pytest.mark.parametrize(
    ("name", "path", "field", "message"),
    [
        ("new", "/no/such/folder", "lora_path", "no adapter at /no/such/folder: there is no such folder"),
        ("new", "/etc/hostname", "lora_path", "it is no folder"),
        ("new", "/etc", "lora_path", "adapter_config.json is missing"),
        ("new", "/\0", "lora_path", "no adapter at"),
        ("new", "/" + "x" * 300, "lora_path", "it cannot be looked at"),
        ("new", "~nobody-here/adapter", "lora_path", "home"),
        ("new", "", "lora_path", "lora_path is empty"),
        ("new", broken, "lora_path", "cannot be read"),
        ("tiny", "/etc", "lora_name", "'tiny' is the base model's name"),
        ("a/b", "/etc", "lora_name", "'a/b' cannot be an adapter's name"),
        ("", "/etc", "lora_name", "'' cannot be an adapter's name"),
        ("n" * 129, "/etc", "lora_name", "at most 128"),
    ],
)
def test_what_cannot_be_loaded_is_400_and_says_why(server, adapters, tmp_path, name, path, field, message):
    refused = load(server, name, path(adapters, tmp_path) if callable(path) else path)
    assert refused.status_code == 400
    error = refused.json()["error"]
    assert error["param"] == field
    assert message in error["message"]
    assert names(server) == ["tiny"]


def test_a_name_that_is_taken_and_one_that_is_not_there_are_said(server, adapters):
    assert load(server, "one", adapters["lora-1"]).status_code == 200
    taken = load(server, "one", adapters["lora-2"])
    assert (taken.status_code, taken.json()["error"]["param"]) == (400, "lora_name")
    assert "load_inplace: true" in taken.json()["error"]["message"]
    unknown = unload(server, "nobody")
    assert (unknown.status_code, unknown.json()["error"]["message"]) == (
        404,
        "there is no adapter 'nobody'; there are: one.",
    )
    base = unload(server, "tiny")
    assert (base.status_code, base.json()["error"]["param"]) == (400, "lora_name")


def test_a_rank_beyond_the_servers_is_400_and_names_the_flag(server, tiny_checkpoint, tmp_path):
    folder = make_adapter(tiny_checkpoint, tmp_path / "wide", rank=DEFAULT_RANK + 1)
    refused = load(server, "wide", folder)
    assert refused.status_code == 400
    assert "--max-lora-rank 65" in refused.json()["error"]["message"]


def test_whoever_is_no_admin_may_not(server, adapters):
    body = {"lora_name": "one", "lora_path": str(adapters["lora-1"])}
    refused = httpx.post(f"{server.url}/load_lora_adapter", json=body, headers=server.headers("alice"))
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "admin_key_required")


def completed(checkpoint: Path, on_cpu: bool, *flags: str):
    args = _parse([str(checkpoint), *flags])
    _complete_admission(args)
    complete_adapters(args, checked_checkpoint(checkpoint), on_cpu, lambda text: None)
    return args


@pytest.mark.parametrize(
    ("flags", "on_cpu", "slots", "held", "rank"),
    [
        (["--open-routes", "adapters"], True, DEFAULT_ADAPTERS + 1, DEFAULT_ADAPTERS + 1, DEFAULT_RANK),
        (["--open-routes", "adapters"], False, DEFAULT_ADAPTERS, DEFAULT_ADAPTERS, DEFAULT_RANK),
        (["--open-routes", "adapters", "--max-adapters", "20"], False, 8, 20, DEFAULT_RANK),
        (["--open-routes", "adapters", "--max-lora-rank", "8"], False, DEFAULT_ADAPTERS, DEFAULT_ADAPTERS, 8),
        ([], True, 2, 2, 16),
    ],
)
def test_the_room_that_vllm_makes(tiny_with_adapter: Path, flags, on_cpu, slots, held, rank):
    """On a CPU one slot more than adapters; and nothing ever falls out of memory."""
    args = completed(tiny_with_adapter, on_cpu, *flags)
    assert (args.enable_lora, args.max_loras, args.max_cpu_loras, args.max_lora_rank) == (True, slots, held, rank)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--max-adapters", "2"], "add --open-routes adapters"),
        (["--open-routes", "adapters", "--max-adapters", "0"], "the least is 1, with 1 adapters at the start"),
    ],
)
def test_a_bound_that_cannot_be_is_said(tiny_with_adapter: Path, flags, message):
    with pytest.raises(UserError, match=message):
        completed(tiny_with_adapter, True, *flags)


def test_vllms_own_switch_is_pointed_to_ours(tiny_checkpoint: Path, monkeypatch):
    monkeypatch.setenv("VLLM_ALLOW_RUNTIME_LORA_UPDATING", "1")
    with pytest.raises(UserError, match="--open-routes adapters opens the same routes with checks"):
        completed(tiny_checkpoint, True)
