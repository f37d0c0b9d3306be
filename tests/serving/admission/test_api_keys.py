"""API keys: which are known, how a file of them is read and read again, and that none is shown."""

import asyncio
import json
import os
import time
from argparse import Namespace
from pathlib import Path

import pytest
from openai import AuthenticationError, NotFoundError, PermissionDeniedError

from qwen_vqa.plugin.errors import UserError
from qwen_vqa.serving.admission import api_keys
from qwen_vqa.serving.admission.admission import exposed_without_keys, take_admission
from qwen_vqa.serving.admission.api_keys import KeyRing, read_key_file, sha256
from qwen_vqa.serving.admission.authentication import AccessMiddleware
from qwen_vqa.serving.admission.route_rules import RouteRules
from tests.serving.asgi import client_of, echo

ALICE = "alice-secret-0123456789"
BOB = "bob-secret-0123456789ab"
OPERATOR = "operator-secret-01234567"


def write(path: Path, *keys: dict) -> Path:
    path.write_text(json.dumps({"keys": keys}))
    return path


@pytest.fixture
def keys_file(tmp_path: Path) -> Path:
    return write(
        tmp_path / "keys.json",
        {"name": "alice", "key": ALICE, "requests_per_minute": 5},
        {"name": "bob", "sha256": sha256(BOB)},
        {"name": "operator", "key": OPERATOR, "admin": True},
    )


@pytest.fixture
def looking_at_once(monkeypatch):
    monkeypatch.setattr(api_keys, "LOOK_SECONDS", 0)


def test_keys_come_from_the_command_line_and_the_file(keys_file: Path):
    ring = KeyRing(["plain"], keys_file)
    assert {key: ring.find(key) and ring.find(key).name for key in ("plain", ALICE, BOB, OPERATOR, "nobody", "")} == {
        "plain": "api-key-1",
        ALICE: "alice",
        BOB: "bob",
        OPERATOR: "operator",
        "nobody": None,
        "": None,
    }
    assert [ring.find(key).admin for key in ("plain", ALICE, OPERATOR)] == [False, False, True]
    assert ring.find(ALICE).requests_per_minute == 5
    assert ring.find(sha256(BOB)) is None, "the hash in the file is no key"


def test_every_key_is_compared_and_in_constant_time(keys_file: Path, monkeypatch):
    compared = []
    compare = api_keys.hmac.compare_digest
    monkeypatch.setattr(api_keys.hmac, "compare_digest", lambda *pair: compared.append(pair) or compare(*pair))
    KeyRing(["plain"], keys_file).find("plain")
    assert len(compared) == 4  # also those after the one that matched


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("", "Invalid JSON"),
        ("[]", "object"),
        ('{"keys": []}', "keys"),
        ('{"keys": [{"name": "a", "key": "%s", "limit": 3}]}', r"keys\[0\].limit"),
        ('{"keys": [{"name": "a", "key": "%s"}], "more": 1}', "more"),
        ('{"keys": [{"name": "a", "key": "%s", "admin": "yes"}]}', r"keys\[0\].admin"),
        ('{"keys": [{"name": "a", "key": "%s", "running": -1}]}', r"keys\[0\].running"),
        ('{"keys": [{"name": "a\\nb", "key": "%s"}]}', r"keys\[0\].name"),
        ('{"keys": [{"name": "a", "key": "short-secret"}]}', "at least 16 characters"),
        ('{"keys": [{"name": "a", "key": "%s with-space"}]}', "without spaces"),
        ('{"keys": [{"name": "a", "key": "%s", "sha256": "00"}]}', "either key or sha256"),
        ('{"keys": [{"name": "a"}]}', r"keys\[0\].sha256"),
        ('{"keys": [{"name": "a", "key": "%s"}, {"name": "a", "key": "%s-2"}]}', "same name: a"),
        ('{"keys": [{"name": "a", "key": "%s"}, {"name": "b", "key": "%s"}]}', "same key: a, b"),
    ],
)
def test_a_file_that_is_not_right_is_said_without_the_keys(tmp_path: Path, content: str, problem: str):
    file = tmp_path / "keys.json"
    file.write_text(content.replace("%s", ALICE))
    with pytest.raises(UserError, match=problem) as error:
        read_key_file(file)
    assert str(file) in str(error.value)
    shown = str(error.value) + repr(error.value.__cause__) + repr(error.value.__context__)
    assert "secret" not in shown


