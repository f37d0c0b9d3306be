"""What `serve` chooses on a CPU, what stands because the user chose it, and what the server says of it."""

import re
from argparse import Namespace
from pathlib import Path

import pytest

from qwen_vqa.plugin.errors import UserError
from qwen_vqa.serving.checked_checkpoint import checked_checkpoint
from qwen_vqa.serving.cpu.cpu_choices import STEP_TOKENS, check_no_speculation, choose_step_tokens
from qwen_vqa.serving.process.shared_memory import image_cache_gib
from tests.server import Server


def step_flags(**changes) -> Namespace:
    return Namespace(
        **{"max_num_batched_tokens": None, "max_num_seqs": None, "enable_chunked_prefill": None, **changes}
    )


@pytest.mark.parametrize(("sequences", "tokens"), [(None, STEP_TOKENS), (16, STEP_TOKENS), (600, 600)])
def test_a_step_has_room_for_each_answers_token(tiny_checkpoint: Path, sequences, tokens):
    args = step_flags(max_num_seqs=sequences)
    note = choose_step_tokens(args, checked_checkpoint(tiny_checkpoint))
    assert args.max_num_batched_tokens == tokens
    assert f"up to {tokens} tokens" in note and "--max-num-batched-tokens" in note


def test_a_step_has_room_for_a_whole_picture(tiny_checkpoint: Path):
    checkpoint = checked_checkpoint(tiny_checkpoint)
    vision = checkpoint.config.vision_config
    vision.image_size = 30 * vision.patch_size
    args = step_flags()
    choose_step_tokens(args, checkpoint)
    assert args.max_num_batched_tokens == 901


@pytest.mark.parametrize("chosen", [{"max_num_batched_tokens": 64}, {"enable_chunked_prefill": False}])
def test_what_the_user_chose_of_steps_stands(tiny_checkpoint: Path, chosen):
    args = step_flags(**chosen)
    assert choose_step_tokens(args, checked_checkpoint(tiny_checkpoint)) is None
    assert args == step_flags(**chosen)


def test_guessing_tokens_is_refused_with_the_reason():
    with pytest.raises(UserError, match=r"--speculative-config: on a CPU.*vLLM issue 55005"):
        check_no_speculation(Namespace(speculative_config={"method": "ngram", "num_speculative_tokens": 4}))
    check_no_speculation(Namespace(speculative_config=None))


def test_without_shared_memory_there_is_no_cache_of_images_and_it_is_said(capsys):
    assert image_cache_gib(Path("/proc/shm")) == 0
    assert "/proc/shm cannot be written" in capsys.readouterr().err


@pytest.mark.cpu
@pytest.mark.parametrize(
    "choice",
    [
        "processes: one for the API",
        "threads: 1",
        "float type: float32 (--dtype)",
        "prompts are cached in blocks of 32 tokens",
        f"steps of up to {STEP_TOKENS} tokens",
        "KV cache: ",
        "torch.compile is off: vLLM does not compile with adapters",
        "cache of processed images: ",
    ],
)
def test_with_verbose_the_server_says_what_it_chose(demo_server: Server, choice: str):
    assert f"qwen-vqa: {choice}" in demo_server.log.read_text()


@pytest.mark.cpu
def test_without_it_says_what_is_loaded_and_when_it_is_ready(tiny_server: Server):
    told = [line for line in tiny_server.log.read_text().splitlines() if line.startswith("qwen-vqa: ")]
    start = told[: next(number for number, line in enumerate(told) if "ready after" in line) + 1]
    assert len(start) <= 5, start
    assert any("loading" in line and "--verbose" in line for line in start)


@pytest.mark.cpu
def test_libraries_do_not_talk_into_the_start(demo_server: Server):
    start = demo_server.log.read_text().partition("\nserving ")[0]  # what it says of itself comes a moment later
    lines = [line for part in start.splitlines() if (line := part.strip())]
    ours = re.compile(r"qwen-vqa: |Loading safetensors|\d{4}-\d\d-\d\dT\S+ [A-Z]+ /")  # the last: the request log's
    assert len(lines) > 5
    assert [line for line in lines if not ours.match(line)] == []
