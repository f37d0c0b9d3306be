"""Conversations about images to calibrate with and to measure on: the user's data, or the demo's own pictures."""

import random
from pathlib import Path
from typing import Any

from PIL import Image

from qwen_vqa.plugin.errors import UserError
from qwen_vqa.plugin.image_source import open_image
from qwen_vqa.train.data.reading import read_data_set
from qwen_vqa.train.data.row import Row
from qwen_vqa.train.data.source import DataSource
from qwen_vqa.train.demo.conversations import make_conversation, messages_of
from qwen_vqa.train.demo.drawing import draw
from qwen_vqa.train.demo.evaluate import Case, adapter_cases, cases
from qwen_vqa.train.demo.scenes import Scene, make_scene

Sample = dict[str, Any]
# Pictures that neither the demo's training nor its evaluation draws.
FIRST_SEED = 2_000_000_000


class UserSamples:
    """A data set as `train --data` names it, in a seeded order: the first samples calibrate, those behind measure.

    Raises:
        UserError: it is not there, or not in its format.
    """

    def __init__(self, data: str, seed: int = 0) -> None:
        source = DataSource.parse(data)
        if source.weight is not None:
            raise UserError(f"--data {data}: weight= is for training with several data sets; leave it out.")
        self.name = Path(source.location).stem
        self.rows = read_data_set(source)
        usable = [index for index, fault in enumerate(self.rows["fault"]) if not fault]
        random.Random(f"quantize {seed}").shuffle(usable)
        self.order = usable[: source.samples]

    def check(self, number: int) -> None:
        """Raises UserError when there are fewer samples than `number`, or an image of those cannot be opened."""
        if number > len(self.order):
            raise UserError(
                f"--samples {number}: {self.name} has only {len(self.order)} that can be used; pass --samples "
                f"{len(self.order)} or fewer, or more data."
            )
        self.calibration(number)

    def calibration(self, number: int) -> list[Sample]:
        """The first `number` samples of the order."""
        return [self._sample(index) for index in self.order[:number]]

    def held_out(self, skip: int, number: int, skills: tuple[str, ...] = ()) -> dict[str, list[Sample]]:
        """Up to `number` samples behind the first `skip`, under one name; a user's data has no skills.

        Raises:
            UserError: none is left.
        """
        left = self.order[skip : skip + number]
        if not left:
            raise UserError(
                f"{self.name} has {len(self.order)} samples and {skip} of them calibrated: none is left to measure on."
            )
        return {self.name: [self._sample(index) for index in left]}

    def _sample(self, index: int) -> Sample:
        row = Row.from_arrow(self.rows[index])
        images = [open_image(picture.source) for picture in row.images]
        return {"sample_id": row.sample_id, "messages": row.messages, "images": images, "answers": row.answers}


class DemoSamples:
    """Conversations that the demo's renderer draws."""

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def check(self, number: int) -> None:
        """The renderer draws as many as are asked for."""

    def calibration(self, number: int) -> list[Sample]:
        """`number` conversations like those of the demo's training."""
        return [self._conversation(index) for index in range(number)]

    def _conversation(self, index: int) -> Sample:
        rng = random.Random(f"calibration {self.seed} {index}")
        scenes = [make_scene(FIRST_SEED + 1000 * self.seed + 2 * index + k) for k in (0, 1)]
        made = make_conversation(rng, scenes)
        return _sample(str(index), made.messages, [scenes[shown] for shown in made.scenes])

    def held_out(self, skip: int, number: int, skills: tuple[str, ...]) -> dict[str, list[Sample]]:
        """`number` held-out questions of each skill, those that the demo's own evaluation asks."""
        return {skill: [case_sample(case) for case in cases(skill, number)] for skill in skills}

    def adapter_questions(self, number: int) -> list[Sample]:
        """`number` held-out questions with the answers that the demo's adapter teaches."""
        return [case_sample(case) for case in adapter_cases(number)]


def case_sample(case: Case) -> Sample:
    """A case of the demo's evaluation as the collator takes it: worded as the evaluation words it."""
    rng = random.Random(case.scenes[0].seed)
    return _sample(case.skill, messages_of(rng, list(case.turns), len(case.scenes)), list(case.scenes))


def _sample(name: str, messages: list[dict], scenes: list[Scene]) -> Sample:
    return {
        "sample_id": name,
        "messages": messages,
        "images": [Image.fromarray(draw(scene)[0]) for scene in scenes],
    }
