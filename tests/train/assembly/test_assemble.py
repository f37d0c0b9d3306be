"""The original project's artefacts, and others' connectors, to a checkpoint folder."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    GenerationConfig,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessorPil,
    ViTModel,
)

from qwen_vqa.plugin.chat.chat_template import QWEN_SYSTEM_PROMPT
from qwen_vqa.plugin.errors import UserError
from qwen_vqa.serving.cli import main
from qwen_vqa.train.assembly.assemble import AssembledParts, assemble
from qwen_vqa.train.assembly.connector_file import load_connector
from qwen_vqa.train.model.reference_checkpoint import load_processor, load_reference
from tests.tiny import DEMO, picture, tiny_config, tiny_processor, user

ORIGINAL = {
    "linear_1.weight": "0.weight",
    "linear_1.bias": "0.bias",
    "linear_2.weight": "2.weight",
    "linear_2.bias": "2.bias",
}


@pytest.fixture(scope="module")
def artefacts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the original leaves, small: vit/, language_model/, final_connector.pth, final_lora_model/."""
    folder = tmp_path_factory.mktemp("artefacts")
    torch.manual_seed(0)
    config = tiny_config(tiny_processor())
    ViTModel(ViTConfig(**config.vision_config.to_dict())).save_pretrained(folder / "vit")
    language_model = AutoModelForCausalLM.from_config(config.text_config)
    language_model.to(torch.bfloat16).save_pretrained(folder / "language_model")
    AutoTokenizer.from_pretrained(DEMO).save_pretrained(folder / "language_model")
    connector = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.GELU(), torch.nn.Linear(128, 128))
    torch.save(connector.state_dict(), folder / "final_connector.pth")
    lora = LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    get_peft_model(language_model.float(), lora).save_pretrained(folder / "final_lora_model")
    return folder


def parts(artefacts: Path, output: Path, **changes) -> AssembledParts:
    fields = {
        "vision_encoder": str(artefacts / "vit"),
        "language_model": str(artefacts / "language_model"),
        "connector": artefacts / "final_connector.pth",
        "output": output,
    }
    return AssembledParts(**{**fields, **changes})


def test_the_command_writes_a_checkpoint_and_says_what(artefacts: Path, tmp_path: Path, capsys):
    arguments = ["assemble", "--vision-encoder", artefacts / "vit", "--language-model", artefacts / "language_model"]
    arguments += ["--connector", artefacts / "final_connector.pth", "--adapter", artefacts / "final_lora_model"]
    arguments += ["--no-merge-adapter"]
    assert main([str(argument) for argument in [*arguments, "-o", tmp_path / "model"]]) == 0
    printed = capsys.readouterr().out
    assert "5 tokens an image" in printed
    assert "64 to 128 to 128" in printed
    assert "final_lora_model (rank 8, alpha 16), kept apart" in printed
    assert (tmp_path / "model/adapters/final_lora_model/adapter_config.json").is_file()
    assert json.loads((tmp_path / "model/config.json").read_text())["dtype"] == "bfloat16"


def test_each_part_keeps_its_own_float_type(artefacts: Path, tmp_path: Path):
    printed = "\n".join(assemble(parts(artefacts, tmp_path / "model")))
    assert "language model bfloat16, vision encoder and connector float32" in printed
    saved, vit = torch.load(artefacts / "final_connector.pth"), load_file(artefacts / "vit/model.safetensors")
    model = load_reference(tmp_path / "model")
    assert model.dtype == torch.bfloat16
    for ours, theirs in ORIGINAL.items():
        assert torch.equal(model.connector.get_parameter(ours), saved[theirs])
    norm = next(name for name in vit if name.endswith("layernorm.weight"))
    assert torch.equal(model.vision_encoder.final_norm.weight, vit[norm])
    assert model.vision_encoder.patch_embedding.weight.dtype == torch.float32


def test_one_float_type_for_all_is_a_flag(artefacts: Path, tmp_path: Path):
    assemble(parts(artefacts, tmp_path / "model", dtype="bfloat16"))
    saved = torch.load(artefacts / "final_connector.pth")
    weights = load_file(tmp_path / "model/model.safetensors")
    for ours, theirs in ORIGINAL.items():
        assert torch.equal(weights[f"connector.{ours}"], saved[theirs].bfloat16())


