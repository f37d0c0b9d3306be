"""The reference model: images in their places, generate(), save and load in the checkpoint format."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

from qwen_vqa.plugin.config import QwenVqaConfig
from qwen_vqa.plugin.errors import UserError
from qwen_vqa.train.model.reference_checkpoint import load_processor, load_reference
from tests.tiny import make_checkpoint, picture, tiny_config, tiny_model, tiny_processor, user


def prompt(processor, *parts):
    text = processor.apply_chat_template([user(*parts)], tokenize=False, add_generation_prompt=True)
    return processor(
        text=text, images=[part for part in parts if not isinstance(part, str)] or None, return_tensors="pt"
    )


@pytest.mark.parametrize("text_type", ["qwen2", "llama"])
@pytest.mark.parametrize("tied", [True, False])
def test_a_checkpoint_folder_comes_back_as_it_was(tmp_path: Path, text_type: str, tied: bool):
    make_checkpoint(tmp_path, text_type, tied)
    model = AutoModelForImageTextToText.from_pretrained(tmp_path)
    expected = tiny_model(tiny_config(tiny_processor(), text_type, tied))
    assert ("language_model.lm_head.weight" in load_file(tmp_path / "model.safetensors")) == (not tied)
    for (name, value), (other, loaded) in zip(expected.state_dict().items(), model.state_dict().items(), strict=True):
        assert name == other
        assert torch.equal(value, loaded), name


def test_images_take_the_places_of_their_tokens_in_order():
    processor = tiny_processor()
    model = tiny_model(tiny_config(processor))
    one, two = picture(1), picture(2)
    inputs = prompt(processor, one, "and", two)
    with torch.inference_mode():
        embeddings = model.embed(inputs["input_ids"], inputs["pixel_values"])[0]
        features = model.connector(model.get_image_features(inputs["pixel_values"]))
        text = model.get_input_embeddings()(inputs["input_ids"])[0]
    place = inputs["input_ids"][0] == processor.image_token_id
    torch.testing.assert_close(embeddings[place], features.flatten(0, 1))
    assert torch.equal(embeddings[~place], text[~place])


def test_the_answer_depends_on_the_image():
    processor = tiny_processor()
    model = tiny_model(tiny_config(processor))
    with torch.inference_mode():
        one, other = (model(**prompt(processor, picture(seed), "what?")).logits[0, -1] for seed in (1, 2))
    assert (one - other).abs().max() > 0.05


def test_cached_features_are_as_good_as_pixels():
    processor = tiny_processor()
    model = tiny_model(tiny_config(processor))
    inputs = prompt(processor, picture(1), "what?")
    with torch.inference_mode():
        features = model.get_image_features(inputs.pop("pixel_values"))
        expected = model(**prompt(processor, picture(1), "what?")).logits
        torch.testing.assert_close(model(**inputs, image_features=features).logits, expected)


@pytest.mark.parametrize("use_cache", [True, False])
def test_generate_is_greedy_decoding_of_forward(use_cache: bool):
    processor = tiny_processor()
    model = tiny_model(tiny_config(processor))
    inputs = prompt(processor, picture(1), "what?")
    answer = model.generate(**inputs, max_new_tokens=6, do_sample=False, use_cache=use_cache, eos_token_id=None)
    length = inputs["input_ids"].shape[1]
    with torch.inference_mode():
        logits = model(input_ids=answer, pixel_values=inputs["pixel_values"]).logits[0, length - 1 : -1]
    assert torch.equal(logits.argmax(-1), answer[0, length:])


def test_a_generated_image_token_is_a_token_like_any_other():
    processor = tiny_processor()
    model = tiny_model(tiny_config(processor))
    inputs = prompt(processor, picture(1), "what?")
    only = torch.full((len(processor.tokenizer),), -torch.inf)
    only[processor.image_token_id] = 0
    answer = model.generate(
        **inputs,
        max_new_tokens=3,
        do_sample=False,
        eos_token_id=None,
        logits_processor=[lambda ids, scores: scores + only],
    )
    assert answer[0, -3:].tolist() == [processor.image_token_id] * 3


def test_images_and_placeholders_must_match():
    processor = tiny_processor()
    model = tiny_model(tiny_config(processor))
    inputs = prompt(processor, picture(1), "what?")
    with pytest.raises(ValueError, match="5 image tokens in the prompt for 10 image features"):
        model(input_ids=inputs["input_ids"], pixel_values=inputs["pixel_values"].repeat(2, 1, 1, 1))
    with pytest.raises(ValueError, match="5 image tokens in the prompt, but no image"):
        model(input_ids=inputs["input_ids"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weights: weights.pop("connector.linear_1.bias"), r"missing: connector\.linear_1\.bias"),
        (lambda weights: weights.update(stray=torch.zeros(2)), "unexpected: stray"),
        (
            lambda weights: weights.update({"connector.linear_2.bias": torch.zeros(3)}),
            r"another shape.*connector\.linear_2\.bias",
        ),
    ],
)
def test_weights_that_do_not_fit_raise_with_their_names(tiny_checkpoint: Path, tmp_path: Path, change, message: str):
    folder = shutil.copytree(tiny_checkpoint, tmp_path / "changed")
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=message):
        load_reference(folder)


@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer.json", "chat_template.jinja", "model.safetensors", "processor_config.json"]
)
def test_a_missing_file_is_named(tiny_checkpoint: Path, tmp_path: Path, name: str):
    folder = shutil.copytree(tiny_checkpoint, tmp_path / "changed")
    (folder / name).unlink()
    for load in (load_reference, load_processor):
        with pytest.raises(UserError, match=name):
            load(folder)


def test_a_missing_shard_is_named(tiny_checkpoint: Path, tmp_path: Path):
    folder = shutil.copytree(tiny_checkpoint, tmp_path / "changed")
    shards = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps(shards))
    with pytest.raises(UserError, match=r"lacks model-00002-of-00002\.safetensors"):
        load_reference(folder)


def test_another_kind_of_model_is_refused(tiny_checkpoint: Path, tmp_path: Path):
    folder = shutil.copytree(tiny_checkpoint, tmp_path / "changed")
    (folder / "config.json").write_text('{"model_type": "llava"}')
    with pytest.raises(UserError, match="model_type 'llava', not 'qwen_vqa'"):
        load_reference(folder)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"vision_config": {"model_type": "hiera"}}, "model_type is 'hiera'"),
        ({"vision_config": {"model_type": "vit", "image_size": 100, "patch_size": 32}}, "not a multiple"),
        ({"vision_config": {"model_type": "vit", "hidden_act": "relu"}}, "hidden_act is 'relu'"),
        ({"connector": {"activation": "silu"}}, "activation is 'silu'"),
        ({"connector": {"depth": 3}}, "unknown fields \\['depth'\\]"),
        ({"text_config": {"model_type": "qwen9"}}, "no model_type 'qwen9'"),
    ],
)
def test_a_config_is_checked_at_the_door(fields: dict, message: str):
    with pytest.raises(ValueError, match=message):
        QwenVqaConfig(**fields)


def test_the_default_config_is_the_original_shape():
    config = QwenVqaConfig()
    assert config.most_image_tokens == 145
    assert config.vision_config.hidden_size == 768
    assert config.image_token_id == 151655
