"""Whole LLaVA checkpoints, taken apart and served: the logits are those of Transformers' own class."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaImageProcessorPil,
    PreTrainedTokenizerFast,
    SiglipVisionConfig,
    VipLlavaConfig,
)

from qwen_vqa.plugin.errors import UserError
from qwen_vqa.train.assembly.assemble import assemble
from qwen_vqa.train.assembly.assemble_flags import AssembledParts
from qwen_vqa.train.model.reference_checkpoint import load_processor, load_reference
from tests.plugin.engine import Engine, Request
from tests.tiny import picture
from tests.train.assembly.llava_models import (
    CLIP_PIXELS,
    IMAGE_ID,
    SHORTEST,
    SIGLIP_PIXELS,
    SQUARE,
    TOKENIZER,
    llava,
    of_the_repository,
    saved,
)

NAMED = {"vision_encoder": "x", "language_model": "x"}
WHOLE: dict[str, dict[str, Any]] = {
    "CLIP, Qwen2": {},
    "CLIP, two layers joined": {"vision_feature_layer": [-2, 1]},
    "CLIP, class token kept": {"vision_feature_select_strategy": "full"},
    "CLIP, Llama that speaks ChatML, no bias": {"text": LlamaConfig, "multimodal_projector_bias": False},
    "CLIP, tied": {"tied": True},
    "SigLIP": {"vision": SiglipVisionConfig, "vision_feature_select_strategy": "full", "vision_feature_layer": -1},
}


def question(images: int, tokens: int) -> torch.Tensor:
    """Random ids around `images` images."""
    chance = torch.Generator().manual_seed(1)
    words = torch.randint(0, 500, (1, 9), generator=chance)
    image = torch.full((1, tokens), IMAGE_ID)
    return torch.cat([words[:, :4], *[image] * images, words[:, 4:]], dim=1)


@pytest.mark.parametrize("name", WHOLE)
def test_the_logits_are_those_of_transformers(tmp_path: Path, name: str):
    theirs = llava(**WHOLE[name])
    assemble(AssembledParts(tmp_path / "model", from_llava=str(saved(theirs, tmp_path / "llava"))))
    ours, processor = load_reference(tmp_path / "model"), load_processor(tmp_path / "model")
    images = [picture(0, 90, 60), picture(1, 60, 111)]
    siglip = theirs.config.vision_config.model_type.startswith("siglip")
    pixels = (SIGLIP_PIXELS if siglip else CLIP_PIXELS)(images, return_tensors="pt")["pixel_values"]
    assert torch.allclose(processor.image_processor(images, return_tensors="pt")["pixel_values"], pixels, atol=2e-6)
    ids = question(2, ours.config.tokens_per_view)
    with torch.inference_mode():
        expected = theirs(input_ids=ids, pixel_values=pixels).logits
        torch.testing.assert_close(ours(input_ids=ids, pixel_values=pixels).logits, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["CLIP, Qwen2", "SigLIP"])
def test_the_served_answer_is_that_of_transformers(tmp_path: Path, name: str):
    theirs = llava(**WHOLE[name])
    assemble(AssembledParts(tmp_path / "model", from_llava=str(saved(theirs, tmp_path / "llava"))))
    processor = load_processor(tmp_path / "model")
    image = picture(0, 90, 60)
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what is it?"}]}]
    prompt = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    inputs = processor(text=prompt, images=[image], return_tensors="pt")
    with Engine(tmp_path / "model") as engine:
        answer = engine.generate([Request(prompt, [image])], max_tokens=6)[0]
    assert answer.prompt_ids == inputs["input_ids"][0].tolist()
    ids = torch.cat([inputs["input_ids"], torch.tensor([answer.token_ids[:-1]])], dim=1)
    with torch.inference_mode():
        logits = theirs(input_ids=ids, pixel_values=inputs["pixel_values"]).logits[0]
    for step, logprobs in zip(logits[-len(answer.token_ids) :].log_softmax(-1), answer.logprobs, strict=True):
        for token, logprob in logprobs.items():
            assert logprob == pytest.approx(step[token].item(), abs=1e-3)


@pytest.mark.parametrize("suffix", [".bin", ".safetensors"])
@pytest.mark.parametrize("tower", [False, True])
def test_the_repositorys_layout(tmp_path: Path, suffix: str, tower: bool):
    theirs = llava()
    assemble(
        AssembledParts(tmp_path / "model", from_llava=str(of_the_repository(theirs, tmp_path / "r", suffix, tower)))
    )
    ours, processor = load_reference(tmp_path / "model"), load_processor(tmp_path / "model")
    images = [picture(0, 90, 60), picture(1, 60, 111)]
    padded = LlavaImageProcessorPil(do_pad=True, size=SHORTEST, crop_size=SQUARE)
    pixels = padded(images, return_tensors="pt")["pixel_values"]
    found = processor.image_processor(images, return_tensors="pt")["pixel_values"]
    np.testing.assert_allclose(found, pixels, atol=2e-6)
    ids = question(2, ours.config.tokens_per_view)
    with torch.inference_mode():
        expected = theirs(input_ids=ids, pixel_values=pixels).logits
        torch.testing.assert_close(ours(input_ids=ids, pixel_values=pixels).logits, expected, atol=1e-4, rtol=0)
    prompt = processor.apply_chat_template([{"role": "user", "content": [{"type": "image"}]}], tokenize=False)
    assert "<|im_start|>user\n<|image_pad|>\n" in prompt and "You are a helpful assistant." in prompt


def test_the_repositorys_lora_beside_its_base_model(tmp_path: Path):
    theirs = llava()
    whole = of_the_repository(theirs, tmp_path / "whole")
    base, lora = tmp_path / "base", tmp_path / "lora"
    language_model = AutoModelForCausalLM.from_config(theirs.config.text_config)
    language_model.model.load_state_dict(theirs.model.language_model.state_dict())
    language_model.lm_head.load_state_dict(theirs.lm_head.state_dict())
    language_model.save_pretrained(base)
    TOKENIZER.save_pretrained(base)
    peft = get_peft_model(language_model, LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False))
    peft.save_pretrained(lora)
    state = torch.load(whole / "pytorch_model.bin")
    trained = {f"base_model.model.{name}": value for name, value in state.items() if "mm_projector" in name}
    torch.save(trained, lora / "non_lora_trainables.bin")
    shutil.copy(whole / "config.json", lora)
    config = json.loads((lora / "config.json").read_text()) | {"_name_or_path": str(base)}
    (lora / "config.json").write_text(json.dumps(config))
    lines = assemble(AssembledParts(tmp_path / "model", from_llava=str(lora)))
    assert any("rank 4" in line and "merged" in line for line in lines)
    ours = load_reference(tmp_path / "model")
    ids = question(0, 0)
    with torch.inference_mode():
        expected = peft(input_ids=ids).logits
        torch.testing.assert_close(ours(input_ids=ids).logits, expected, atol=1e-4, rtol=0)
    assert torch.equal(ours.connector.linear_1.weight, theirs.model.multi_modal_projector.linear_1.weight)


def test_a_tokenizer_without_image_tokens_is_given_them(tmp_path: Path):
    """As Qwen1.5's and Qwen2's, which LLaVA's repository trains with a placeholder that is no token at all."""
    theirs = llava()
    folder = of_the_repository(theirs, tmp_path / "r")
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    visual = [
        token["id"] for token in tokenizer["added_tokens"] if "vision" in token["content"] or "pad" in token["content"]
    ]
    tokenizer["added_tokens"] = [token for token in tokenizer["added_tokens"] if token["id"] not in visual]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    assert "<|image_pad|>" not in PreTrainedTokenizerFast.from_pretrained(folder).get_vocab()
    assemble(AssembledParts(tmp_path / "model", from_llava=str(folder)))
    ours, processor = load_reference(tmp_path / "model"), load_processor(tmp_path / "model")
    assert ours.config.image_token_id == processor.image_token_id
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "hi"}]}]
    inputs = processor(
        text=processor.apply_chat_template(messages, tokenize=False), images=[picture(0)], return_tensors="pt"
    )
    ids = inputs["input_ids"]
    theirs_ids = torch.where(ids == ours.config.image_token_id, IMAGE_ID, ids)
    with torch.inference_mode():
        expected = theirs(input_ids=theirs_ids, pixel_values=inputs["pixel_values"]).logits
        found = ours(input_ids=ids, pixel_values=inputs["pixel_values"]).logits[..., : expected.shape[-1]]
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"image_aspect_ratio": "anyres_max_9"}, "image_aspect_ratio 'anyres_max_9'.*'pad'"),
        ({"image_aspect_ratio": "anyres"}, "mm_patch_merge_type"),
        ({"mm_use_im_start_end": True}, "mm_use_im_start_end True"),
        ({"mm_vision_select_feature": "cls"}, "mm_vision_select_feature 'cls'"),
        ({"model_type": "llava_unheard"}, "llava_unheard"),
    ],
)
def test_what_the_repository_has_and_there_is_not_here_is_said(tmp_path: Path, config: dict[str, Any], said: str):
    folder = of_the_repository(llava(), tmp_path / "r", **config)
    with pytest.raises(UserError, match=said):
        assemble(AssembledParts(tmp_path / "model", from_llava=str(folder)))
    assert not (tmp_path / "model").exists()


