"""Merged adapters against PEFT's own unmerged model: what PEFT computes with them, the weights compute alone."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, PreTrainedModel

from qwen_vqa.plugin.lora.adapter_names import language_model_name
from qwen_vqa.plugin.lora.adapter_settings import AdapterError
from qwen_vqa.train.model.adapter_merging import merge_adapter
from qwen_vqa.train.model.reference_adapter import attach_adapter
from tests.tiny import tiny_config, tiny_processor

IDS = torch.tensor([[1, 5, 9, 40, 3]])
KINDS: dict[str, dict] = {
    "plain": {},
    "DoRA": {"use_dora": True},
    "trained biases": {"bias": "lora_only"},
    "rank-stabilised": {"use_rslora": True},
    "the output layer": {"target_modules": ["q_proj", "lm_head"]},
    "a whole output layer": {"modules_to_save": ["lm_head"]},
    "whole embeddings": {"modules_to_save": ["embed_tokens"]},
    "a whole norm": {"modules_to_save": ["norm"]},
}


def language_model(tied: bool = True, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(tiny_config(tiny_processor(), tied=tied).text_config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.12)
    return model.to(dtype).eval()


def trained(folder: Path, tied: bool = True, **settings) -> torch.Tensor:
    """Save an adapter as PEFT does, and return what PEFT computes with it: logits [1, T, vocabulary]."""
    torch.manual_seed(1)
    config = LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj", "down_proj"], **settings})
    model = get_peft_model(language_model(tied), config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter), alpha=0.02 if "modules_to_save" in name else 0.15)
    model.save_pretrained(str(folder))
    with torch.inference_mode():
        return PeftModel.from_pretrained(language_model(tied), str(folder)).eval()(IDS).logits


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_the_weights_compute_what_peft_computes(tmp_path: Path, kind: str, tied: bool):
    expected = trained(tmp_path, tied, **KINDS[kind])
    merged = merge_adapter(language_model(tied), tmp_path)
    assert not isinstance(merged.model, PeftModel)
    with torch.inference_mode():
        actual = merged.model(IDS).logits
        plain = language_model(tied)(IDS).logits
    torch.testing.assert_close(actual, expected, atol=2e-5, rtol=1e-5)
    assert (actual - plain).abs().max() > 0.01, "the adapter changes the answer"
    assert merged.lost < 1e-6


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_merged_is_what_is_saved(tmp_path: Path, kind: str):
    trained(tmp_path / "adapter", **KINDS[kind])
    merged = merge_adapter(language_model(), tmp_path / "adapter").model
    merged.save_pretrained(tmp_path / "merged")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    with torch.inference_mode():
        assert torch.equal(again(IDS).logits, merged(IDS).logits)
    parted = kind in ("the output layer", "a whole output layer", "whole embeddings")
    assert merged.config.tie_word_embeddings != parted


def test_in_16_bits_it_is_rounded_once_and_says_how_much_that_took(tmp_path: Path):
    trained(tmp_path)
    before, exact = language_model(), merge_adapter(language_model(), tmp_path).model
    merged = merge_adapter(language_model(dtype=torch.bfloat16), tmp_path)
    in_16_bits = merge_adapter(language_model(dtype=torch.bfloat16).float(), tmp_path).model.bfloat16()
    name = "model.layers.0.self_attn.q_proj"
    assert torch.equal(merged.model.get_submodule(name).weight, in_16_bits.get_submodule(name).weight)
    change = exact.get_submodule(name).weight - before.get_submodule(name).weight
    assert 0 < merged.lost < 0.1
    assert change.abs().max() > 0


@pytest.mark.parametrize(
    "prefix",
    [
        "base_model.model.llm.model.layers",
        "base_model.model.language_model.layers",
        "base_model.model.base_model.model.model.layers",
        "base_model.model.model.text_model.layers",
        "base_model.model.vision_language_model.model.layers",
        "base_model.model.module.llm.base_model.model.model.layers",
    ],
)
def test_an_adapter_of_the_whole_model_under_another_name_is_the_same(tmp_path: Path, prefix: str):
    expected = trained(tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    renamed = {name.replace("base_model.model.model.layers", prefix): value for name, value in load_file(path).items()}
    save_file(renamed, path)
    with torch.inference_mode():
        torch.testing.assert_close(merge_adapter(language_model(), tmp_path).model(IDS).logits, expected)
        torch.testing.assert_close(attach_adapter(language_model(), tmp_path)(IDS).logits, expected)


class Script(torch.nn.Module):
    """A script's own module, with the language model in it under a name of its choice."""

    def __init__(self) -> None:
        super().__init__()
        self.vit = torch.nn.Sequential(torch.nn.Linear(4, 4))
        self.llm = language_model()

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.llm(ids).logits


