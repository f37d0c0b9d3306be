"""What is served is what was trained: the README's commands, without a further flag, against the original's arithmetic.

`tests/original.py` holds that arithmetic: the scripts' prompts, resizing, projection and greedy loop, on transformers'
and PEFT's own classes. The scripts' answers are compared with the server's, token by token.
"""

import base64
import io
import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from qwen_vqa.serving.cli import main
from qwen_vqa.train.model.reference_checkpoint import load_processor, load_reference
from tests.original import APP_SYSTEM, TRAIN_SYSTEM, Answer, OriginalModel, make_artefacts, padded, squashed
from tests.server import Server, serving
from tests.tiny import picture

PICTURES = {
    "landscape": picture(1, 150, 60),
    "portrait": picture(2, 50, 140),
    "thin": picture(3, 200, 9),
    "square": picture(4, 64, 64),
    "large square": picture(5, 300, 300),
}
ONE_TURN = [{"role": "user", "content": "What is in the picture?"}]
THREE_TURNS = [
    *ONE_TURN,
    {"role": "assistant", "content": "A red circle."},
    {"role": "user", "content": "And what colour is the rest?"},
    {"role": "assistant", "content": "Blue."},
    {"role": "user", "content": "How many are there?"},
]
TURNS = {"one turn": ONE_TURN, "three turns": THREE_TURNS}
MAX_TOKENS = 12
# Where both sides round to 16 bits in every layer, each in its own order.
BOUND_IN_16_BITS = 0.25


@dataclass(frozen=True)
class Served(Server):
    """A server of an assembled checkpoint, with the artefacts that it came from."""

    artefacts: Path
    checkpoint: Path

    @property
    def float_type(self) -> torch.dtype:
        """What the engine said that it computes in."""
        return getattr(torch, re.search(r"computing in (\w+)", self.log.read_text())[1])

    def answer(self, model: str, image: Image.Image, history: list[dict], max_tokens: int = MAX_TOKENS) -> Answer:
        """The answer to a client that sets no sampling parameter."""
        reply = self.client.chat.completions.create(
            model=model,
            messages=with_picture(image, history),
            max_tokens=max_tokens,
            logprobs=True,
            extra_body={"return_tokens_as_token_ids": True},
        )
        tokens = reply.choices[0].logprobs.content
        return Answer(
            [int(token.token.removeprefix("token_id:")) for token in tokens],
            [token.logprob for token in tokens],
            reply.choices[0].message.content.strip(),
        )


def with_picture(image: Image.Image, history: list[dict]) -> list[dict]:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    url = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    first = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": history[0]["content"]}]
    return [{"role": "user", "content": first}, *history[1:]]


def assembled(artefacts: Path, output: Path, *more: str) -> Path:
    """By the README's command, with this machine's folders in place of hub ids."""
    command = ["assemble", "--vision-encoder", str(artefacts / "vit")]
    command += ["--language-model", str(artefacts / "language_model")]
    command += ["--connector", str(artefacts / "final_connector.pth")]
    command += ["--adapter", str(artefacts / "final_lora_model"), "--like", "original", *more]
    assert main([*command, "-o", str(output)]) == 0
    return output


@pytest.fixture(scope="module")
def artefacts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_artefacts(tmp_path_factory.mktemp("float32"), torch.float32)


