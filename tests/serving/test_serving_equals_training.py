"""Proof that serving equals training: greedy tokens equal, log-probabilities within 1e-3, in float32.

And the other way round: that each way in which a server can differ from training is found and named.
"""

import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from qwen_vqa.plugin.chat.chat_template import chat_template
from qwen_vqa.plugin.views.image_processor import QwenVqaImageProcessor
from qwen_vqa.serving.cli import main
from qwen_vqa.train.model.reference_adapter import attach_adapter
from qwen_vqa.train.model.reference_checkpoint import load_processor, load_reference
from qwen_vqa.train.verify.served_stages import ServedModel
from qwen_vqa.train.verify.stage_comparison import STAGES, Reference, Tolerance, compare, compare_answer
from qwen_vqa.train.verify.verify_cases import built_in_cases, case, picture
from tests.server import Server
from tests.tiny import tiny_processor

TOLERANCE = Tolerance.of(torch.float32)
CASES = built_in_cases()


@pytest.fixture
def tiny_reference(tiny_with_adapter: Path) -> Reference:
    return Reference(load_reference(tiny_with_adapter, torch.float32), load_processor(tiny_with_adapter))


def served(server: Server, name: str, position: str = "inline") -> ServedModel:
    return ServedModel(server.url, name, extra={"chat_template": chat_template(position)})


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("position", ["inline", "prefix"])
@pytest.mark.parametrize("adapter", [None, "tiny-lora"])
def test_the_tiny_model(
    case, position, adapter, tiny_server: Server, tiny_reference: Reference, tiny_with_adapter: Path
):
    model = tiny_reference.model
    if adapter:
        model.language_model = attach_adapter(model.language_model, tiny_with_adapter / "adapters" / adapter)
    reference = Reference(model, tiny_processor(position))
    results = list(compare(case, reference, served(tiny_server, adapter or "tiny", position), TOLERANCE))
    assert [result.stage for result in results if not result.equal] == [], results[-1].detail
    assert all(result.compared for result in results)
    assert [result.stage for result in results] == [
        stage for stage in STAGES if case.images or stage not in STAGES[2:4]
    ]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_demo_and_its_adapters(case, demo_server: Server, demo_checkpoint: Path):
    names = [path.name for path in (demo_checkpoint / "adapters").iterdir()]
    assert names
    processor = load_processor(demo_checkpoint)
    for adapter in [None, *names]:
        model = load_reference(demo_checkpoint, torch.float32)
        if adapter:
            model.language_model = attach_adapter(model.language_model, demo_checkpoint / "adapters" / adapter)
        name = adapter or "qwen-vqa-demo"
        results = list(compare(case, Reference(model, processor), ServedModel(demo_server.url, name), TOLERANCE))
        assert all(result.equal for result in results), (name, results[-1].detail)
        assert results[-1].stage == "logits"
        # This server was not started with --verify, and says so rather than passing for equal.
        assert {result.stage for result in results if not result.compared} <= {"pixels", "features"}
        assert any(not result.compared for result in results) == bool(case.images)


def test_thirty_two_at_once_over_the_base_and_three_adapters_get_each_its_own(
    demo_server: Server, demo_checkpoint: Path, random_demo_adapters: dict[str, Path]
):
    folders = {"qwen-vqa-demo": None, "sentences": demo_checkpoint / "adapters" / "sentences", **random_demo_adapters}
    asked = [
        case(f"picture {seed}", picture(seed, 90 + 40 * seed, 200), "Which number is written here?"[: 29 - seed])
        for seed in range(8)
    ]
    mixed = [(name, one) for one in asked for name in folders]
    assert len(mixed) == 32
    with ThreadPoolExecutor(len(mixed)) as pool:
        answers = list(pool.map(lambda each: ServedModel(demo_server.url, each[0]).answer(each[1], 12), mixed))
    by_name: dict[str, dict] = {name: {} for name in folders}
    for (name, one), answer in zip(mixed, answers, strict=True):
        by_name[name][one.name] = answer
    processor = load_processor(demo_checkpoint)
    for name, folder in folders.items():
        model = load_reference(demo_checkpoint, torch.float32)
        if folder:
            model.language_model = attach_adapter(model.language_model, folder)
        for one in asked:
            result = compare_answer(one, Reference(model, processor), by_name[name][one.name], TOLERANCE)
            assert result.equal, (name, one.name, result.detail)
    texts = [[tuple(answer.token_ids) for answer in by_name[name].values()] for name in folders]
    assert all(len(set(of_all)) > 1 for of_all in zip(*texts, strict=True)), "the adapters answer otherwise"