def test_the_checkpoint_computes_what_its_parts_compute(artefacts: Path, tmp_path: Path):
    assemble(parts(artefacts, tmp_path / "model", dtype="float32"))
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "model").eval()
    processor = load_processor(tmp_path / "model")
    image = picture(0)
    prompt = processor.apply_chat_template([user(image, "what?")], tokenize=False, add_generation_prompt=True)
    inputs = processor(text=prompt, images=[image], return_tensors="pt")
    vit = ViTModel.from_pretrained(artefacts / "vit").eval()
    language_model = AutoModelForCausalLM.from_pretrained(artefacts / "language_model", dtype=torch.float32).eval()
    state = torch.load(artefacts / "final_connector.pth")
    connector = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.GELU(), torch.nn.Linear(128, 128))
    connector.load_state_dict(state)
    with torch.inference_mode():
        embeddings = language_model.get_input_embeddings()(inputs["input_ids"])
        place = inputs["input_ids"][0] == processor.image_token_id
        embeddings[0, place] = connector(vit(inputs["pixel_values"]).last_hidden_state)[0]
        expected = language_model(inputs_embeds=embeddings).logits
        actual = model(**inputs).logits
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)


def test_a_merged_adapter_answers_as_the_adapter(artefacts: Path, tmp_path: Path):
    from qwen_vqa.train.model.reference_adapter import attach_adapter

    adapter = artefacts / "final_lora_model"
    assemble(parts(artefacts, tmp_path / "apart", dtype="float32", adapter=adapter, merge_adapter=False))
    merged_parts = parts(artefacts, tmp_path / "merged", dtype="float32", adapter=adapter)
    assert "merged into the language model" in "\n".join(assemble(merged_parts))
    assert not (tmp_path / "merged/adapters").exists()
    apart, merged = load_reference(tmp_path / "apart"), load_reference(tmp_path / "merged")
    ids = torch.tensor([[1, 5, 9]])
    with torch.inference_mode():
        base = apart(input_ids=ids).logits
        apart.language_model = attach_adapter(apart.language_model, artefacts / "final_lora_model")
        torch.testing.assert_close(merged(input_ids=ids).logits, apart(input_ids=ids).logits, atol=1e-3, rtol=1e-3)
        assert (merged(input_ids=ids).logits - base).abs().max() > 0.01


def test_prefix_is_the_chat_templates_business(artefacts: Path, tmp_path: Path):
    assemble(parts(artefacts, tmp_path / "model", image_position="prefix"))
    processor = load_processor(tmp_path / "model")
    prompt = processor.apply_chat_template([user("what?", picture(0))], tokenize=False)
    assert prompt.startswith("<|image_pad|><|im_start|>system")


def test_without_a_connector_there_is_a_fresh_one_to_train(artefacts: Path, tmp_path: Path):
    written = [assemble(parts(artefacts, tmp_path / name, connector=None)) for name in ("one", "two")]
    assert "fresh (seed 0)" in "\n".join(written[0])
    assert "qwen-vqa train " in written[0][-1]
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert torch.equal(one["connector.linear_1.weight"], two["connector.linear_1.weight"])
    assert one["connector.linear_1.weight"].any()


def test_generation_ends_at_the_turns_end(artefacts: Path, tmp_path: Path):
    assemble(parts(artefacts, tmp_path / "model"))
    ends = json.loads((tmp_path / "model/generation_config.json").read_text())["eos_token_id"]
    turn_end = load_processor(tmp_path / "model").tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert turn_end in (ends if isinstance(ends, list) else [ends])


