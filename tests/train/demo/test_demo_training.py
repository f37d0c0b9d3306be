"""The demo's own training pieces, and that its evaluation scores what the model would really say."""

import copy
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from qwen_vqa.train.data.collator import ConversationCollator
from qwen_vqa.train.demo import demo_evaluation, encoder, pretraining
from qwen_vqa.train.demo.language import FeatureConversations, Features
from qwen_vqa.train.demo.muon import MuonAndAdamW
from qwen_vqa.train.drawn import held_out
from qwen_vqa.train.drawn.conversations import messages_of
from qwen_vqa.train.drawn.drawing import draw
from qwen_vqa.train.drawn.scenes import make_scene
from qwen_vqa.train.model.reference_checkpoint import load_processor, load_reference

CHECKPOINT = Path(__file__).parents[3] / "serving" / "demo_checkpoint"


@pytest.fixture(scope="module")
def evaluator():
    return demo_evaluation.Evaluator(load_reference(CHECKPOINT, torch.float32), load_processor(CHECKPOINT))


def test_muon_and_adamw_lower_a_loss_and_resume():
    def build():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 1))
        return model, MuonAndAdamW(model.parameters(), [model[0]], lr=0.02, weight_decay=0.0)

    def step(model, optimizer):
        inputs = torch.arange(32.0).view(4, 8) / 32
        loss = (model(inputs).sum(1) - inputs.sum(1)).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    model, optimizer = build()
    losses = [step(model, optimizer) for _ in range(20)]
    assert losses[-1] < losses[0] / 2
    other, resumed = build()
    other.load_state_dict(model.state_dict())
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert step(other, resumed) == step(model, optimizer)
    assert step(other, resumed) == step(model, optimizer)


def test_the_schedule_rises_stays_and_falls():
    rates = [pretraining.schedule(step, 1000) for step in range(1000)]
    assert rates[0] < 0.02 and rates[200] == rates[500] == 1 and rates[-1] == pytest.approx(0.02)


def test_the_encoders_loss_falls_in_one_step():
    torch.manual_seed(0)
    model, heads = encoder.new_encoder(), encoder.EncoderHeads(encoder.VISION["hidden_size"])
    batch = encoder.make_batch(encoder.image_processor(), range(8), False)
    assert batch["canvas"].shape == (8, 96, 96, 3) and batch["patches"].shape == (8, 5, 64)
    optimizer = torch.optim.AdamW([*model.parameters(), *heads.parameters()], lr=1e-3)
    losses = []
    for _ in range(3):
        loss = encoder.loss_of(heads(model(encoder.normalise(batch["canvas"]))), batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_the_canvas_is_normalised_as_the_image_processor_does(evaluator):
    picture, _ = draw(make_scene(5))
    processor = evaluator.processor.image_processor
    expected = processor(picture, return_tensors="pt")["pixel_values"]
    ours = encoder.normalise(torch.from_numpy(processor.canvas(picture))[None])
    np.testing.assert_allclose(ours, expected, atol=1e-6)


def test_cached_features_stand_in_for_pictures(tmp_path, evaluator):
    features = Features(tmp_path / "features.bin", range(16))
    features.make(evaluator.model.vision_encoder)
    dataset = FeatureConversations(features, 40)
    samples = [dataset[index] for index in range(40)]
    pictures = sum(len(sample.get("image_features", ())) for sample in samples)
    batch = ConversationCollator(evaluator.processor)(samples)
    assert batch["image_features"].shape == (pictures, 65, encoder.VISION["hidden_size"])
    assert (batch["input_ids"] == evaluator.model.config.image_token_id).sum() == 65 * pictures


def test_an_answer_counts_when_greedy_decoding_gives_it(evaluator):
    asked = [case for skill in ("colour", "count", "unanswerable") for case in held_out.cases(skill, 6)]
    scored = evaluator.answers_right(asked)
    said = []
    for case in asked:
        messages = messages_of(random.Random(case.scenes[0].seed), list(case.turns), 1)[:-1]
        prompt = evaluator.processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        inputs = evaluator.processor(text=[prompt], images=[draw(case.scenes[0])[0]], return_tensors="pt")
        out = evaluator.model.generate(**inputs, max_new_tokens=20, do_sample=False)
        text = evaluator.processor.tokenizer.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        said.append(text == case.turns[-1].answer)
    assert scored == said
    assert any(scored)


def test_cases_are_the_same_every_time():
    assert list(held_out.cases("count", 5)) == list(held_out.cases("count", 5))
