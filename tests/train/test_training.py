"""The training loop: what is trained, on what, and that a resumed run is the same run."""

import argparse
import base64
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.utils.data import Dataset

from qwen_vqa.plugin.command.installed_command import typed_command
from qwen_vqa.plugin.errors import UserError
from qwen_vqa.plugin.float_instructions import multiplies
from qwen_vqa.serving.cli import main
from qwen_vqa.train.data.collator import ConversationCollator
from qwen_vqa.train.data.dataset import ConversationDataset
from qwen_vqa.train.export import export
from qwen_vqa.train.model.labels import IGNORED
from qwen_vqa.train.model.reference_checkpoint import load_processor, load_reference, save_checkpoint
from qwen_vqa.train.recipe import STAGES, config_for, load_config
from qwen_vqa.train.train import train
from qwen_vqa.train.train_flags import build_parser
from qwen_vqa.train.trainer import prepare_model, trainable_parts
from qwen_vqa.train.training_arguments import precision_note, training_arguments, training_precision
from qwen_vqa.train.training_config import TrainingConfig
from tests.image_server import png
from tests.tiny import picture, tiny_config, tiny_model, tiny_processor, user
from tests.train.releases import prepare, write_textvqa

CONFIG = TrainingConfig(
    learning_rate=1e-3,
    connector_learning_rate=2e-3,
    rank=4,
    alpha=8,
    dropout=0.1,
    batch_size=2,
    accumulation=2,
    max_steps=6,
    save_steps=3,
    precision="float32",
    seed=3,
)


def answer(text: str) -> dict:
    return {"role": "assistant", "content": text}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    with (tmp_path / "train.jsonl").open("w") as lines:
        for index in range(16):
            picture(index).save(tmp_path / f"{index}.png")
            content = [{"type": "image", "image": f"{index}.png"}, {"type": "text", "text": f"What is {index}?"}]
            messages = [{"role": "user", "content": content}, answer(f"a picture of {index}")]
            print(json.dumps({"id": index, "messages": messages}), file=lines)
    return tmp_path / "train.jsonl"


def samples(data: Path) -> ConversationDataset:
    return prepare(data.parent / "prepared", data)


def test_the_loss_counts_answers_and_their_ends_alone():
    processor = tiny_processor()
    image = picture(0)
    messages = [user(image, "red?"), answer("no"), user("<|im_end|>assistant\n blue?"), answer("yes, blue")]
    batch = ConversationCollator(processor)([{"sample_id": "s", "messages": messages, "images": [image]}])
    counted = [
        int(token) for token, label in zip(batch["input_ids"][0], batch["labels"][0], strict=True) if label != IGNORED
    ]
    assert processor.tokenizer.decode(counted) == "no<|im_end|>yes, blue<|im_end|>"
    assert torch.equal(batch["labels"][batch["labels"] != IGNORED], torch.tensor(counted))
    assert (batch["input_ids"] == processor.image_token_id).sum() == processor.image_processor.tokens_of(image)


def test_the_label_mask_of_a_released_sample_token_by_token(tmp_path: Path):
    processor = tiny_processor()
    sample = prepare(tmp_path / "run", write_textvqa(tmp_path))[0]
    batch = ConversationCollator(processor)([sample])
    ids, labels = batch["input_ids"][0].tolist(), batch["labels"][0].tolist()
    tokens = processor.tokenizer.convert_ids_to_tokens(ids)
    assert tokens.count("<|image_pad|>") == 5
    answer = len(tokens) - 1 - tokens[::-1].index("<|im_start|>")  # of the assistant's turn
    header = len(processor.tokenizer.encode("<|im_start|>assistant\n", add_special_tokens=False))
    learnt = [(token, label != IGNORED) for token, label in zip(tokens, labels, strict=True)]
    assert not any(flag for _, flag in learnt[: answer + header])
    end = [processor.tokenizer.decode([label]) for label in labels[answer + header :] if label != IGNORED]
    assert "".join(end) == "nokia<|im_end|>"
    assert learnt[-1] == (tokens[-1], False) and tokens[-2] == "<|im_end|>"  # the line break after it is not learnt
    assert all(label in (IGNORED, token) for token, label in zip(ids, labels, strict=True))


