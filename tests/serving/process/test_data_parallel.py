"""Several engines behind one API (`--data-parallel-size 2`): each answers, and all of them have what one has."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import pytest
import torch
from openai import BadRequestError, NotFoundError, OpenAI

from qwen_vqa.plugin.errors import UserError
from qwen_vqa.serving.process.shared_memory import choose_image_cache
from qwen_vqa.serving.serve import server_parser
from qwen_vqa.train.model.reference_adapter import attach_adapter
from qwen_vqa.train.model.reference_checkpoint import load_processor, load_reference
from qwen_vqa.train.verify.served_stages import ServedModel
from qwen_vqa.train.verify.stage_comparison import Reference, Tolerance, compare_answer
from qwen_vqa.train.verify.verify_cases import case, picture
from tests.server import Server, serving

pytestmark = pytest.mark.cpu
TOLERANCE = Tolerance.of(torch.float32)
CASES = [case(f"picture {seed}", picture(seed, 90, 60), f"What is {seed}?") for seed in range(4)]
AT_ONCE = 16
KEY = "operator-secret-0123456789"
HEADERS = {"Authorization": f"Bearer {KEY}"}
NAME = "tiny"


@pytest.fixture(scope="module")
def server(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("engines")
    (folder / "keys.json").write_text(json.dumps({"keys": [{"name": "operator", "key": KEY, "admin": True}]}))
    flags = ["--api-keys-file", str(folder / "keys.json")]
    flags += ["--served-model-name", NAME, "--dtype", "float32", "--data-parallel-size", "2"]
    flags += ["--max-adapters", "2", "--open-routes", "adapters"]
    with serving(folder / "log", str(tiny_checkpoint), *flags) as running:
        processes = psutil.Process(running.process.pid).children(recursive=True)
        yield running
    _, alive = psutil.wait_procs(processes, timeout=10)
    assert not alive, "no engine is left"


def answered(server: Server) -> list[float]:
    """Requests that each engine has answered."""
    lines = httpx.get(f"{server.url.removesuffix('/v1')}/metrics", headers=HEADERS).text.splitlines()
    counts = dict.fromkeys(("0", "1"), 0.0)
    for line in lines:
        if line.startswith("vllm:request_success_total"):
            counts[line.split('engine="')[1].split('"')[0]] += float(line.rsplit(" ", 1)[1])
    return list(counts.values())


def assert_all_right(server: Server, reference: Reference, model: str) -> None:
    """16 at once, four of each question: the reference's answers."""
    served = ServedModel(server.url, model, KEY, {"ignore_eos": True})
    asked = CASES * (AT_ONCE // len(CASES))
    with ThreadPoolExecutor(AT_ONCE) as pool:
        answers = list(pool.map(lambda one: served.answer(one, 8), asked))
    for one, answer in zip(asked, answers, strict=True):
        result = compare_answer(one, reference, answer, TOLERANCE)
        assert result.equal, result.detail


def test_both_engines_answer_as_trained(server: Server, tiny_checkpoint: Path):
    reference = Reference(load_reference(tiny_checkpoint, torch.float32), load_processor(tiny_checkpoint))
    assert_all_right(server, reference, NAME)
    assert all(count >= 4 for count in answered(server))


def test_a_refused_request_spoils_no_later_one_with_its_picture(server: Server, tiny_checkpoint: Path):
    client = OpenAI(base_url=server.url, api_key=KEY, max_retries=0)
    reference = Reference(load_reference(tiny_checkpoint, torch.float32), load_processor(tiny_checkpoint))
    served = ServedModel(server.url, NAME, KEY, {"ignore_eos": True})
    for seed in range(20, 26):
        new = case(f"picture {seed}", picture(seed, 90, 60), "What is it?")
        with pytest.raises(BadRequestError, match="999999"):  # found out after the picture was prepared
            client.chat.completions.create(model=NAME, messages=new.request_messages(), logit_bias={"999999": 1})
        for _ in range(2):
            result = compare_answer(new, reference, served.answer(new, 4), TOLERANCE)
            assert result.equal, result.detail


def test_an_adapter_reaches_every_engine_and_leaves_every_one(
    server: Server, tiny_checkpoint: Path, tiny_adapter: Path
):
    body = {"lora_name": "mine", "lora_path": str(tiny_adapter)}
    assert httpx.post(f"{server.url}/load_lora_adapter", json=body, headers=HEADERS, timeout=60).status_code == 200
    adapted = load_reference(tiny_checkpoint, torch.float32)
    adapted.language_model = attach_adapter(adapted.language_model, tiny_adapter)
    before = answered(server)
    assert_all_right(server, Reference(adapted, load_processor(tiny_checkpoint)), "mine")
    assert all(count > earlier for count, earlier in zip(answered(server), before, strict=True))
    gone = httpx.post(f"{server.url}/unload_lora_adapter", json={"lora_name": "mine"}, headers=HEADERS, timeout=60)
    assert gone.status_code == 200
    client = OpenAI(base_url=server.url, api_key=KEY, max_retries=0)
    with pytest.raises(NotFoundError):
        client.chat.completions.create(model="mine", messages=CASES[0].request_messages(), max_tokens=1)


@pytest.mark.parametrize(("flags", "chosen"), [([], "shm"), (["--data-parallel-size", "2"], "lru")])
def test_the_cache_of_images_is_one_that_the_engines_find(flags: list[str], chosen: str):
    args = server_parser().parse_args(flags)
    choose_image_cache(args)
    assert args.mm_processor_cache_type == chosen


def test_a_cache_that_engines_cannot_share_is_refused():
    args = server_parser().parse_args(["--data-parallel-size", "2", "--mm-processor-cache-type", "shm"])
    with pytest.raises(UserError, match=r"--mm-processor-cache-type shm.* 2 engines"):
        choose_image_cache(args)
