"""Workloads and arrivals follow from their seed."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from qwen_vqa.benchmarks.load_generator.arrivals import Arrivals, read_trace
from qwen_vqa.benchmarks.load_generator.sample_images import SampleImage
from qwen_vqa.benchmarks.load_generator.workload import (
    Shown,
    WorkloadQuestion,
    WorkloadSpec,
    conversations,
    known_pictures,
)
from qwen_vqa.plugin.errors import UserError

SPEC = WorkloadSpec((("base", 0.7), ("adapter", 0.3)), sizes=((64, 48), (32, 32)), output_tokens=(8, 24))


def test_the_same_seed_makes_the_same_requests_byte_for_byte() -> None:
    first, second = (
        json.dumps([[turn.message() for turn in talk.turns] for talk in conversations(SPEC, 7, 12)]) for _ in range(2)
    )
    assert first == second


def test_another_seed_shares_no_picture() -> None:
    first, second = ({talk.turns[0].pictures[0].url() for talk in conversations(SPEC, seed, 30)} for seed in (1, 2))
    assert len(first) == len(second) == 30
    assert not first & second


def test_models_lengths_and_sizes_are_mixed_as_asked() -> None:
    talks = conversations(SPEC, 0, 400)
    assert sum(talk.model == "adapter" for talk in talks) / 400 == pytest.approx(0.3, abs=0.06)
    assert {talk.turns[0].output_tokens for talk in talks} == set(range(8, 25))
    assert {(talk.turns[0].pictures[0].width) for talk in talks} == {64, 32}


def test_the_share_of_repeated_images_is_kept_and_marked() -> None:
    spec = WorkloadSpec((("m", 1.0),), repeated_images=0.4)
    turns = [talk.turns[0] for talk in conversations(spec, 0, 400)]
    assert sum(turn.repeated_image for turn in turns) / 400 == pytest.approx(0.4, abs=0.06)
    assert len({turn.pictures for turn in turns}) == sum(not turn.repeated_image for turn in turns)


def test_words_stand_before_the_question_and_no_two_prompts_begin_alike() -> None:
    spec = WorkloadSpec((("m", 1.0),), images_per_request=0, text_words=50)
    texts = [talk.turns[0].text for talk in conversations(spec, 0, 20)]
    bare = [talk.turns[0].text for talk in conversations(replace(spec, text_words=0), 0, 20)]
    assert {len(text.split()) for text in texts} <= {50 + len(text.split()) for text in bare}
    assert len({text[:6] for text in texts}) == 20


def test_turns_add_up_to_the_requests_and_later_ones_bring_no_picture() -> None:
    talks = conversations(WorkloadSpec((("m", 1.0),), multi_turn=0.5, turns=3), 0, 100)
    assert sum(len(talk.turns) for talk in talks) == 100
    assert any(len(talk.turns) == 3 for talk in talks)
    assert all(not turn.pictures for talk in talks for turn in talk.turns[1:])


def test_a_folder_is_shown_once_before_it_repeats() -> None:
    spec = WorkloadSpec((("m", 1.0),), files=("a.png", "b.png", "c.png"))
    turns = [talk.turns[0] for talk in conversations(spec, 0, 5)]
    assert len({turn.pictures[0].source for turn in turns[:3]}) == 3
    assert [turn.repeated_image for turn in turns] == [False, False, False, True, True]


def test_cells_go_on_where_the_one_before_left_the_folder_and_the_questions() -> None:
    files = tuple(f"{number}.png" for number in range(10))
    spec = WorkloadSpec(
        (("m", 1.0),), files=files, questions=tuple(WorkloadQuestion(f"{n}?") for n in range(10)), multi_turn=0.3
    )
    shown = Shown(spec, 4)
    turns = [talk.turns[0] for seed in (4, 5, 6) for talk in conversations(spec, seed, 5, shown=shown)]
    assert not any(turn.repeated_image for turn in turns[:10])
    assert len({turn.pictures for turn in turns[:10]}) == len({turn.text for turn in turns[:10]}) == len(turns[:10])
    assert all(turn.repeated_image for turn in turns[10:])


def test_known_pictures_are_repeats_and_later_turns() -> None:
    spec = WorkloadSpec((("m", 1.0),), questions=(WorkloadQuestion("a?", "a.png"), WorkloadQuestion("b?", "b.png")))
    assert known_pictures(conversations(spec, 0, 6), set(range(6))) == pytest.approx(4 / 6)
    talks = conversations(WorkloadSpec((("m", 1.0),), multi_turn=1.0, turns=3), 0, 6)
    assert known_pictures(talks, set(range(6))) == pytest.approx(4 / 6)
    assert known_pictures(talks, {0, 3}) == 0.0  # the later turns were not asked
    assert known_pictures(conversations(WorkloadSpec((("m", 1.0),), images_per_request=0), 0, 6), {0}) is None


def test_a_pictures_bytes_are_a_jpeg_of_its_size() -> None:
    assert SampleImage(3, 40, 30).url().startswith("data:image/jpeg;base64,")


def test_poisson_arrivals_have_the_rate_and_the_spread_of_poisson() -> None:
    gaps = np.diff(Arrivals("poisson", rate=5.0).schedule(4000, 0) or [])
    assert gaps.mean() == pytest.approx(0.2, rel=0.05)
    assert gaps.std() / gaps.mean() == pytest.approx(1.0, abs=0.06)


def test_gamma_arrivals_are_burstier_at_the_same_rate() -> None:
    gaps = np.diff(Arrivals("gamma", rate=5.0, burstiness=0.25).schedule(8000, 0) or [])
    assert gaps.mean() == pytest.approx(0.2, rel=0.06)
    assert gaps.std() / gaps.mean() == pytest.approx(2.0, abs=0.2)


@pytest.mark.parametrize(("start", "end"), [(1.0, 9.0), (9.0, 1.0), (4.0, 4.0)])
def test_a_ramp_starts_and_ends_at_its_rates(start: float, end: float) -> None:
    times = np.array(Arrivals("ramp", rate=start, rate_end=end).schedule(5000, 0))
    assert (np.diff(times) >= 0).all()
    whole = 2 * 5000 / (start + end)
    tenth = whole / 10
    assert (times < tenth).sum() / tenth == pytest.approx(start + (end - start) / 20, rel=0.15)
    last = ((times > whole - tenth) & (times <= whole)).sum() / tenth
    assert last == pytest.approx(end - (end - start) / 20, rel=0.25)


def test_a_trace_gives_times_and_lengths(tmp_path: Path) -> None:
    file = tmp_path / "trace.jsonl"
    file.write_text('10.5\n{"time": 11, "output_tokens": 5}\n\n{"time": 12.25}\n')
    times, lengths = read_trace(file)
    assert times == (0.0, 0.5, 1.75)
    assert [talk.turns[0].output_tokens for talk in conversations(SPEC, 0, 3, lengths)][1] == 5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty"),
        ("1\nx\n", "line 2"),
        ("2\n1\n", "sort the trace"),
        ('1\n{"time": 2, "output_tokens": 0}\n', "line 2: output_tokens 0"),
        ('{"time": 2, "output_tokens": -4}\n', "line 1: output_tokens -4"),
    ],
)
def test_a_broken_trace_is_refused_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "trace"
    file.write_text(text)
    with pytest.raises(UserError, match=message):
        read_trace(file)
