"""The demo's pictures and questions: repeatable, true, and apart from those of the evaluation."""

import random

import numpy as np
import pytest

from qwen_vqa.train.demo import encoder, language
from qwen_vqa.train.demo.packing import make_packed_scene
from qwen_vqa.train.drawn import sprites, words
from qwen_vqa.train.drawn.conversations import make_conversation
from qwen_vqa.train.drawn.descriptions import describe
from qwen_vqa.train.drawn.drawing import CLASSES, draw, patch_labels
from qwen_vqa.train.drawn.drawn_questions import DrawnTurn, ask, follow_up
from qwen_vqa.train.drawn.held_out import FIRST_SEED
from qwen_vqa.train.drawn.scenes import Scene, Thing, make_scene
from qwen_vqa.train.drawn.sentences import in_a_sentence

TWO_STARS_AND_A_CAT = Scene(
    200,
    150,
    (255, 255, 255),
    (255, 255, 255),
    things=(
        Thing("shape", "star", "red", 0.2, 0.2, 0.2, rgb=(220, 30, 35)),
        Thing("shape", "star", "red", 0.8, 0.2, 0.2, rgb=(220, 30, 35)),
        Thing("emoji", "cat", None, 0.5, 0.8, 0.3),
    ),
)


@pytest.mark.parametrize("seed", range(20))
def test_the_same_seed_draws_the_same_picture(seed):
    one, other = draw(make_scene(seed))[0], draw(make_scene(seed))[0]
    np.testing.assert_array_equal(one, other)


def test_the_same_seed_asks_the_same_questions():
    scenes = [make_scene(seed) for seed in range(2)]
    one, other = (make_conversation(random.Random(5), scenes) for _ in range(2))
    assert one == other


def test_training_and_evaluation_share_no_font_no_design_and_no_seed():
    assert not set(sprites.face_indices(True)) & set(sprites.face_indices(False))
    assert not set(sprites.TRAINING_DESIGNS) & set(sprites.EVALUATION_DESIGNS)
    families = {sprites.faces()[index]["family"] for index in sprites.face_indices(False)}
    assert not families & sprites.EVALUATION_FAMILIES
    assert encoder.FIRST_SEED < language.FIRST_SEED < FIRST_SEED
    for held_out in (True, False):
        for seed in range(200):
            for thing in make_scene(seed, held_out).things:
                allowed = sprites.face_indices(held_out) if thing.kind == "number" else sprites.design_indices(held_out)
                assert thing.kind == "shape" or thing.style in allowed


def test_every_name_has_its_drawing():
    assert sprites.emoji_sheet().shape[:2] == (len(sprites.DESIGNS), len(words.EMOJI))
    assert sprites.emoji_sheet()[..., 3].any(axis=(2, 3)).all()
    assert sprites.digit_sheet().any(axis=(2, 3)).all()
    assert {face["licence"] for face in sprites.faces()} <= {"OFL-1.1", "Apache-2.0"}


def test_answers_agree_with_the_scene():
    wanted = {
        "count": {"2", "1", "0", "3"},
        "position": {"bottom", "a cat", "a red star"},
        "colour": {"red"},
        "shape": {"star"},
        "exists": {"yes", "no"},
        "unanswerable": {words.UNANSWERABLE},
    }
    for seed in range(300):
        turn = ask(random.Random(seed), TWO_STARS_AND_A_CAT, list(wanted))
        assert turn.answer in wanted[turn.skill], turn
        if turn.skill == "count" and "star" in turn.question:
            assert turn.answer in ("2", "0") and (turn.answer == "2") == ("stars" in turn.question)
        if turn.skill == "exists" and turn.answer == "yes":
            assert any(name in turn.question for name in ("star", "cat"))


def test_a_description_names_everything():
    assert describe(TWO_STARS_AND_A_CAT) == "There are two red stars and a cat."


def test_a_follow_up_is_about_the_subject_of_the_turn_before():
    turns = {follow_up(random.Random(seed), TWO_STARS_AND_A_CAT, "cat").answer for seed in range(50)}
    assert turns == {"1", "bottom"}
    assert follow_up(random.Random(0), TWO_STARS_AND_A_CAT, "dog") is None


@pytest.mark.parametrize("seed", range(300))
def test_dark_and_blurred_pictures_answer_nothing(seed):
    scene = make_scene(seed)
    turn = ask(random.Random(seed), scene)
    if scene.visibility != "clear":
        assert turn.answer in (words.UNANSWERABLE, f"The picture is too {scene.visibility}.")


def test_a_number_is_drawn_inside_its_picture():
    for seed in range(100):
        scene = make_scene(seed, kind="number")
        _, marks = draw(scene)
        for mark in marks:
            assert mark.x - mark.width / 2 >= 0 and mark.x + mark.width / 2 <= scene.width


def test_patches_are_labelled_with_what_stands_there():
    _, marks = draw(TWO_STARS_AND_A_CAT)
    labels = patch_labels(marks, 96 / 200, 8, 12)
    assert set(np.unique(labels[0])) <= {-100, 0, CLASSES.index("star"), CLASSES.index("cat")}
    assert labels[4].sum() == 3  # three centres
    assert labels[0].reshape(8, 8)[int(0.8 * 150 * 96 / 200 / 12), 4] == CLASSES.index("cat")


def test_crowded_pictures_hold_many_things():
    counts = [len(draw(make_packed_scene(seed))[1]) for seed in range(50)]
    assert np.mean(counts) > 4


def test_the_adapters_answers_are_sentences_about_the_subject():
    turn = in_a_sentence(DrawnTurn("colour", "What color are the stars?", "red", "star"), TWO_STARS_AND_A_CAT)
    assert turn.answer == "There are two red stars."
    assert in_a_sentence(DrawnTurn("count", "How many dogs?", "0", "dog"), TWO_STARS_AND_A_CAT) is None
