"""What `--data` says: which data set, where it lies, and how much of it."""

import re
from dataclasses import dataclass, fields
from pathlib import Path

from qwen_vqa.plugin.errors import UserError

EXAMPLES = (
    "llava=llava_instruct_150k.json,images=coco/train2017",
    "textvqa=TextVQA_0.5.1_train.json,images=train_images,weight=0.25",
    "textvqa=lmms-lab/textvqa,split=train,samples=5000",
    "vizwiz=Annotations/train.json,images=train",
    "local=train.jsonl",
)
# In the order of the registry, which imports what reads them.
DATA_SETS = tuple(dict.fromkeys(example.partition("=")[0] for example in EXAMPLES))
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".avif", ".heic", ".tif", ".tiff", ".bmp", ".ppm"}


@dataclass(frozen=True)
class DataSource:
    """One data set of a run.

    `location` is the annotation file of the release, or for the hub's form a parquet file, a folder of them or a hub
    id. `images` is the folder of the release's pictures. `weight` is the data set's share of the mix, `samples` the
    most that is read of it.
    """

    name: str
    location: str
    images: str | None = None
    split: str = "train"
    weight: float | None = None
    samples: int | None = None

    @classmethod
    def parse(cls, text: str) -> "DataSource":
        """From the command line: NAME=LOCATION,images=FOLDER,... or a JSONL file alone.

        A comma in a path is written `\\,`; `~` is the home folder, which a shell leaves alone behind `=`.

        Raises:
            UserError: what cannot be read, with an example.
        """
        first, *rest = (part.replace("\\,", ",") for part in re.split(r"(?<!\\),", text))
        name, equals, location = first.partition("=")
        if not equals:
            name, location = "local", first
        options: dict[str, str] = {}
        known = [field.name for field in fields(cls) if field.name not in ("name", "location")]
        for option in rest:
            key, equals, value = option.partition("=")
            if key not in known or not value or key in options:
                raise UserError(
                    f"--data {text}: {option!r} is not one of {', '.join(f'{key}=...' for key in known)}. A comma in a "
                    "path is written '\\,'."
                )
            options[key] = value
        weight = _number(text, "weight", options.pop("weight", None))
        samples = _number(text, "samples", options.pop("samples", None))
        if samples is not None and samples != int(samples):
            raise UserError(f"--data {text}: samples={samples} must be a whole number.")
        if "images" in options:
            options["images"] = _path(options["images"])
        return cls(name, _path(location), weight=weight, samples=None if samples is None else int(samples), **options)

    def check_location(self) -> None:
        """As `check`, as far as it can be said of any data set, and of one that is known.

        Raises:
            UserError: no such file or folder.
        """
        if self.name in DATA_SETS:
            self.check(needs_images=False)

    @property
    def in_hub_form(self) -> bool:
        """Whether the pictures stand in the data set's own rows (parquet) rather than in a folder."""
        return not self.location.endswith((".json", ".jsonl"))

    def check(self, needs_images: bool) -> None:
        """Look whether everything named is there, before long work starts.

        Raises:
            UserError: no such file or folder, or a folder without images.
        """
        place = f"data set {self.name}"
        path = Path(self.location)
        is_hub_id = self.in_hub_form and self.location.count("/") == 1 and not self.location.startswith((".", "/"))
        if not path.exists() and (wild := [letter for letter in "*?[" if letter in self.location]):
            raise UserError(f"{place}: {path} has a {wild[0]}, and is read as one name: give each file its own --data.")
        if not path.exists() and not is_hub_id:
            raise UserError(f"{place}: there is no {path}. Such a --data is {self._example()}.")
        if not self.in_hub_form and not path.is_file():
            raise UserError(f"{place}: {path} is not a file.")
        if self.images is not None and self.in_hub_form:
            raise UserError(f"{place}: {self.location} brings its own images; leave out images={self.images}.")
        if needs_images and not self.in_hub_form:
            self._check_folder(place)

    def _check_folder(self, place: str) -> None:
        if self.images is None:
            raise UserError(f"{place}: where are its images? Such a --data is {self._example()}.")
        folder = Path(self.images)
        if not folder.is_dir():
            raise UserError(f"{place}: there is no image folder {folder}.")
        if not any(path.suffix.lower() in IMAGE_SUFFIXES for path in folder.rglob("*")):
            raise UserError(f"{place}: the folder {folder} holds no images; was the archive unpacked?")

    def _example(self) -> str:
        return next((example for example in EXAMPLES if example.startswith(f"{self.name}=")), EXAMPLES[0])


def _path(text: str) -> str:
    """With the home folder in place of ~, and otherwise as it was given: it may be a hub id."""
    return str(Path(text).expanduser()) if text.startswith("~") else text


def _number(text: str, key: str, value: str | None) -> float | None:
    if value is None:
        return None
    try:
        number = float(value)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise UserError(f"--data {text}: {key}={value} must be a number greater than 0.")
    return number