SETTINGS: dict[str, dict] = {
    "a list of layers": {"target_modules": ["q_proj", "down_proj"]},
    "a regular expression": {"target_modules": r"llm\.model\.layers\.\d+\.(self_attn\.q_proj|mlp\.down_proj)"},
    "ranks of their own": {
        "target_modules": ["q_proj", "down_proj"],
        "rank_pattern": {r"llm\.model\.layers\.0\.self_attn\.q_proj": 8, "down_proj": 2},
    },
    "alphas of their own": {
        "target_modules": ["q_proj", "down_proj"],
        "alpha_pattern": {"llm.model.layers.1.mlp.down_proj": 32},
    },
}


@pytest.mark.parametrize("settings", SETTINGS)
def test_an_adapter_that_a_script_trained_on_its_own_module_is_the_same(tmp_path: Path, settings: str):
    """By PEFT on that module, whose names for ranks, alphas and layers are not the language model's."""
    torch.manual_seed(1)
    model = get_peft_model(Script(), LoraConfig(**{"r": 4, "lora_alpha": 8, **SETTINGS[settings]})).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(0, 0.15)
    model.save_pretrained(str(tmp_path))
    with torch.inference_mode():
        expected = model(IDS)
        torch.testing.assert_close(attach_adapter(language_model(), tmp_path)(IDS).logits, expected)
        merged = merge_adapter(language_model(), tmp_path).model(IDS).logits
        torch.testing.assert_close(merged, expected, atol=2e-5, rtol=1e-5)


def test_names_of_other_parts_stay_as_they_are():
    for name in ("vision_model.encoder.layers.0.self_attn.q_proj", "vit.layers.3.mlp.fc1", "model.connector.0.weight"):
        assert language_model_name(f"base_model.model.{name}") == name


def test_other_layouts_of_layers_are_respected():
    assert language_model_name("base_model.model.llm.transformer.h.0.attn.c_attn", "transformer.h.") == (
        "transformer.h.0.attn.c_attn"
    )
    assert language_model_name("base_model.model.llm.lm_head.weight", "transformer.h.") == "lm_head.weight"


def refused(folder: Path, message: str) -> None:
    with pytest.raises(AdapterError, match=message):
        merge_adapter(language_model(), folder)


def change_settings(folder: Path, **changes) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_what_does_not_fit_is_refused(tmp_path: Path):
    trained(tmp_path / "good")
    weights = load_file(tmp_path / "good/adapter_model.safetensors")
    first = sorted(weights)[0]
    for name, changed, message in (
        ("nan", {**weights, first: torch.full_like(weights[first], float("nan"))}, "NaN|nan|not finite"),
        ("strange", {**weights, "base_model.model.vit.layers.0.mlp.fc1.lora_A.weight": torch.ones(4, 4)}, "no place"),
        ("missing", {n: value for n, value in weights.items() if n != first}, "lacks 1 tensors"),
        ("shape", {**weights, first: torch.ones(4, 7)}, "does not fit the language model"),
        ("zero", {n: value * 0 if "lora_B" in n else value for n, value in weights.items()}, "would change nothing"),
    ):
        folder = shutil.copytree(tmp_path / "good", tmp_path / name)
        save_file(changed, folder / "adapter_model.safetensors")
        refused(folder, message)


def test_without_its_weights_an_adapter_is_not_looked_for_on_the_hub(tmp_path: Path):
    trained(tmp_path)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"xx")
    refused(tmp_path, "cannot be read")
    (tmp_path / "adapter_model.safetensors").unlink()
    refused(tmp_path, "adapter_model.safetensors or adapter_model.bin is missing")


def test_what_cannot_be_merged_says_why(tmp_path: Path):
    trained(tmp_path)
    change_settings(tmp_path, init_lora_weights="pissa")
    refused(tmp_path, "path_initial_model_for_weight_conversion")
    change_settings(tmp_path, init_lora_weights=True, alora_invocation_tokens=[1, 2])
    refused(tmp_path, "aLoRA")
    change_settings(tmp_path, peft_type="IA3")
    refused(tmp_path, "only LoRA")
    refused(tmp_path / "nowhere", "no such folder")
