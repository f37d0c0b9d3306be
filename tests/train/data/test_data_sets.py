"""Each data set in the formats of its release, as conversations."""

import io
import json
from pathlib import Path

import datasets
import pytest
from PIL import Image

from qwen_vqa.plugin.chat.prompts import SHORT_ANSWER_INSTRUCTION
from qwen_vqa.plugin.errors import UserError
from qwen_vqa.train.data.formats.answers import majority_answer
from qwen_vqa.train.data.reading import read_data_set
from qwen_vqa.train.data.row import Row
from qwen_vqa.train.data.source import DataSource
from tests.tiny import picture
from tests.train import releases


def read(text: str) -> list[Row]:
    return [Row.from_arrow(row) for row in read_data_set(DataSource.parse(text))]


def texts(row: Row) -> list:
    """The conversation with images as "<>"."""
    return [
        [part.get("text", "<>") for part in message["content"]]
        if isinstance(message["content"], list)
        else message["content"]
        for message in row.messages
    ]


def test_llava_conversations_keep_their_rounds_and_the_place_of_the_image(tmp_path: Path):
    rows = read(releases.write_llava(tmp_path))
    assert [texts(row) for row in rows] == [
        [["<>", "What is it?"], "A bus.", "Which colour?", "Red."],
        [["Describe the image.", "<>"], "Two cats on a sofa."],
        [["<>", "Who is there?"], "A child."],
        ["What is the capital of France?", "Paris."],
    ]
    assert [row.sample_id for row in rows] == [f"{number:012}" for number in range(4)]
    assert [message["role"] for message in rows[0].messages] == ["user", "assistant"] * 2
    assert not rows[3].images


@pytest.mark.parametrize(
    ("asked", "there"),
    [
        ("000000000002.jpg", "000000000002.jpg"),
        ("COCO_train2014_000000000002.jpg", "000000000002.jpg"),
        ("000000000009.jpg", "COCO_train2014_000000000009.jpg"),
        ("coco/train2017/000000000002.jpg", "000000000002.jpg"),
    ],
)
def test_a_coco_picture_is_found_by_any_of_its_names(tmp_path: Path, asked: str, there: str):
    releases.save_pictures(tmp_path / "train2017", "COCO_train2014_000000000009.jpg")
    source = releases.write_llava(tmp_path, [releases.conversation(0, asked, "What is it?", "A bus.")])
    assert read(source)[0].images[0].path == str(tmp_path / "train2017" / there)


@pytest.mark.parametrize("write", [releases.write_textvqa, releases.write_textvqa_parquet])
def test_textvqa_asks_for_a_short_answer_and_keeps_all_ten(tmp_path: Path, write):
    row = read(write(tmp_path))[1]
    assert texts(row) == [["<>", f"what is the brand of phone 1?\n{SHORT_ANSWER_INSTRUCTION}"], "nokia"]
    assert row.answers == tuple(releases.TEN)
    assert row.question_id == "1"


@pytest.mark.parametrize("write", [releases.write_vizwiz, releases.write_vizwiz_parquet])
def test_vizwiz_keeps_answer_types_and_says_unanswerable_where_people_could_not_tell(tmp_path: Path, write):
    rows = read(write(tmp_path))
    assert [texts(row)[1] for row in rows] == ["basil leaves", "unanswerable", "no"]
    assert texts(rows[0])[0] == ["<>", f"What is this?\n{SHORT_ANSWER_INSTRUCTION}"]
    assert [row.answer_type for row in rows] == ["other", "unanswerable", "yes/no"]
    assert rows[1].answers == ("unanswerable",) * 4 + ("blue",) * 6
    assert rows[2].question_id == "VizWiz_train_00000002.jpg"


def test_the_hub_form_brings_its_pictures_as_the_files_they_were(tmp_path: Path):
    row = read(releases.write_textvqa_parquet(tmp_path))[2]
    assert row.images[0].data == releases.jpeg(2)
    assert Image.open(io.BytesIO(row.images[0].source)).size == picture(2).size


def test_of_the_hub_form_no_more_is_read_than_asked_for(tmp_path: Path):
    source = releases.write_textvqa_parquet(tmp_path)
    assert len(read(f"{source},samples=2")) == 2


@pytest.mark.parametrize(
    ("answers", "majority"),
    [
        (["a", "b", "b"], "b"),
        (["b", "a", "a", "b"], "b"),
        (["Stop ", "stop", "go", "go", "STOP"], "Stop"),
        (["", " ", "", "yes"], "yes"),
        (["", ""], ""),
        ([], ""),
    ],
)
def test_the_majority_answers_for_all_and_the_first_in_a_tie(answers: list[str], majority: str):
    assert majority_answer(answers) == majority