def test_the_label_mask_of_a_real_conversation_token_by_token():
    """LLaVA's GPT-4 questions on COCO (coco2014_val_gpt4_qa_30x3, 000000225738; CC BY 4.0). What is learnt: [token]."""
    processor, image = tiny_processor(), picture(0)
    asked = user(image, "How many giraffes are depicted in the image?")
    sample = {"messages": [asked, answer("There are four giraffes in the image.")], "images": [image]}
    batch = ConversationCollator(processor)([sample])
    shown = [
        f"[{processor.tokenizer.decode([token])}]" if label == token else processor.tokenizer.decode([token])
        for token, label in zip(batch["input_ids"][0].tolist(), batch["labels"][0].tolist(), strict=True)
    ]
    assert "".join(shown) == (
        "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\n<|vision_start|>" + "<|image_pad|>" * 5 + "<|vision_end|>"
        "How many giraffes are depicted in the image?<|im_end|>\n"
        "<|im_start|>assistant\n[There][ are][ four][ g][ir][a][f][f][es][ in][ the][ image][.][<|im_end|>]\n"
    )


@pytest.mark.parametrize("stage", STAGES)
def test_in_step_one_every_trained_group_has_a_gradient_and_no_frozen_weight_has(stage: str, tmp_path: Path):
    processor = tiny_processor()
    model = tiny_model(tiny_config(processor)).train()
    prepare_model(model, config_for(stage, build_parser(argparse.ArgumentParser()).parse_args(["base", "-o", "run"])))
    dataset = prepare(tmp_path / "run", write_textvqa(tmp_path))
    model(**ConversationCollator(processor)([dataset[0], dataset[1]])).loss.backward()
    groups = trainable_parts(model)
    assert bool(groups["language_model"]) == (stage != "align")
    for part, parameters in groups.items():
        assert not parameters or any(bool(parameter.grad.any()) for parameter in parameters), part
    assert all(parameter.grad is None for parameter in model.parameters() if not parameter.requires_grad)
    assert not any(parameter.requires_grad for parameter in model.vision_encoder.parameters())


def test_a_batch_of_text_alone_has_a_gradient_for_the_connector(tmp_path: Path):
    processor = tiny_processor()
    model = tiny_model(tiny_config(processor)).train()
    prepare_model(model, TrainingConfig(rank=0))
    sample = {"sample_id": "s", "messages": [user("red?"), answer("no")], "images": []}
    model(**ConversationCollator(processor)([sample])).loss.backward()
    assert all(bool((parameter.grad == 0).all()) for parameter in model.connector.parameters())


def test_padding_is_not_attended_or_learnt():
    processor = tiny_processor()
    samples = [
        {"sample_id": "a", "messages": [user("hi"), answer("a long answer, this one")], "images": []},
        {"sample_id": "b", "messages": [user("hi"), answer("no")], "images": []},
    ]
    batch = ConversationCollator(processor)(samples)
    padded = batch["attention_mask"][1] == 0
    assert padded.any()
    assert (batch["labels"][1][padded] == IGNORED).all()


def test_a_sample_that_is_too_long_is_named_with_both_lengths():
    sample = {"sample_id": "s7", "messages": [user("why? " * 30), answer("so")], "images": []}
    with pytest.raises(UserError, match=r"s7 has \d+ tokens, more than max_length 20"):
        ConversationCollator(tiny_processor(), max_length=20)([sample])


def test_an_answer_that_the_template_swallows_is_refused():
    processor = tiny_processor()
    processor.tokenizer.add_tokens(["\n\n"])  # as in Qwen2.5's vocabulary: it takes the header's line break along
    sample = {"sample_id": "s8", "messages": [user("why?"), answer("\nso")], "images": []}
    with pytest.raises(UserError, match="s8 has 1 answers, but 0 were found"):
        ConversationCollator(processor)([sample])


def test_connector_and_adapter_learn_and_the_rest_is_frozen():
    processor = tiny_processor()
    model = tiny_model(tiny_config(processor))
    prepare_model(model, CONFIG)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.01)
    image = picture(0)
    sample = {"sample_id": "s", "messages": [user(image, "red?"), answer("no")], "images": [image]}
    model(**ConversationCollator(processor)([sample])).loss.backward()
    for name, parameter in model.named_parameters():
        trained = name.startswith("connector.") or "lora_" in name
        assert (parameter.grad is not None and bool(parameter.grad.any())) == trained, name


def test_each_part_has_its_learning_rate(tiny_checkpoint: Path, data: Path, tmp_path: Path):
    trainer = train(tiny_checkpoint, samples(data), tmp_path / "run", CONFIG)
    rates = {group["name"]: group["initial_lr"] for group in trainer.optimizer.param_groups}
    assert rates == {"connector": 2e-3, "language_model": 1e-3}
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0]


