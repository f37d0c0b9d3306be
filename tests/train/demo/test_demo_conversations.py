"""Conversations in which each turn brings a picture: the demo learns to look at the newest."""

import random
from types import SimpleNamespace

import numpy as np
import torch

from qwen_vqa.train.demo.encoder import VISION
from qwen_vqa.train.demo.language import MOST_PICTURES, SEVERAL_EVERY, FeatureConversations
from qwen_vqa.train.drawn.conversations import make_conversation
from qwen_vqa.train.drawn.drawn_questions import ask
from qwen_vqa.train.drawn.held_out import cases
from qwen_vqa.train.drawn.scenes import make_scene


def images(message: dict) -> int:
    content = message["content"]
    return 0 if isinstance(content, str) else sum(part["type"] == "image" for part in content)


def test_each_picture_comes_with_a_question_about_it():
    scenes = [make_scene(seed) for seed in range(10)]
    conversation = make_conversation(random.Random(0), scenes)
    assert conversation.scenes == tuple(range(10))
    asked = [message for message in conversation.messages if message["role"] == "user"]
    assert images(asked[0]) == 1 and sum(map(images, asked)) == 10
    newest = -1
    for message, turn in zip(asked, conversation.turns, strict=True):
        newest += images(message)
        draws = (ask(random.Random(draw), scenes[newest]) for draw in range(2_000))
        assert turn.answer in {one.answer for one in draws if one}, (turn, newest)


def test_an_eighth_of_the_batches_are_of_several_pictures_all_of_one_number():
    features = SimpleNamespace(seeds=range(1_000), open=lambda: torch.zeros(1_000, 1, VISION["hidden_size"]))
    dataset = FeatureConversations(features, 32 * SEVERAL_EVERY * 3, several=32)
    found = set()
    for batch in range(SEVERAL_EVERY * 3):
        samples = [dataset[index] for index in range(batch * 32, batch * 32 + 4)]
        shown = {len(sample.get("image_features", ())) for sample in samples}
        if batch % SEVERAL_EVERY == 0:
            assert len(shown) == 1 and min(shown) >= 3 and max(shown) <= MOST_PICTURES
            found |= shown
        else:
            assert max(shown) <= 2
    assert len(found) > 1


def test_the_evaluations_long_conversation_has_a_new_picture_each_turn():
    for case in cases("conversation", 5):
        assert case.a_turn == (1,) * 8 and len(case.scenes) == len(case.turns) == 8
        for scene, turn in zip(case.scenes, case.turns, strict=True):
            assert turn.answer == next(thing.name for thing in scene.things if thing.kind == "number")
    assert len({case.scenes[-1].seed for case in cases("conversation", 20)}) == 20
    assert np.mean([len({turn.answer for turn in case.turns}) for case in cases("conversation", 5)]) > 6