def change(path: Path, edit) -> None:
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


def drop(key: str):
    return lambda entry: entry.pop(key)


@pytest.mark.parametrize(
    ("write", "file", "edit", "message"),
    [
        (releases.write_llava, "llava_instruct_150k.json", lambda all: drop("conversations")(all[2]),
         r"data set llava, .*150k\.json, entry 2: no 'conversations'; expected .*\"from\": \"human\" or \"gpt\""),
        (releases.write_llava, "llava_instruct_150k.json",
         lambda all: all[1]["conversations"][0].update({"from": "me"}),
         r"entry 1: a turn from 'me'; expected human or gpt"),
        (releases.write_llava, "llava_instruct_150k.json", lambda all: all.insert(0, "text"),
         r"entry 0: .*expected .*conversations"),
        (releases.write_textvqa, "TextVQA_0.5.1_train.json", lambda all: drop("answers")(all["data"][1]),
         r"data set textvqa, .*entry 1: no 'answers'; expected .*\(the test set has no answers\)"),
        (releases.write_textvqa, "TextVQA_0.5.1_train.json", lambda all: all["data"][0].update(image_id=3),
         r"entry 0: 'image_id' is 3; expected"),
        (releases.write_textvqa, "TextVQA_0.5.1_train.json", lambda all: all.pop("data"),
         r"data set textvqa, .*: expected \{\"data\": \[\.\.\.\]\}; the file begins with"),
        (releases.write_vizwiz, "Annotations/train.json", lambda all: all[2]["answers"].append({"text": "x"}),
         r"data set vizwiz, .*entry 2: no 'answer'; expected .*answer_confidence"),
        (releases.write_vizwiz, "Annotations/train.json", lambda all: drop("question")(all[0]),
         r"data set vizwiz, .*entry 0: no 'question'; expected"),
    ],
)  # fmt: skip
def test_an_entry_of_another_format_is_named_with_what_was_expected(tmp_path: Path, write, file, edit, message):
    source = write(tmp_path)
    change(tmp_path / file, edit)
    with pytest.raises(UserError, match=message):
        releases.prepare(tmp_path / "run", source)


@pytest.mark.parametrize("cut", [5, 200, -1])
def test_a_json_file_that_is_cut_off_is_named_with_the_entry(tmp_path: Path, cut: int):
    source = releases.write_vizwiz(tmp_path)
    file = tmp_path / "Annotations" / "train.json"
    file.write_text(file.read_text()[:cut])
    with pytest.raises(UserError, match=r"data set vizwiz, .*train\.json, entry \d: not JSON"):
        read(source)


def test_a_json_file_may_be_indented(tmp_path: Path):
    source = releases.write_textvqa(tmp_path)
    file = tmp_path / "TextVQA_0.5.1_train.json"
    file.write_text("\ufeff" + json.dumps(json.loads(file.read_text()), indent=2), encoding="utf-8")
    assert len(read(source)) == 3


def test_annotations_that_changed_are_read_anew(tmp_path: Path):
    source = releases.write_llava(tmp_path)
    assert len(read(source)) == 4
    releases.write_llava(tmp_path, [releases.conversation(0, None, "Hi", "Hello.")])
    assert len(read(source)) == 1


def test_a_parquet_file_without_images_is_refused(tmp_path: Path):
    datasets.Dataset.from_list([{"question": "x"}]).to_parquet(tmp_path / "questions.parquet")
    with pytest.raises(UserError, match=r"data set textvqa, .*: expected a column 'image'; it has question"):
        read(f"textvqa={tmp_path}/questions.parquet")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("coco=a.json", r"no such data set; known are llava, textvqa, vizwiz, local"),
        ("llava=no.json,images=x", r"there is no no\.json"),
        ("llava={}/llava_instruct_150k.json", r"where are its images\? .*images=coco/train2017"),
        ("llava={}/llava_instruct_150k.json,images=no", r"no image folder no"),
        ("llava={}/llava_instruct_150k.json,images={}/empty", r"holds no images"),
        ("llava={}/llava_instruct_150k.json,folder=x", r"'folder=x' is not one of images=\.\.\., split="),
        ("llava={}/llava_instruct_150k.json,weight=much", r"weight=much must be a number greater than 0"),
        ("llava={}/llava_instruct_150k.json,samples=0.5", r"samples=0\.5 must be a whole number"),
        ("llava={}/train2017", r"expected the released \.json file"),
    ],
)
def test_what_data_asks_for_is_checked_first(tmp_path: Path, text: str, message: str):
    releases.write_llava(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=message):
        read(text.replace("{}", str(tmp_path)))