def test_no_such_file_is_said(tmp_path: Path):
    with pytest.raises(UserError, match=r"none.json cannot be read: No such file"):
        KeyRing([], tmp_path / "none.json")


def test_a_changed_file_counts_without_a_restart(keys_file: Path, looking_at_once):
    ring = KeyRing([], keys_file)
    assert ring.find(ALICE)
    other = write(keys_file.with_name("new.json"), {"name": "carol", "key": "carol-secret-0123456789"})
    other.replace(keys_file)
    assert ring.find(ALICE) is None
    assert ring.find("carol-secret-0123456789").name == "carol"


@pytest.mark.parametrize("broken", ['{"keys": [', None])
def test_a_broken_new_file_keeps_the_old_keys_and_is_logged(keys_file: Path, looking_at_once, capsys, broken):
    ring = KeyRing([], keys_file)
    if broken is None:
        keys_file.unlink()
    else:
        keys_file.write_text(broken)
    assert ring.find(ALICE).name == "alice"
    assert ring.find("nobody") is None
    ring.find(ALICE)
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1, "once for each change, not once for each request"
    assert said[0].startswith("qwen-vqa: ERROR: the keys file")
    assert "keys from before stay valid" in said[0]
    write(keys_file, {"name": "bob", "key": BOB})
    assert ring.find(ALICE) is None
    assert ring.find(BOB)
    assert "was read again: 1 keys" in capsys.readouterr().err


def test_the_file_is_not_looked_at_with_every_request(keys_file: Path, monkeypatch):
    ring = KeyRing([], keys_file)
    looks = []
    monkeypatch.setattr(api_keys, "_content", lambda path: looks.append(path) or path.read_bytes())
    for _ in range(50):
        ring.find(ALICE)
    assert not looks
    monkeypatch.setattr(ring, "_next_look", time.monotonic())
    ring.find(ALICE)
    assert len(looks) == 1