def first_difference(case, reference: Reference, model: ServedModel) -> tuple[str, str]:
    different = [result for result in compare(case, reference, model, TOLERANCE) if not result.equal]
    assert len(different) == 1, "the comparison stops at the first difference"
    return different[0].stage, different[0].detail


def test_a_missing_newline_in_the_template_is_named(tiny_server: Server, tiny_reference: Reference):
    template = tiny_reference.processor.chat_template
    tiny_reference.processor.chat_template = template.replace("+ image %}", "+ image + '\\n' %}")
    stage, detail = first_difference(CASES[1], tiny_reference, served(tiny_server, "tiny"))
    assert stage == "prompt text"
    assert "\\nWhat" in detail


def test_another_tokenizer_is_named(tiny_server: Server, tiny_reference: Reference):
    tiny_reference.processor.tokenizer.add_tokens(["capital of"])
    assert first_difference(CASES[0], tiny_reference, served(tiny_server, "tiny"))[0] == "token ids"


def test_a_preprocessor_file_from_elsewhere_is_named(tiny_server: Server, tiny_reference: Reference):
    tiny_reference.processor.image_processor = QwenVqaImageProcessor(
        64, 32, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    )
    assert first_difference(CASES[1], tiny_reference, served(tiny_server, "tiny"))[0] == "pixels"


@pytest.mark.parametrize("part", ["vision_encoder.final_norm", "connector.linear_2"])
def test_other_encoder_or_connector_weights_are_named(part: str, tiny_server: Server, tiny_reference: Reference):
    with torch.no_grad():
        tiny_reference.model.get_submodule(part).bias.add_(0.01)
    assert first_difference(CASES[1], tiny_reference, served(tiny_server, "tiny"))[0] == "features"


def test_other_language_weights_are_named(tiny_server: Server, tiny_reference: Reference):
    with torch.no_grad():
        tiny_reference.model.get_submodule("language_model.model.layers.1.self_attn.v_proj").weight.mul_(1.05)
    assert first_difference(CASES[1], tiny_reference, served(tiny_server, "tiny"))[0] == "logits"


def test_an_adapter_that_is_not_served_is_named(tiny_server: Server, tiny_reference: Reference):
    stage, _ = first_difference(CASES[1], tiny_reference, served(tiny_server, "tiny-lora"))
    assert stage == "logits"


def test_another_picture_is_named(tiny_server: Server, tiny_reference: Reference):
    class Mixed(ServedModel):
        """A server that is sent another picture than the reference sees."""

        def prompt(self, case):
            return super().prompt(replace(case, images=[picture(9, 640, 120)]))

    model = Mixed(tiny_server.url, "tiny")
    assert first_difference(CASES[1], tiny_reference, model)[0] == "pixels"


def test_the_command_compares_the_users_own_pictures_too(
    tiny_server: Server, tiny_with_adapter: Path, tmp_path: Path, capsys
):
    picture(4, 333, 100).save(tmp_path / "mine.png")
    arguments = ["verify", str(tiny_with_adapter), "--url", tiny_server.url]
    arguments += ["--image", str(tmp_path / "mine.png"), "--prompt", "Mine?", "--json", str(tmp_path / "out.json")]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "your prompt 1" in printed
    assert "tiny-lora at" in printed
    assert "none differs" in printed
    assert '"stage": "features"' in (tmp_path / "out.json").read_text()


def test_the_command_fails_and_says_where(tiny_server: Server, tiny_with_adapter: Path, tmp_path: Path, capsys):
    changed = shutil.copytree(tiny_with_adapter, tmp_path / "changed")
    template = changed / "chat_template.jinja"
    template.write_text(template.read_text().replace("'<|im_start|>assistant\\n'", "'<|im_start|>assistant\\n\\n'"))
    assert main(["verify", str(changed), "--url", tiny_server.url, "--model", "tiny"]) == 1
    printed = capsys.readouterr().out
    assert "the first difference is in the prompt text" in printed
    assert "compare its chat_template.jinja" in printed


def test_the_command_says_what_is_wrong_with_its_input(tiny_server: Server, tiny_checkpoint: Path, capsys):
    assert main(["verify", str(tiny_checkpoint), "--url", "http://127.0.0.1:9/v1"]) == 2
    assert "no server at http://127.0.0.1:9/v1" in capsys.readouterr().err
    assert main(["verify", str(tiny_checkpoint), "--url", tiny_server.url, "--model", "nobody"]) == 2
    assert "does not serve 'nobody'; it has tiny, tiny-lora" in capsys.readouterr().err