def test_siglip_has_no_class_token_to_drop(tmp_path: Path):
    theirs = llava(vision=SiglipVisionConfig, vision_feature_select_strategy="default")
    with pytest.raises(UserError, match="no class token"):
        assemble(AssembledParts(tmp_path / "model", from_llava=str(saved(theirs, tmp_path / "llava"))))


def test_another_model_and_another_prompt_are_refused(tmp_path: Path):
    VipLlavaConfig(text_config=LlamaConfig(), vision_config=CLIPVisionConfig()).save_pretrained(tmp_path / "vip")
    with pytest.raises(UserError, match=r"vipllava.*--vision-encoder"):
        assemble(AssembledParts(tmp_path / "model", from_llava=str(tmp_path / "vip")))
    vicuna = saved(llava(), tmp_path / "vicuna")
    tokenizer = json.loads((vicuna / "tokenizer.json").read_text())
    tokenizer["added_tokens"] = []
    (vicuna / "tokenizer.json").write_text(json.dumps(tokenizer))
    (vicuna / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    with pytest.raises(UserError, match=r"<\|im_start\|>.*Vicuna"):
        assemble(AssembledParts(tmp_path / "model", from_llava=str(vicuna)))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({}, "--vision-encoder and --language-model missing.*--from-llava"),
        ({"vision_encoder": "x"}, "--language-model missing"),
        ({**NAMED, "max_tiles": 4}, "--max-tiles is of --views tiles"),
        ({**NAMED, "scales": [1, 2], "views": "tiles"}, "--scales is of --views s2"),
        ({**NAMED, "pixel_shuffle": 0}, "--pixel-shuffle 0"),
        ({"from_llava": "x", "views": "tiles"}, "leave out --views"),
        ({"from_llava": "x", "connector": Path("c.pth")}, "leave out --connector"),
        ({"from_llava": "x", "like": "original"}, "leave out --like"),
        ({"from_llava": "x", "feature_layer": [-1]}, "leave out --feature-layer"),
        ({"from_llava": "no/such/folder/anywhere"}, "no/such/folder/anywhere"),
    ],
)
def test_flags_that_do_not_go_together(tmp_path: Path, fields: dict[str, Any], said: str):
    with pytest.raises(UserError, match=said):
        assemble(AssembledParts(tmp_path / "model", **fields))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def changed(path: Path, part: str | None = None, **fields: Any) -> None:
    content = json.loads(path.read_text())
    (content if part is None else content[part]).update(fields)
    path.write_text(json.dumps(content))