@pytest.mark.parametrize("prefix", ["model.mm_projector.", "module.", "connector.", "multi_modal_projector."])
@pytest.mark.parametrize("style", ["sequential", "linear"])
@pytest.mark.parametrize("suffix", [".bin", ".safetensors"])
def test_connectors_from_elsewhere_are_welcome(artefacts: Path, tmp_path: Path, prefix: str, style: str, suffix: str):
    saved = torch.load(artefacts / "final_connector.pth")
    state = {prefix + (theirs if style == "sequential" else ours): saved[theirs] for ours, theirs in ORIGINAL.items()}
    path = tmp_path / f"connector{suffix}"
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    loaded = load_connector(path)
    assert all(torch.equal(loaded[ours], saved[theirs]) for ours, theirs in ORIGINAL.items())


def trainers_checkpoint(artefacts: Path) -> dict[str, torch.Tensor]:
    """All weights of the original's own module, as its Trainer saves them."""
    saved = torch.load(artefacts / "final_connector.pth")
    vit = ViTModel.from_pretrained(artefacts / "vit").state_dict()
    llm = AutoModelForCausalLM.from_pretrained(artefacts / "language_model").state_dict()
    state = {f"vit.{name}": value.clone() for name, value in vit.items()}
    state |= {f"llm.base_model.model.{name}": value.clone() for name, value in llm.items()}
    return state | {f"connector.{name}": value for name, value in saved.items()}


AROUND = {
    "the bare state dict": lambda state: state,
    "model": lambda state: {"model": state, "epoch": 3},
    "model_state_dict": lambda state: {"epoch": 1, "model_state_dict": state, "optimizer_state_dict": {"state": {}}},
    "counters beside it": lambda state: {**state, "step": 17, "num_batches": torch.tensor(4), "name": "mine"},
    "under its own name": lambda state: {"connector": state, "llm": {}},
}


@pytest.mark.parametrize("around", AROUND)
def test_connectors_in_what_scripts_save_are_found(artefacts: Path, tmp_path: Path, around: str):
    saved = torch.load(artefacts / "final_connector.pth")
    torch.save(AROUND[around](saved), tmp_path / "connector.pth")
    loaded = load_connector(tmp_path / "connector.pth")
    assert all(torch.equal(loaded[ours], saved[theirs]) for ours, theirs in ORIGINAL.items())


@pytest.mark.parametrize("kind", ["file", "folder", "shards", "bin"])
def test_a_connector_among_a_whole_models_weights_is_found(artefacts: Path, tmp_path: Path, kind: str):
    state, saved = trainers_checkpoint(artefacts), torch.load(artefacts / "final_connector.pth")
    path = tmp_path
    if kind == "bin":
        torch.save(state, path := tmp_path / "pytorch_model.bin")
    elif kind == "shards":
        connector = {name: value for name, value in state.items() if name.startswith("connector.")}
        rest = {name: value for name, value in state.items() if name not in connector}
        save_file(rest, tmp_path / "model-00001-of-00002.safetensors")
        save_file(connector, tmp_path / "model-00002-of-00002.safetensors")
        places = {name: f"model-0000{1 if name in rest else 2}-of-00002.safetensors" for name in state}
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    else:
        save_file(state, tmp_path / "model.safetensors")
        path = tmp_path / "model.safetensors" if kind == "file" else tmp_path
    loaded = load_connector(path)
    assert all(torch.equal(loaded[ours], saved[theirs]) for ours, theirs in ORIGINAL.items())


@pytest.mark.parametrize("content", ["{", "[]", '{"weight_map": {"llm.lm_head.weight": "a.safetensors"}}'])
def test_an_index_without_a_connector_is_refused(tmp_path: Path, content: str):
    (tmp_path / "model.safetensors.index.json").write_text(content)
    with pytest.raises(UserError, match=r"index\.json"):
        load_connector(tmp_path)


def test_a_file_without_a_connector_is_refused_with_a_few_names(artefacts: Path, tmp_path: Path):
    state = {name: value for name, value in trainers_checkpoint(artefacts).items() if "connector" not in name}
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"and \d+ more; expected 1 to 3 Linear") as caught:
        load_connector(tmp_path / "model.safetensors")
    assert len(str(caught.value)) < 800