@pytest.fixture(scope="module")
def original(artefacts: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The language model in float32, by the README's two commands."""
    folder = tmp_path_factory.mktemp("original")
    checkpoint = assembled(artefacts, folder / "my-model")
    with serving(folder / "log", str(checkpoint), "--verify") as server:
        yield Served(server.url, server.log, server.process, artefacts, checkpoint)


def test_a_float32_checkpoint_is_computed_in_float32(original: Served):
    assert original.float_type == torch.float32


@pytest.mark.parametrize("turns", TURNS)
@pytest.mark.parametrize("name", PICTURES)
def test_the_answers_are_the_training_scripts(original: Served, name: str, turns: str):
    image, history = PICTURES[name], TURNS[turns]
    script = OriginalModel(original.artefacts, torch.float32)
    expected = script.answer(squashed(image), history, TRAIN_SYSTEM, MAX_TOKENS)
    actual = original.answer("my-model", image, history)
    assert actual.token_ids == expected.token_ids
    np.testing.assert_allclose(actual.logprobs, expected.logprobs, atol=1e-5)
    assert actual.text == expected.text


def test_the_adapter_and_the_picture_matter_here(original: Served):
    script, plain = (OriginalModel(original.artefacts, torch.float32, adapter) for adapter in (True, False))
    answers = [
        model.answer(square(PICTURES["landscape"]), ONE_TURN, TRAIN_SYSTEM, MAX_TOKENS).token_ids
        for model, square in ((script, squashed), (script, padded), (plain, squashed))
    ]
    assert len({tuple(answer) for answer in answers}) == 3


def test_verify_without_flags_tests_what_serve_serves(original: Served, capsys):
    assert main(["verify", str(original.checkpoint), "--url", original.url]) == 0
    printed = capsys.readouterr().out
    assert "language model float32, vision encoder float32, connector float32" in printed
    assert "greedy, which is also what is compared" in printed
    assert "squash" in printed and TRAIN_SYSTEM in printed


@pytest.fixture(scope="module")
def script_output(original: Served, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the README's lines write in the original's own script."""
    folder = tmp_path_factory.mktemp("script")
    script = OriginalModel(original.artefacts, torch.float32)
    cases = []
    for number, (image, history) in enumerate(zip(PICTURES.values(), [ONE_TURN, THREE_TURNS] * 3, strict=False)):
        image.save(folder / f"{number}.png")
        np.save(folder / f"{number}.npy", script.pixels(squashed(image)).numpy())
        answer = script.answer(squashed(image), history, TRAIN_SYSTEM, MAX_TOKENS)
        prompt = script.prompt(history, TRAIN_SYSTEM)
        cases.append(
            {
                "image": f"{number}.png",
                "messages": history,
                "prompt": prompt,
                "prompt_ids": script.tokenizer(prompt).input_ids,
                "pixels": f"{number}.npy",
                "answer_ids": answer.token_ids,
                "logprobs": answer.logprobs,
            }
        )
    (folder / "output.json").write_text(json.dumps(cases))
    return folder / "output.json"


def against(served: Served, script_output: Path, **changes) -> list[str]:
    """The command's arguments, with single fields of all cases changed."""
    cases = [{**one, **changes} for one in json.loads(script_output.read_text())]
    changed = script_output.with_name("changed.json")
    changed.write_text(json.dumps([{name: value for name, value in one.items() if value is not None} for one in cases]))
    return ["verify", str(served.checkpoint), "--url", served.url, "--against", str(changed)]


def test_the_server_does_what_the_script_wrote(original: Served, script_output: Path, capsys):
    assert main(against(original, script_output)) == 0
    printed = capsys.readouterr().out
    assert printed.count("tokens equal, log-probabilities differ by") == len(PICTURES)
    assert "the server does what the script did: 20 comparisons" in printed


@pytest.mark.parametrize(
    ("changes", "stage", "advice"),
    [
        ({"prompt": f"<|im_start|>system\n{APP_SYSTEM}<|im_end|>\n"}, "prompt text", "--system-prompt"),
        ({"prompt": None, "prompt_ids": [1, 2, 3]}, "token ids", "tokenizer"),
        ({"answer_ids": [5, 6, 7], "logprobs": [-1.0, -1.0, -1.0]}, "answer", "adapter"),
        ({"answer_ids": None, "logprobs": None, "answer": "nothing like it"}, "answer", "adapter"),
    ],
)
def test_what_differs_from_the_script_is_named(original: Served, script_output: Path, capsys, changes, stage, advice):
    assert main(against(original, script_output, **changes)) == 1
    printed = capsys.readouterr().out
    assert f"the first difference is in the {stage}" in printed
    assert advice in printed.splitlines()[-1]


def test_pictures_that_the_script_padded_are_named(original: Served, script_output: Path, capsys):
    script = OriginalModel(original.artefacts, torch.float32)
    np.save(script_output.with_name("padded.npy"), script.pixels(padded(PICTURES["landscape"])).numpy())
    assert main(against(original, script_output, image="0.png", pixels="padded.npy")) == 1
    printed = capsys.readouterr().out
    assert "the first difference is in the pixels" in printed
    assert "--fit" in printed.splitlines()[-1]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("nothing", "not readable JSON"),
        ("[]", "expected a list of cases"),
        ('[{"question": "a"}]', "case 0: nothing to compare"),
        ('[{"answer": "a"}]', "case 0: give a question"),
        ('[{"question": "a", "answer": "b", "anwser": 1}]', "unknown fields anwser"),
        ('[{"question": "a", "answer_ids": [1], "logprobs": [1, 2]}]', "answer_ids of the same length"),
        ('[{"question": "a", "pixels": "none.npy"}]', r"none\.npy is no \.npy array"),
        ('[{"question": "a", "answer": "b", "image": "none.png"}]', r"none\.png"),
    ],
)
def test_a_script_output_that_cannot_be_used_says_why(tmp_path: Path, demo_checkpoint, capsys, content, message):
    (tmp_path / "output.json").write_text(content)
    assert main(["verify", str(demo_checkpoint), "--against", str(tmp_path / "output.json")]) == 2
    assert re.search(message, capsys.readouterr().err)