def test_a_resumed_run_is_the_run_that_was_not_interrupted(tiny_checkpoint: Path, data: Path, tmp_path: Path):
    whole = train(tiny_checkpoint, samples(data), tmp_path / "whole", CONFIG)
    with pytest.raises(KeyboardInterrupt):
        train(tiny_checkpoint, Interrupted(samples(data), after=18), tmp_path / "cut", CONFIG)
    resumed = train(tiny_checkpoint, samples(data), tmp_path / "cut", CONFIG, resume=True)
    losses = [[entry["loss"] for entry in run.state.log_history if "loss" in entry] for run in (whole, resumed)]
    assert losses[0] == losses[1]
    for (name, expected), actual in zip(
        whole.model.state_dict().items(), resumed.model.state_dict().values(), strict=True
    ):
        assert torch.equal(expected, actual), name


class Interrupted(Dataset):
    """Pulls the plug after so many samples."""

    def __init__(self, dataset: ConversationDataset, after: int) -> None:
        self.dataset, self.left = dataset, after

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict:
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return self.dataset[index]


def test_the_export_is_the_original_pair_and_a_checkpoint(tiny_checkpoint: Path, data: Path, tmp_path: Path):
    trainer = train(tiny_checkpoint, samples(data), tmp_path / "run", CONFIG)
    connector = {name: tensor.clone() for name, tensor in trainer.model.connector.state_dict().items()}
    folder = export(trainer.model, load_processor(tiny_checkpoint), tmp_path / "run", merge_adapter=False)
    assert set(torch.load(tmp_path / "run/final_connector.pth")) == {"0.weight", "0.bias", "2.weight", "2.bias"}
    names = load_file(tmp_path / "run/final_lora_model/adapter_model.safetensors").keys()
    assert all(name.startswith("base_model.model.model.layers.") for name in names)
    reloaded = load_reference(folder, torch.float32)
    assert torch.equal(reloaded.connector.linear_1.weight, connector["linear_1.weight"])
    assert (folder / "adapters/final_lora_model/adapter_model.safetensors").is_file()


def test_the_checkpoint_of_a_run_answers_as_trained_by_its_own_name(tiny_checkpoint: Path, data: Path, tmp_path: Path):
    trainer = train(tiny_checkpoint, samples(data), tmp_path / "run", CONFIG)
    ids = torch.tensor([[1, 5, 9]])
    with torch.inference_mode():
        expected = trainer.model.eval()(input_ids=ids).logits
        reloaded = load_reference(export(trainer.model, load_processor(tiny_checkpoint), tmp_path / "run"))
        torch.testing.assert_close(reloaded(input_ids=ids).logits, expected, atol=1e-5, rtol=1e-5)
        assert not torch.equal(load_reference(tiny_checkpoint)(input_ids=ids).logits, expected)
    assert not (tmp_path / "run/model/adapters").exists()


def test_a_vision_side_in_float32_stays_so_through_a_run(tiny_checkpoint: Path, data: Path, tmp_path: Path):
    base = load_reference(tiny_checkpoint)
    base.config.vision_in_float32 = True
    base.to_float_type(torch.bfloat16)
    save_checkpoint(tmp_path / "base", base, load_processor(tiny_checkpoint))
    trainer = train(tmp_path / "base", samples(data), tmp_path / "run", CONFIG)
    connector = trainer.model.connector.linear_1.weight.detach().clone()
    folder = export(trainer.model, load_processor(tiny_checkpoint), tmp_path / "run")
    reloaded = load_reference(folder)
    assert reloaded.dtype == torch.bfloat16
    assert torch.equal(reloaded.connector.linear_1.weight, connector)
    assert torch.equal(reloaded.vision_encoder.final_norm.weight, base.vision_encoder.final_norm.weight)


def test_a_run_is_not_overwritten(tiny_checkpoint: Path, data: Path, tmp_path: Path):
    train(tiny_checkpoint, samples(data), tmp_path / "run", CONFIG)
    with pytest.raises(UserError, match="holds a run already"):
        train(tiny_checkpoint, samples(data), tmp_path / "run", CONFIG)
    with pytest.raises(UserError, match="nothing to resume"):
        train(tiny_checkpoint, samples(data), tmp_path / "other", CONFIG, resume=True)