def test_the_encoders_own_statistics_are_taken(artefacts: Path, tmp_path: Path):
    vit = shutil.copytree(artefacts / "vit", tmp_path / "vit")
    theirs = ViTImageProcessorPil(
        size={"height": 64, "width": 64}, image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225]
    )
    theirs.save_pretrained(vit)
    printed = "\n".join(assemble(parts(artefacts, tmp_path / "model", vision_encoder=str(vit))))
    assert "0.485 0.456 0.406" in printed
    image = picture(3, 64, 64)
    ours = load_processor(tmp_path / "model").image_processor(image, return_tensors="np")["pixel_values"]
    np.testing.assert_allclose(ours, theirs(image, return_tensors="np")["pixel_values"], atol=1e-6)


def test_an_encoder_without_a_preprocessor_file_is_said_to_have_none(artefacts: Path, tmp_path: Path):
    assert "no preprocessor file; mean and std 0.5" in "\n".join(assemble(parts(artefacts, tmp_path / "model")))


def test_other_pixel_arithmetic_is_refused(artefacts: Path, tmp_path: Path):
    vit = shutil.copytree(artefacts / "vit", tmp_path / "vit")
    ViTImageProcessorPil(rescale_factor=1 / 127.5).save_pretrained(vit)
    refused(parts(artefacts, tmp_path / "model", vision_encoder=str(vit)), "rescale_factor 0.0078")


def test_a_classifiers_head_is_dropped_without_a_table(artefacts: Path, tmp_path: Path, capfd):
    config = ViTConfig.from_pretrained(artefacts / "vit")
    ViTForImageClassification(config).save_pretrained(tmp_path / "vit")
    capfd.readouterr()
    lines = assemble(parts(artefacts, tmp_path / "model", vision_encoder=str(tmp_path / "vit")))
    said = "".join(capfd.readouterr())
    assert "UNEXPECTED" not in said and "classifier.weight" not in said
    assert not any("classifier." in line for line in lines)


def decoding(folder: Path) -> dict:
    kept = ("do_sample", "temperature", "top_p", "top_k", "repetition_penalty", "max_new_tokens")
    found = json.loads((folder / "generation_config.json").read_text())
    return {name: found[name] for name in kept if found.get(name) is not None}


@pytest.mark.parametrize(
    ("like", "position", "system", "fit", "expected"),
    [
        (None, "inline", QWEN_SYSTEM_PROMPT, "pad", {"do_sample": True, "temperature": 0.7, "top_p": 0.8, "top_k": 20}),
        ("original", "prefix", "You are a helpful visual assistant.", "squash", {"do_sample": False}),
        (
            "original-app",
            "prefix",
            "You are a helpful visual assistant. You can see the image provided by the user.",
            "pad",
            {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "top_k": 20, "max_new_tokens": 200},
        ),
    ],
)
def test_like_sets_prompt_pixels_and_decoding(artefacts: Path, tmp_path: Path, like, position, system, fit, expected):
    qwen = shutil.copytree(artefacts / "language_model", tmp_path / "qwen")
    # As Qwen2.5-3B-Instruct has it.
    GenerationConfig(do_sample=True, temperature=0.7, top_p=0.8, top_k=20, repetition_penalty=1.05).save_pretrained(
        qwen
    )
    lines = assemble(parts(artefacts, tmp_path / "model", language_model=str(qwen), like=like))
    assert decoding(tmp_path / "model") == expected
    printed = "\n".join(lines)
    assert position in printed and repr(system) in printed and f"{fit}: " in printed
    processor = load_processor(tmp_path / "model")
    assert processor.image_processor.fit == fit
    prompt = processor.apply_chat_template([user(picture(0), "what?")], tokenize=False)
    assert f"<|im_start|>system\n{system}<|im_end|>" in prompt
    assert prompt.startswith("<|image_pad|>") == (position == "prefix")


def test_a_single_flag_stands_against_like(artefacts: Path, tmp_path: Path):
    assemble(parts(artefacts, tmp_path / "model", like="original", fit="pad", system_prompt=""))
    processor = load_processor(tmp_path / "model")
    assert processor.image_processor.fit == "pad"
    assert "system" not in processor.apply_chat_template([user("what?")], tokenize=False)


