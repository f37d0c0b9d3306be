"""What people's own files have that no release has: each is taken, or named in one clear line."""

import json
import re
from pathlib import Path

import pytest

from qwen_vqa.plugin.errors import UserError
from qwen_vqa.train.data.formats.entries import ANOTHER_FORMAT
from qwen_vqa.train.data.mix_table import data_table
from qwen_vqa.train.data.reading import read_data_set
from qwen_vqa.train.data.row import Row
from qwen_vqa.train.data.source import DataSource
from qwen_vqa.train.evaluation.questions import read_questions
from tests.tiny import picture
from tests.train import releases

LINE = json.dumps({"id": "a", "messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]})


def read(text: str) -> list[Row]:
    return [Row.from_arrow(row) for row in read_data_set(DataSource.parse(text))]


def one_line(error: pytest.ExceptionInfo[UserError]) -> str:
    said = str(error.value)
    assert "\n" not in said
    assert not any(word in said for word in ("Counter", "KeyError", "Error(", "<class"))
    return said


def llava(folder: Path, *entries: object) -> str:
    """Entries among enough others that one of them is less than --max-dropped."""
    plain = [releases.conversation(number, None, "Hi", "Hello.") for number in range(100, 140)]
    return releases.write_llava(folder, [*entries, *plain])


def turns(*pairs: tuple[str, object]) -> list[dict]:
    return [{"from": role, "value": value} for role, value in pairs]


@pytest.mark.parametrize(
    ("entry", "named"),
    [
        ({"id": "odd", "conversations": turns(("me", "x"), ("gpt", "y"))}, "a turn from 'me'"),
        ({"id": "odd", "conversations": turns(("human", None), ("gpt", "y"))}, "'value' is None"),
        ({"id": "odd", "conversations": None}, "'conversations' is None"),
        ({"id": "odd", "image": [3], "conversations": turns(("human", "x"), ("gpt", "y"))}, "'image' is [3]"),
        ({"id": "odd", "conversations": turns(("human", "x"), ("gpt", "\ud83d"))}, "\\ud83d"),
        ("text", "'conversations' is None"),
        (None, "'conversations' is None"),
    ],
)
def test_one_odd_llava_entry_is_dropped_and_named(tmp_path: Path, entry: object, named: str):
    dataset = releases.prepare(tmp_path / "run", llava(tmp_path, entry))
    assert len(dataset) == 40
    [tally] = dataset.mix.tallies
    assert tally.dropped == {ANOTHER_FORMAT: 1}
    assert "entry 0" in data_table([tally])
    assert named in data_table([tally])


def test_llavas_kin_are_read(tmp_path: Path):
    names = ["000000000000.jpg", "000000000001.jpg"]
    rows = read(
        llava(
            tmp_path,
            {"conversations": turns(("system", "Be brief."), ("human", "What?"), ("gpt", "A bus."))},
            {"conversations": turns(("user", "What?"), ("assistant", "A bus."))},
            {"image": names, "conversations": turns(("human", "<image>\n<image>\nWhich?"), ("gpt", "The first."))},
            {"conversations": turns(("gpt", "Hello!"), ("human", "What?"), ("gpt", "A bus."))},
        )
    )[:4]
    assert [row.fault for row in rows] == [""] * 4
    asked = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "A bus."}]
    assert rows[0].messages == [{"role": "system", "content": "Be brief."}, *asked]
    assert rows[1].messages == rows[3].messages == asked
    assert [Path(image.path).name for image in rows[2].images] == names


def test_a_file_of_another_format_altogether_is_said_with_what_was_expected(tmp_path: Path):
    source = releases.write_llava(tmp_path, [{"question": "x", "answer": "y"}] * 50)
    with pytest.raises(UserError, match=r"none of 50 .* no 'conversations'; expected"):
        releases.prepare(tmp_path / "run", source)
    with pytest.raises(UserError, match=r"50 of llava: .* no 'conversations'; expected") as said:
        read_questions([DataSource.parse(source)], 0)
    one_line(said)


def test_no_message_ends_twice(tmp_path: Path):
    (tmp_path / "own.jsonl").write_text('{"id": 1}\n')
    with pytest.raises(UserError) as said:
        releases.prepare(tmp_path / "run", f"{tmp_path}/own.jsonl")
    assert not re.search(r"\.\)?\.$", one_line(said))


def test_a_picture_is_found_by_its_stem(tmp_path: Path):
    source = llava(tmp_path, releases.conversation(0, "ocr/0001.jpg", "What?", "A book."))
    picture(5).save(tmp_path / "train2017" / "0001.gif")
    assert read(source)[0].images[0].path == str(tmp_path / "train2017" / "0001.gif")
    picture(5).save(tmp_path / "train2017" / "0001.jpg")
    (tmp_path / "llava_instruct_150k.json").touch()  # changed: read anew
    assert read(source)[0].images[0].path == str(tmp_path / "train2017" / "0001.jpg")


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_a_byte_order_mark_is_no_text(tmp_path: Path, mark: bytes):
    (tmp_path / "own.jsonl").write_bytes(mark + LINE.encode())
    assert read(f"local={tmp_path}/own.jsonl")[0].sample_id == "a"


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"", "is empty"),
        (b"\n \n", "is empty"),
        (LINE.encode("utf-16"), "is UTF-16: save it as UTF-8"),
        ('{"id": "\xe4"}'.encode("latin-1"), "is not text in UTF-8"),
        (json.dumps([json.loads(LINE)], indent=2).encode(), "jq -c"),
        (json.dumps([releases.conversation(0, None, "Hi", "Hello.")]).encode(), "--data llava="),
    ],
)
def test_a_file_that_is_no_lines_of_conversations_is_said(tmp_path: Path, content: bytes, named: str):
    (tmp_path / "own.jsonl").write_bytes(content)
    with pytest.raises(UserError) as said:
        read(f"local={tmp_path}/own.jsonl")
    assert named in one_line(said)
    assert "own.jsonl" in str(said.value)


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("{", "line 2: expected"),
        ('{"id": 1}', "no 'messages'"),
        ('{"messages": ["x"]}', "'role' is None"),
        (LINE.replace('"y"', '"\\ud83d"'), "\\ud83d"),
    ],
)
def test_one_odd_line_among_many_is_dropped_and_named(tmp_path: Path, line: str, named: str):
    (tmp_path / "own.jsonl").write_text("\n".join([LINE, line, *[LINE] * 40]))
    dataset = releases.prepare(tmp_path / "run", f"{tmp_path}/own.jsonl")
    assert len(dataset) == 41
    assert named in data_table(dataset.mix.tallies)


@pytest.mark.parametrize(
    ("data", "named"),
    [
        ("local=data/*.jsonl", "has a *"),
        ("local=data/part[12].jsonl", "has a ["),
        ("local=a,b.jsonl", "'\\,'"),
        ("llava=~/no.json,images=x", str(Path.home() / "no.json")),
    ],
)
def test_a_path_that_a_shell_would_have_changed_is_said(data: str, named: str):
    with pytest.raises(UserError) as said:
        read(data)
    assert named in one_line(said)


def test_paths_may_have_commas_and_begin_at_home(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a,b.jsonl").write_text(LINE)
    assert len(read(f"local={tmp_path}/a\\,b.jsonl")) == 1
    assert len(read("local=~/a\\,b.jsonl,images=~/pictures")) == 1