BROKEN: dict[str, Any] = {
    "half of the weights": lambda folder: cut(folder / "model.safetensors"),
    "no weights": lambda folder: (folder / "model.safetensors").unlink(),
    "another width": lambda folder: changed(folder / "config.json", "vision_config", hidden_size=32),
    "heads that do not divide": lambda folder: changed(folder / "config.json", "vision_config", num_attention_heads=7),
    "a layer that is a word": lambda folder: changed(folder / "config.json", vision_feature_layer="x"),
    "half a preprocessor file": lambda folder: cut(folder / "processor_config.json"),
    "half a tokenizer": lambda folder: cut(folder / "tokenizer.json"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files_are_said_in_one_line_and_leave_no_folder(tmp_path: Path, name: str):
    folder = saved(llava(), tmp_path / "llava")
    if name == "half a preprocessor file" and not (folder / "processor_config.json").is_file():
        cut(folder / "preprocessor_config.json")
    else:
        BROKEN[name](folder)
    with pytest.raises(UserError) as caught:
        assemble(AssembledParts(tmp_path / "model", from_llava=str(folder)))
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["llava"]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"mm_vision_tower": "clip", "image_aspect_ratio": "anyres", "mm_patch_merge_type": "spatial_unpad",
          "image_grid_pinpoints": "(1x1),...,(6x6)"}, "image_grid_pinpoints"),
        ({"model_type": None}, "q_proj.bias"),
    ],
)  # fmt: skip
def test_the_repositorys_config_is_looked_at(tmp_path: Path, fields: dict[str, Any], said: str):
    fields.pop("mm_vision_tower", None)
    folder = of_the_repository(llava(), tmp_path / "r", **fields)
    with pytest.raises(UserError) as caught:
        assemble(AssembledParts(tmp_path / "model", from_llava=str(folder)))
    assert said in str(caught.value) or "cannot be read" in str(caught.value)


def test_pixels_are_not_guessed_for_a_whole_checkpoint(tmp_path: Path):
    folder = of_the_repository(llava(), tmp_path / "r")
    (tmp_path / "clip" / "preprocessor_config.json").unlink()
    with pytest.raises(UserError, match=r"preprocessor_config\.json"):
        assemble(AssembledParts(tmp_path / "model", from_llava=str(folder)))


def test_parts_are_not_taken_from_elsewhere_where_the_checkpoint_has_them(tmp_path: Path):
    folder = saved(llava(), tmp_path / "llava")
    with pytest.raises(UserError, match="--vision-encoder"):
        assemble(AssembledParts(tmp_path / "model", from_llava=str(folder), vision_encoder="x"))


@pytest.mark.parametrize("name", ["a/b", "..", "", "x" * 101])
def test_an_adapters_name_is_one_that_can_be_served(tmp_path: Path, name: str):
    with pytest.raises(UserError, match="--adapter-name"):
        AssembledParts(tmp_path / "model", **NAMED, adapter=tmp_path, merge_adapter=False, adapter_name=name)