def test_a_change_within_one_tick_of_the_files_times_counts(keys_file: Path, looking_at_once):
    ring, before = KeyRing([], keys_file), keys_file.stat()
    keys_file.write_text(keys_file.read_text().replace(ALICE, ALICE[::-1]))
    os.utime(keys_file, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = keys_file.stat()
    assert (after.st_size, after.st_mtime_ns, after.st_ino) == (before.st_size, before.st_mtime_ns, before.st_ino)
    assert ring.find(ALICE) is None
    assert ring.find(ALICE[::-1]).name == "alice"


def test_a_pipe_in_place_of_the_file_is_refused_at_once(tmp_path: Path):
    os.mkfifo(tmp_path / "keys.json")
    with pytest.raises(UserError, match="no regular file"):
        KeyRing([], tmp_path / "keys.json")


def test_no_key_shows_in_what_could_be_logged(keys_file: Path):
    args = _arguments(keys_file, api_key=["plain-secret"])
    guard = take_admission(args)
    shown = repr(guard) + repr(vars(args)) + repr(guard.keys.find(ALICE))
    assert "secret" not in shown
    assert sha256(ALICE) not in shown


def test_the_environments_key_is_taken_and_does_not_go_on_to_vllm(keys_file: Path, monkeypatch):
    monkeypatch.setenv("VLLM_API_KEY", "from-environment")
    args = _arguments(None, api_key=None)
    guard = take_admission(args)
    assert guard.first_key == "from-environment"
    assert guard.keys.find("from-environment")
    assert "VLLM_API_KEY" not in os.environ
    monkeypatch.setenv("VLLM_API_KEY", "from-environment")
    args = _arguments(None, api_key=["from-command-line"])
    guard = take_admission(args)
    assert guard.keys.find("from-environment") is None, "vLLM lets the command line's take precedence"
    assert args.api_key is None


def test_an_empty_key_is_refused_rather_than_none_asked_for():
    with pytest.raises(UserError, match="--api-key is empty"):
        take_admission(_arguments(None, api_key=[""]))


def test_a_number_below_its_least_is_refused():
    args = _arguments(None)
    args.running = 0
    with pytest.raises(UserError, match=r"--running .* is 0; the least is 1"):
        take_admission(args)


@pytest.mark.parametrize(
    ("host", "exposed"),
    [("127.0.0.1", False), ("::1", False), ("localhost", False), ("0.0.0.0", True), ("::", True), (None, True)],
)
def test_a_server_for_everybody_without_keys_is_noticed(keys_file: Path, host, exposed):
    args = _arguments(None, host=host)
    assert exposed_without_keys(args, take_admission(args)) is exposed
    args = _arguments(keys_file, host=host)
    assert exposed_without_keys(args, take_admission(args)) is False


def _arguments(file: Path | None, **others) -> Namespace:
    from argparse import ArgumentParser

    from qwen_vqa.serving.admission.admission import add_admission_flags

    parser = ArgumentParser()
    add_admission_flags(parser)
    args = parser.parse_args(["--api-keys-file", str(file)] if file else [])
    vars(args).update({"api_key": None, "verify": False, "uds": None, "host": None, **others})
    return args


@pytest.mark.parametrize(
    ("header", "status"),
    [
        (f"Bearer {ALICE}", 200),
        (f"bearer  {ALICE}", 200),
        (f"Bearer {ALICE}x", 401),
        (f"Bearer {ALICE[:-1]}", 401),
        (f"Basic {ALICE}", 401),
        (ALICE, 401),
        ("Bearer", 401),
        ("Bearer ", 401),
        ("Bearer \xff\xfe", 401),
        (None, 401),
    ],
)
def test_the_header_that_counts(keys_file: Path, header: str | None, status: int):
    app = AccessMiddleware(echo, RouteRules(), KeyRing([], keys_file))

    async def ask():
        async with client_of(app) as client:
            headers = {"authorization": header.encode("latin-1")} if header is not None else {}
            return await client.get("/v1/models", headers=headers)

    reply = asyncio.run(ask())
    assert reply.status_code == status
    if status == 401:
        assert reply.json()["error"]["code"] == "invalid_api_key"
        assert reply.headers["www-authenticate"] == "Bearer"


def test_an_admins_route_wants_an_admins_key(keys_file: Path):
    def status(ring: KeyRing, key: str | None) -> int:
        async def ask():
            headers = {"authorization": f"Bearer {key}"} if key else {}
            async with client_of(AccessMiddleware(echo, RouteRules(["adapters"]), ring)) as client:
                return (await client.post("/v1/load_lora_adapter", headers=headers)).status_code

        return asyncio.run(ask())

    ring = KeyRing(["plain"], keys_file)
    assert [status(ring, key) for key in (None, "plain", ALICE, OPERATOR)] == [401, 403, 403, 200]
    assert status(KeyRing(), None) == 401, "nor is it open where there are no keys"


def test_the_sdk_gets_openais_errors(guarded_server):
    messages = [{"role": "user", "content": "hi"}]
    for key in ("none", "sk-wrong", guarded_server.keys["alice"] + "x"):
        with pytest.raises(AuthenticationError) as error:
            guarded_server.client_with(key).chat.completions.create(model="tiny", messages=messages)
        assert error.value.code == "invalid_api_key"
        assert key not in error.value.message or key == "none"
    alice = guarded_server.client_with(guarded_server.keys["alice"])
    assert [model.id for model in alice.models.list()] == ["tiny"]
    assert alice.chat.completions.create(model="tiny", messages=messages, max_tokens=2).choices
    outside_v1 = alice.with_options(base_url=guarded_server.url.removesuffix("/v1"))
    with pytest.raises(PermissionDeniedError, match="admin"):
        outside_v1.post("/scale_elastic_ep", cast_to=object)
    with pytest.raises(NotFoundError, match="--open-routes"):
        outside_v1.post("/invocations", cast_to=object)


def test_the_running_server_reads_its_keys_again(guarded_server):
    before = guarded_server.keys_file.read_text()
    entries = json.loads(before)["keys"]
    newcomer = "newcomer-secret-0123456789"
    client = guarded_server.client_with(newcomer)
    with pytest.raises(AuthenticationError):
        client.models.list()
    try:
        write(guarded_server.keys_file, *entries, {"name": "newcomer", "key": newcomer})
        _eventually(lambda: client.models.list().data)
        guarded_server.keys_file.write_text("{")
        time.sleep(1.2)
        assert client.models.list().data, "a broken file keeps the keys"
        assert "The keys from before stay valid" in guarded_server.log.read_text()
    finally:
        guarded_server.keys_file.write_text(before)
    time.sleep(1.2)
    with pytest.raises(AuthenticationError):
        client.models.list()


def test_the_servers_log_has_no_key(guarded_server):
    printed = guarded_server.log.read_text()
    assert "ready after" in printed
    assert not [name for name, key in guarded_server.keys.items() if key in printed]


def _eventually(done, seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            assert done()
            return
        except AuthenticationError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)
