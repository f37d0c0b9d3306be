"""Conversations about images from a JSONL file: one sample a line.

    {"id": "42", "messages": [
        {"role": "user", "content": [{"type": "image", "image": "photos/42.jpg"},
                                     {"type": "text", "text": "What is written on the sign?"}]},
        {"role": "assistant", "content": "Stop"}]}

Messages have the OpenAI form; an image is a path relative to the file, an http(s) URL or a
data URL. Several images and turns are welcome.
"""

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset
from tqdm import tqdm

from qwen_vqa.plugin.errors import UserError
from qwen_vqa.plugin.image_loader import ImageError
from qwen_vqa.plugin.image_source import is_url, open_image

ROLES = ("system", "user", "assistant", "tool")


@dataclass(frozen=True)
class Sample:
    """A conversation in the OpenAI form, and the files or URLs of its images in reading order."""

    sample_id: str
    messages: list[dict[str, Any]]
    image_paths: list[Path | str]


class ConversationDataset(Dataset):
    """Samples of a JSONL file; images are opened when a sample is asked for.

    Raises:
        UserError: a line is not a sample; the message names the line and what was expected.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise UserError(f"no training data at {self.path}: there is no such file.")
        with self.path.open(encoding="utf-8") as lines:
            self.samples = [
                _parse(line, f"{self.path} line {number}", self.path.parent)
                for number, line in enumerate(lines, start=1)
                if line.strip()
            ]
        if not self.samples:
            raise UserError(f"{self.path} holds no samples.")

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """`sample_id`, `messages` and `images` (RGB pictures in reading order)."""
        sample = self.samples[index]
        images = [open_image(path) for path in sample.image_paths]
        return {"sample_id": sample.sample_id, "messages": sample.messages, "images": images}

    def check_images(self, skip_broken: bool = False, workers: int = 4) -> list[str]:
        """Open every image once before training starts; returns what was wrong with the broken ones.

        With `skip_broken`, the samples of broken images are dropped; otherwise the first of them raises.

        Raises:
            UserError: a broken image without `skip_broken`, or no sample left with it.
        """
        paths = sorted({path for sample in self.samples for path in sample.image_paths}, key=str)
        with ThreadPoolExecutor(workers) as pool:
            faults = tqdm(pool.map(_fault, paths), total=len(paths), desc="checking images", leave=False)
            broken = {path: fault for path, fault in zip(paths, faults, strict=True) if fault}
        if not broken:
            return []
        if not skip_broken:
            shown = "; ".join(list(broken.values())[:5])
            raise UserError(
                f"{len(broken)} of {len(paths)} images cannot be used: {shown}. Mend or remove them, or pass "
                "--skip-broken-images to train without their samples."
            )
        self.samples = [sample for sample in self.samples if broken.keys().isdisjoint(sample.image_paths)]
        if not self.samples:
            raise UserError(f"every sample of {self.path} has a broken image; nothing is left to train on.")
        return list(broken.values())


def _fault(path: Path | str) -> str | None:
    try:
        open_image(path)
    except ImageError as error:
        return str(error)
    return None


def _parse(line: str, place: str, folder: Path) -> Sample:
    try:
        entry = json.loads(line)
        messages = entry["messages"]
        roles = [message["role"] for message in messages]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise UserError(
            f'{place}: expected {{"id": ..., "messages": [{{"role": ..., "content": ...}}, ...]}} ({error!r}).'
        ) from error
    unknown = [role for role in roles if role not in ROLES]
    if unknown:
        raise UserError(f"{place}: role {unknown[0]!r}; expected one of {', '.join(ROLES)}.")
    if "assistant" not in roles:
        raise UserError(f"{place}: no assistant turn, so there is nothing to learn from it.")
    image_paths: list[Path | str] = []
    for message in messages:
        content = message.get("content")
        if message["role"] == "assistant" and not (isinstance(content, str) and content.strip()):
            raise UserError(f"{place}: an assistant turn must be text that is not empty; got {content!r}.")
        for part in content if isinstance(content, list) else []:
            if part.get("type") == "image":
                image_paths.append(part["image"] if is_url(part["image"]) else folder / part["image"])
            elif part.get("type") != "text":
                raise UserError(f"{place}: content part of type {part.get('type')!r}; expected text or image.")
    return Sample(str(entry.get("id", place)), messages, image_paths)
