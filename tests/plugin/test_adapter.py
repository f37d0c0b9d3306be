"""What `check_adapter` accepts, and what it says about each folder it refuses."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

from qwen_vqa.plugin.config import QwenVqaConfig
from qwen_vqa.plugin.lora.adapter import check_adapter
from qwen_vqa.plugin.lora.adapter_names import language_model_name
from qwen_vqa.plugin.lora.adapter_settings import AdapterError
from tests.tiny import make_adapter, make_checkpoint, tiny_config, tiny_processor

Tensors = dict[str, torch.Tensor]
Edit = Callable[[Path], object]
Q_PROJ = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.fixture(scope="module")
def config(tiny_checkpoint: Path) -> QwenVqaConfig:
    return AutoConfig.from_pretrained(tiny_checkpoint)


@pytest.fixture
def adapter(tiny_adapter: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(tiny_adapter, tmp_path / "spoilt"))


def settings(**changes: object) -> Edit:
    def edit(folder: Path) -> None:
        path = folder / "adapter_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return edit


def tensors(change: Callable[[Tensors], Tensors]) -> Edit:
    def edit(folder: Path) -> None:
        path = folder / "adapter_model.safetensors"
        save_file({name: tensor.clone() for name, tensor in change(load_file(path)).items()}, path)

    return edit


def without(name: str) -> Edit:
    return lambda folder: (folder / name).unlink()


def test_a_fitting_adapter_is_summarised(tiny_adapter: Path, config: QwenVqaConfig) -> None:
    summary = check_adapter(tiny_adapter, config)
    assert (summary.name, summary.rank, summary.alpha) == ("tiny-lora", 4, 8)
    assert summary.target_modules == (
        "down_proj",
        "gate_proj",
        "k_proj",
        "o_proj",
        "q_proj",
        "up_proj",
        "v_proj",
    )
    assert summary.num_tensors == 2 * 7 * 2


@pytest.mark.parametrize(
    "prefix",
    [
        "base_model.model.model.layers",
        "base_model.model.language_model.model.layers",
        "base_model.model.model.language_model.layers",
        "language_model.model.layers",
    ],
)
def test_every_naming_is_understood(prefix: str, adapter: Path, config: QwenVqaConfig) -> None:
    tensors(lambda old: {n.replace("base_model.model.model.layers", prefix): t for n, t in old.items()})(adapter)
    assert check_adapter(adapter, config).num_tensors == 28
    assert language_model_name(f"{prefix}.0.mlp.up_proj") == "model.layers.0.mlp.up_proj"


def test_a_bin_file_is_read(adapter: Path, config: QwenVqaConfig) -> None:
    weights = adapter / "adapter_model.safetensors"
    torch.save(load_file(weights), adapter / "adapter_model.bin")
    weights.unlink()
    assert check_adapter(adapter, config).num_tensors == 28


def test_rank_pattern_is_respected(adapter: Path, config: QwenVqaConfig) -> None:
    def widen(old: Tensors) -> Tensors:
        old[f"{Q_PROJ}.lora_A.weight"] = old[f"{Q_PROJ}.lora_A.weight"].repeat(2, 1)
        old[f"{Q_PROJ}.lora_B.weight"] = old[f"{Q_PROJ}.lora_B.weight"].repeat(1, 2)
        return old

    tensors(widen)(adapter)
    settings(rank_pattern={"layers.0.self_attn.q_proj": 8})(adapter)
    assert check_adapter(adapter, config).rank == 8


REFUSED: dict[str, tuple[Edit, str]] = {
    "no config": (without("adapter_config.json"), "adapter_config.json is missing"),
    "no weights": (
        without("adapter_model.safetensors"),
        "adapter_model.safetensors or adapter_model.bin is missing",
    ),
    "broken config": (lambda f: (f / "adapter_config.json").write_text("{"), "not readable JSON"),
    "broken weights": (lambda f: (f / "adapter_model.safetensors").write_bytes(b"x" * 99), "cannot be read"),
    "another kind": (settings(peft_type="IA3"), "'IA3'; only LoRA can be served"),
    "DoRA": (settings(use_dora=True), "DoRA"),
    "full modules": (settings(modules_to_save=["lm_head"]), r"modules_to_save \['lm_head'\]"),
    "biases": (settings(bias="all"), "trained biases"),
    "PiSSA": (settings(init_lora_weights="pissa_niter_4"), "an init that changes the base model"),
    "no rank": (settings(r=None), "r None; it must be a positive whole number"),
    "half a rank": (settings(r=4.5), "r 4.5; it must be a positive whole number"),
    "no alpha": (settings(lora_alpha="8"), "lora_alpha '8'; it must be a positive number"),
    "no pattern": (settings(rank_pattern=[4]), r"rank_pattern \[4\]; it must be an object"),
    "a broken pattern": (settings(rank_pattern={"(": 4}), r"'\(', which is no regular expression"),
    "no rank of a module": (settings(rank_pattern={"q_proj": 0}), "rank_pattern q_proj 0; it must be a positive"),
    "the output layer": (
        tensors(
            lambda old: {
                **old,
                "base_model.model.lm_head.lora_A.weight": torch.ones(4, 128),
                "base_model.model.lm_head.lora_B.weight": torch.ones(200, 4),
                "base_model.model.lm_head.base_layer.weight": torch.ones(200, 128),  # PEFT saves it beside
            }
        ),
        "changes lm_head, which vLLM serves without adapters",
    ),
    "foreign names": (
        tensors(lambda old: {n.replace("model.layers", "transformer.h"): t for n, t in old.items()}),
        r"14 of 14 layers .* Found: base_model.model.transformer.h.0.* "
        r"Expected names such as: base_model.model.model.layers.0",
    ),
    "too many layers": (
        tensors(lambda old: {**old, **{n.replace("layers.1", "layers.2"): t for n, t in old.items()}}),
        "7 of 21 layers",
    ),
    "strange tensors": (
        tensors(lambda old: {**old, f"{Q_PROJ}.lora_magnitude_vector": torch.ones(4)}),
        "1 tensors that are no lora_A or lora_B",
    ),
    "half a pair": (
        tensors(lambda old: {n: t for n, t in old.items() if n != f"{Q_PROJ}.lora_B.weight"}),
        f"no lora_B for {Q_PROJ}",
    ),
    "nothing": (tensors(lambda old: {}), "holds no tensors"),
    "another width": (
        tensors(lambda old: {**old, f"{Q_PROJ}.lora_A.weight": torch.ones(4, 64)}),
        r"lora_A \[4, 64\] and lora_B \[128, 4\], where the language model takes \[4, 128\] and \[128, 4\]. "
        "It was probably trained on another base model",
    ),
    "another rank": (settings(r=16), "says rank 16 for .*: adapter_config.json belongs to other weights"),
    "no numbers": (
        tensors(lambda old: {n: t * float("nan") if n == f"{Q_PROJ}.lora_A.weight" else t for n, t in old.items()}),
        rf"no numbers \(NaN or infinite\) in {Q_PROJ}\.lora_A\.weight",
    ),
    "infinite numbers": (
        tensors(lambda old: {n: t / 0 if n == f"{Q_PROJ}.lora_B.weight" else t for n, t in old.items()}),
        rf"in {Q_PROJ}\.lora_B\.weight",
    ),
    "an infinite alpha": (settings(lora_alpha=float("inf")), "lora_alpha inf; it must be a positive number"),
    "a huge config": (
        lambda f: (f / "adapter_config.json").write_text(" " * 2**20 + "{}"),
        "has 1,048,578 bytes",
    ),
    "untrained": (
        tensors(lambda old: {n: t * 0 if "lora_B" in n else t for n, t in old.items()}),
        "would change nothing",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str, adapter: Path, config: QwenVqaConfig) -> None:
    edit, message = REFUSED[case]
    edit(adapter)
    with pytest.raises(AdapterError, match=message):
        check_adapter(adapter, config)


def test_an_adapter_of_another_model_is_refused(tiny_adapter: Path) -> None:
    config = tiny_config(tiny_processor())
    config.text_config.num_hidden_layers = 1
    with pytest.raises(AdapterError, match=r"7 of 14 layers .* do not exist"):
        check_adapter(tiny_adapter, config)


def test_a_folder_that_does_not_exist_is_refused(tmp_path: Path, config: QwenVqaConfig) -> None:
    with pytest.raises(AdapterError, match=r"no adapter at .*: there is no such folder"):
        check_adapter(tmp_path / "none", config)


def test_a_file_in_place_of_the_folder_is_refused(tmp_path: Path, config: QwenVqaConfig) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(AdapterError, match="it is no folder"):
        check_adapter(tmp_path / "file", config)


def test_a_name_that_no_file_can_have_is_refused(tmp_path: Path, config: QwenVqaConfig) -> None:
    with pytest.raises(AdapterError, match="it cannot be looked at"):
        check_adapter(tmp_path / ("x" * 300), config)


def test_llama_adapters_are_checked_alike(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "llama", "llama", tied=False)
    adapter = make_adapter(checkpoint, tmp_path / "lora")
    assert check_adapter(adapter, AutoConfig.from_pretrained(checkpoint)).rank == 4
