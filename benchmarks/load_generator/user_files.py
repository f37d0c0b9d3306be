"""The user's own images and questions, looked at before anything is measured."""

import json
from collections.abc import Callable
from pathlib import Path

from qwen_vqa.benchmarks.load_generator.sample_images import MEDIA_TYPES
from qwen_vqa.benchmarks.load_generator.workload import WorkloadQuestion
from qwen_vqa.plugin.command.text_files import read_text
from qwen_vqa.plugin.errors import UserError
from qwen_vqa.plugin.images.image_loader import looks_like_image

# What `looks_like_image` needs of a file.
HEAD_BYTES = 16


NAMED = 3  # of the files that are left out


def image_files(folder: Path, say: Callable[[str], None]) -> tuple[str, ...]:
    """The images in a folder and the folders in it, by their suffixes; hidden ones (.name) are left out, and so are
    files that cannot be read or are no images, which is said.

    Raises:
        UserError: there are none.
    """
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in MEDIA_TYPES)
    paths = [path for path in paths if not any(part.startswith(".") for part in path.relative_to(folder).parts)]
    if not paths:
        raise UserError(f"--image-folder {folder}: no images there ({', '.join(sorted(MEDIA_TYPES))}).")
    faults: dict[Path, UserError] = {}
    for path in paths:
        try:
            check_image(path, f"--image-folder {folder}")
        except UserError as error:
            faults[path] = error
    if faults:
        first = ", ".join(map(str, list(faults)[:NAMED]))
        reason = str(next(iter(faults.values()))).rstrip(".")
        if len(faults) == len(paths):
            raise UserError(f"{reason}. None of its {len(paths):,} images can be used.")
        more = ", ..." if len(faults) > NAMED else ""
        say(f"left out {len(faults):,} of {len(paths):,} images: {first}{more}. The first: {reason}")
    return tuple(str(path) for path in paths if path not in faults)


def check_image(path: Path, where: str) -> None:
    """Raises UserError for a file that cannot be read or does not begin as an image."""
    try:
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
    except FileNotFoundError:
        raise UserError(f"{where}: there is no image {path}.") from None
    except OSError as error:
        raise UserError(f"{where}: the image {path} cannot be read ({error.strerror}).") from None
    if not looks_like_image(head):
        raise UserError(f"{where}: {path} is not an image that the server takes; leave it out or convert it.")


def read_questions(path: Path) -> tuple[WorkloadQuestion, ...]:
    """A question a line; a line of JSON has `question` and may have `image`, a URL or a path from the file's folder.

    Raises:
        UserError: the file cannot be read or is empty, a line has no question, an image is not there or is none.
    """
    lines = [line.strip() for line in read_text(path).splitlines() if line.strip()]
    if not lines:
        raise UserError(f"--questions {path}: the file is empty.")
    return tuple(_question(line, f"{path}, line {number}", path.parent) for number, line in enumerate(lines, 1))


def _question(line: str, where: str, folder: Path) -> WorkloadQuestion:
    if not line.startswith("{"):
        return WorkloadQuestion(line)
    try:
        row = json.loads(line)
        question, image = row["question"], row.get("image")
    except (ValueError, KeyError):
        raise UserError(f'{where}: expected {{"question": "...", "image": "..."}}.') from None
    if image and not image.startswith(("http://", "https://", "data:")):
        image = str(folder / image)
        check_image(Path(image), where)
    return WorkloadQuestion(question, image)