def test_a_language_model_that_transformers_decodes_greedily_is_served_so(artefacts: Path, tmp_path: Path):
    printed = "\n".join(assemble(parts(artefacts, tmp_path / "model")))
    assert decoding(tmp_path / "model") == {"do_sample": False}
    assert re.search(r"decoding +greedy\n", printed)


def refused(parts_of_it: AssembledParts, message: str) -> None:
    with pytest.raises(UserError, match=message):
        assemble(parts_of_it)
    assert not parts_of_it.output.exists()
    assert not list(parts_of_it.output.parent.glob("*.partial"))


def test_a_connector_that_does_not_fit_is_refused_with_both_shapes(artefacts: Path, tmp_path: Path):
    connector = torch.nn.Sequential(torch.nn.Linear(768, 2048), torch.nn.GELU(), torch.nn.Linear(2048, 2048))
    torch.save(connector.state_dict(), tmp_path / "big.pth")
    refused(
        parts(artefacts, tmp_path / "model", connector=tmp_path / "big.pth"),
        r"linear_1.weight is \[2048, 768\], expected \[2048, 64\].*joins 768 to 2048",
    )


def test_a_deeper_connector_is_refused_with_its_names(artefacts: Path, tmp_path: Path):
    state = torch.load(artefacts / "final_connector.pth") | {"4.weight": torch.zeros(1), "6.weight": torch.zeros(1)}
    torch.save(state, tmp_path / "deep.pth")
    refused(parts(artefacts, tmp_path / "model", connector=tmp_path / "deep.pth"), r"6\.weight.*1 to 3 Linear")


def test_a_pickled_module_is_not_opened(artefacts: Path, tmp_path: Path):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pth")
    refused(parts(artefacts, tmp_path / "model", connector=tmp_path / "module.pth"), "a pickle can run code")
    with pytest.raises(UserError) as caught:
        load_connector(tmp_path / "module.pth")
    message = str(caught.value)
    assert "torch.nn.modules.linear.Linear" in message
    assert "\x1b" not in message and "weights_only" not in message, "no colours, and no advice to open it anyway"


def test_a_file_cut_off_is_refused(artefacts: Path, tmp_path: Path):
    whole = (artefacts / "final_connector.pth").read_bytes()
    (tmp_path / "cut.pth").write_bytes(whole[:500])
    refused(parts(artefacts, tmp_path / "model", connector=tmp_path / "cut.pth"), r"cut\.pth cannot be read")


def test_an_adapter_for_another_model_is_refused(artefacts: Path, tmp_path: Path):
    config = tiny_config(tiny_processor()).text_config
    config.hidden_size, config.num_attention_heads = 256, 8
    other = get_peft_model(
        AutoModelForCausalLM.from_config(config),
        LoraConfig(r=8, target_modules=["q_proj"], init_lora_weights=False),
    )
    other.save_pretrained(tmp_path / "other")
    refused(parts(artefacts, tmp_path / "model", adapter=tmp_path / "other"), "q_proj")


def test_missing_parts_are_named(artefacts: Path, tmp_path: Path):
    refused(parts(artefacts, tmp_path / "model", connector=tmp_path / "no.pth"), "no connector at .*no.pth")
    refused(parts(artefacts, tmp_path / "model", language_model=str(tmp_path / "no")), "no language model at")
    refused(parts(artefacts, tmp_path / "model", vision_encoder=str(tmp_path / "no")), "no vision encoder at")


def test_an_output_that_is_not_empty_is_kept(artefacts: Path, tmp_path: Path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model/precious").touch()
    with pytest.raises(UserError, match="not empty"):
        parts(artefacts, tmp_path / "model")
    assert (tmp_path / "model/precious").exists()


def test_bad_input_is_one_line_and_status_2(artefacts: Path, tmp_path: Path, capsys):
    arguments = ["assemble", "--vision-encoder", "x", "--language-model", "x", "--connector", "no.pth", "-o", "out"]
    assert main(arguments) == 2
    assert capsys.readouterr().err == "qwen-vqa: no connector at no.pth: there is no such file.\n"
