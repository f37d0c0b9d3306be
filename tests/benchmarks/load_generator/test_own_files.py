"""The user's own images and questions."""

from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from qwen_vqa.benchmarks.load_generator.sample_images import SampleImage
from qwen_vqa.benchmarks.load_generator.user_files import image_files, read_questions
from qwen_vqa.benchmarks.load_generator.workload import WorkloadQuestion
from qwen_vqa.plugin.errors import UserError
from qwen_vqa.plugin.images.data_url import data_url_bytes
from qwen_vqa.plugin.images.image_limits import DEFAULT_LIMITS
from qwen_vqa.plugin.images.image_loader import load_image


@pytest.mark.parametrize(
    ("suffix", "form"), [("jpg", "JPEG"), ("AVIF", "AVIF"), ("tif", "TIFF"), ("webp", "WEBP"), ("ppm", "PPM")]
)
def test_what_the_server_takes_is_found_in_subfolders_and_opens_there(tmp_path: Path, suffix: str, form: str) -> None:
    data = BytesIO()
    Image.new("RGB", (32, 24), "red").save(data, form)
    for place in (tmp_path / "a" / "b", tmp_path / ".hidden"):
        place.mkdir(parents=True)
        (place / f"x.{suffix}").write_bytes(data.getvalue())
    (tmp_path / "notes.txt").write_text("no image")
    (file,) = image_files(tmp_path, print)
    assert file == str(tmp_path / "a" / "b" / f"x.{suffix}")
    assert load_image(data_url_bytes(SampleImage(source=file).url(), "x", DEFAULT_LIMITS)).size == (32, 24)


def test_a_file_that_is_none_or_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "page.jpg").write_text("<html>not found</html>")
    with pytest.raises(UserError, match=r"page.jpg is not an image"):
        image_files(tmp_path, print)
    (tmp_path / "page.jpg").unlink()
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(UserError, match=r"folder.png cannot be read"):
        image_files(tmp_path, print)


def test_files_that_are_no_images_are_left_out_and_counted_at_once(tmp_path: Path) -> None:
    for number in range(10):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{number}.png")
    for number in range(5):
        (tmp_path / f"broken-{number}.jpg").write_text("<html>")
    said: list[str] = []
    assert len(image_files(tmp_path, said.append)) == 10
    [line] = said
    assert "left out 5 of 15 images" in line
    assert "broken-0.jpg" in line and "broken-2.jpg, ..." in line and "is not an image" in line


def test_questions_may_have_a_byte_order_mark_and_have_to_be_utf_8(tmp_path: Path) -> None:
    file = tmp_path / "questions"
    file.write_bytes("\ufeffWhat is it?\n".encode())
    assert read_questions(file) == (WorkloadQuestion("What is it?"),)
    file.write_bytes("What is it?".encode("utf-16"))
    with pytest.raises(UserError, match="UTF-16"):
        read_questions(file)


def test_questions_are_lines_or_json_with_an_image(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"\x89PNG")
    file = tmp_path / "questions"
    file.write_text('What is it?\n{"question": "And this?", "image": "a.png"}\n')
    assert read_questions(file) == (
        WorkloadQuestion("What is it?"),
        WorkloadQuestion("And this?", str(tmp_path / "a.png")),
    )


def test_a_question_about_a_missing_image_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "questions"
    file.write_text('{"question": "And this?", "image": "gone.png"}\n')
    with pytest.raises(UserError, match=r"line 1: there is no image .*gone.png"):
        read_questions(file)