def test_an_image_may_be_a_data_url_and_is_not_fetched_from_a_private_address(tmp_path: Path):
    code = base64.b64encode(png(3)).decode()
    with (tmp_path / "urls.jsonl").open("w") as lines:
        for url in (f"data:image/png;base64,{code}", "http://127.0.0.1/a.png"):
            messages = [{"role": "user", "content": [{"type": "image", "image": url}]}, answer("a picture")]
            print(json.dumps({"messages": messages}), file=lines)
    with pytest.raises(UserError, match=r"1 broken image \(http://127\.0\.0\.1/a\.png: .*loopback"):
        prepare(tmp_path / "strict", tmp_path / "urls.jsonl")
    dataset = prepare(tmp_path / "run", tmp_path / "urls.jsonl", max_dropped=0.5)
    assert len(dataset) == 1
    assert list(dataset[0]["images"][0].tobytes()) == list(picture(3).tobytes())


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 1: expected"),
        ('{"id": 1}', "line 1: no 'messages'; expected"),
        ('{"messages": [{"role": "human", "content": "x"}]}', "role 'human'"),
        ('{"messages": [{"role": "user", "content": "x"}]}', "no assistant turn"),
        ('{"messages": [{"role": "assistant", "content": ""}]}', "text that is not empty"),
        (
            '{"messages": [{"role": "user", "content": [{"type": "video"}]}, {"role": "assistant", "content": "x"}]}',
            "type 'video'",
        ),
    ],
)
def test_a_line_that_is_no_sample_is_named(tmp_path: Path, line: str, message: str):
    (tmp_path / "bad.jsonl").write_text(line + "\n")
    with pytest.raises(UserError, match=message):
        prepare(tmp_path / "run", tmp_path / "bad.jsonl")


@pytest.mark.parametrize(
    ("asked", "has_bfloat16", "expected"),
    [("auto", True, "bfloat16"), ("auto", False, "float16"), ("bfloat16", False, "bfloat16")],
)
def test_the_precision_follows_the_hardware_unless_it_is_asked_for(asked: str, has_bfloat16: bool, expected: str):
    assert training_precision(asked, has_bfloat16) == expected


@pytest.mark.cpu
@pytest.mark.parametrize(
    ("processor", "asked", "expected"),
    [
        ({"architecture": "x86_64", "avx512_f": True}, "auto", "float32"),
        ({"architecture": "x86_64", "avx512_f": True}, "bfloat16", "bfloat16"),
        ({"architecture": "x86_64", "avx512_bf16": True}, "auto", "bfloat16"),
        ({"architecture": "x86_64", "amx_bf16": True}, "auto", "bfloat16"),
        ({"architecture": "aarch64"}, "auto", "bfloat16"),
    ],
)
def test_a_processor_without_bfloat16_trains_in_float32_and_says_so(
    processor: dict, asked: str, expected: str, monkeypatch: pytest.MonkeyPatch
):
    """The choice of `serve`, by the same instructions."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: processor)
    arguments = training_arguments(TrainingConfig(precision=asked), "unused")
    assert (arguments.bf16, arguments.fp16) == (expected == "bfloat16", False)
    note = precision_note(asked, arguments)
    assert (note is None) == (expected == "bfloat16")
    assert multiplies("bfloat16", processor) or note is None or "avx512_bf16 or amx_bf16" in note


@pytest.mark.parametrize(
    ("field", "value"), [("batch_size", 0), ("learning_rate", -1.0), ("dropout", 1.0), ("precision", "int4")]
)
def test_a_config_is_checked_at_the_door(field: str, value: object):
    with pytest.raises(UserError, match=field):
        TrainingConfig(**{field: value})


def command(tiny_checkpoint: Path, data: Path, output: Path, *more: str) -> int:
    arguments = ["train", tiny_checkpoint, "--data", data, "-o", output, "--max-steps", 1, "--rank", 2, *more]
    return main([str(argument) for argument in arguments])


def test_the_command_trains_and_says_where_the_result_is(tiny_checkpoint: Path, data: Path, tmp_path: Path, capsys):
    assert command(tiny_checkpoint, data, tmp_path / "run") == 0
    printed = capsys.readouterr().out
    assert "training on 16 samples" in printed
    assert f"serve it: {typed_command()} serve {tmp_path / 'run' / 'model'}" in printed
    assert load_config(tmp_path / "run").rank == load_config(tmp_path / "run/checkpoint-1").rank == 2
    load_reference(tmp_path / "run" / "model")


def test_the_command_stops_at_a_broken_image_unless_told_how_many_may_be(
    tiny_checkpoint: Path, data: Path, tmp_path: Path, capsys
):
    (data.parent / "3.png").write_bytes((data.parent / "3.png").read_bytes()[:60])
    assert command(tiny_checkpoint, data, tmp_path / "run") == 2
    assert "1 of 16 samples cannot be used: 1 broken image" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert command(tiny_checkpoint, data, tmp_path / "run", "--max-dropped", "0.1") == 0
    printed = capsys.readouterr().out
    assert f"dropped 1: broken image: {data.parent / '3.png'}" in printed
    assert "training on 15 samples" in printed