def test_like_the_app_the_logits_are_the_apps(artefacts: Path, tmp_path: Path):
    checkpoint = assembled(artefacts, tmp_path / "app", "--like", "original-app")
    model, processor = load_reference(checkpoint), load_processor(checkpoint)
    script = OriginalModel(artefacts, torch.float32)
    for image in PICTURES.values():
        expected = script.answer(padded(image), THREE_TURNS, APP_SYSTEM, MAX_TOKENS)
        turn = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": THREE_TURNS[0]["content"]}]}
        prompt = processor.apply_chat_template([turn, *THREE_TURNS[1:]], tokenize=False, add_generation_prompt=True)
        inputs = processor(text=prompt, images=[image], return_tensors="pt")
        made = model.generate(**inputs, max_new_tokens=MAX_TOKENS, do_sample=False)
        assert made[0, inputs["input_ids"].shape[1] :].tolist() == expected.token_ids


@pytest.fixture(scope="module", params=["bfloat16", "float16"])
def in_16_bits(request, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A language model in 16 bits, the vision side in float32; the adapter merged in one, apart in the other."""
    folder = tmp_path_factory.mktemp(request.param)
    artefacts = make_artefacts(folder / "artefacts", getattr(torch, request.param))
    if request.param == "float16":
        adapter = saved_under_another_name(artefacts / "final_lora_model", folder / "final_lora_model")
        checkpoint = assembled(artefacts, folder / "my-model", "--no-merge-adapter", "--adapter", str(adapter))
    else:
        checkpoint = assembled(artefacts, folder / "my-model")
    with serving(folder / "log", str(checkpoint)) as server:
        yield Served(server.url, server.log, server.process, artefacts, checkpoint)


def saved_under_another_name(adapter: Path, folder: Path) -> Path:
    """The adapter as PEFT names it in a module that calls its language model `llm`."""
    shutil.copytree(adapter, folder)
    file = folder / "adapter_model.safetensors"
    inside, before = "base_model.model.llm.model.layers", "base_model.model.model.layers"
    save_file({name.replace(before, inside): tensor for name, tensor in load_file(file).items()}, file)
    return folder


@pytest.mark.parametrize("name", PICTURES)
def test_in_16_bits_the_answers_are_the_training_scripts(in_16_bits: Served, name: str):
    apart = (in_16_bits.checkpoint / "adapters").is_dir()
    script = OriginalModel(in_16_bits.artefacts, in_16_bits.float_type)
    actual = in_16_bits.answer("final_lora_model" if apart else "my-model", PICTURES[name], THREE_TURNS)
    expected = script.answer(squashed(PICTURES[name]), THREE_TURNS, TRAIN_SYSTEM, MAX_TOKENS)
    if in_16_bits.float_type == torch.float32 and apart:  # nothing is rounded on the way
        assert actual.token_ids == expected.token_ids
        np.testing.assert_allclose(actual.logprobs, expected.logprobs, atol=1e-5)
        return
    # Where two tokens are as likely as each other within the rounding, either may come; what follows is another answer.
    for ours, theirs, probability, other in zip(
        actual.token_ids, expected.token_ids, actual.logprobs, expected.logprobs, strict=False
    ):
        assert abs(probability - other) < BOUND_IN_16_BITS
        if ours != theirs:
            break


def test_in_16_bits_the_checkpoints_own_name_is_what_assemble_said(in_16_bits: Served):
    merged = not (in_16_bits.checkpoint / "adapters").is_dir()
    asked = "my-model" if merged else "final_lora_model"
    assert f'model="{asked}"' in in_16_bits.log.read_text(), "the snippet asks for what was trained"
    script = OriginalModel(in_16_bits.artefacts, torch.float32, adapter=merged)
    expected = script.answer(squashed(PICTURES["portrait"]), ONE_TURN, TRAIN_SYSTEM, MAX_TOKENS)
    actual = in_16_bits.answer("my-model", PICTURES["portrait"], ONE_TURN)
    assert actual.logprobs[0] == pytest.approx(expected.logprobs[0], abs=BOUND_IN_16_BITS)
