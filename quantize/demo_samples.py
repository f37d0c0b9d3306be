"""Conversations about the demo's own pictures, to calibrate with and to measure on."""

import random
from collections.abc import Collection

from PIL import Image

from qwen_vqa.train.data.collator import Sample
from qwen_vqa.train.drawn.conversations import make_conversation, messages_of
from qwen_vqa.train.drawn.drawing import draw
from qwen_vqa.train.drawn.held_out import HeldOutCase, adapter_cases, cases
from qwen_vqa.train.drawn.scenes import Scene, make_scene

# Pictures that neither the demo's training nor its evaluation draws.
FIRST_SEED = 2_000_000_000


class DemoSamples:
    """Conversations that the demo's renderer draws."""

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def calibration(self, number: int) -> list[Sample]:
        """`number` conversations like those of the demo's training."""
        return [self._conversation(index) for index in range(number)]

    def _conversation(self, index: int) -> Sample:
        rng = random.Random(f"calibration {self.seed} {index}")
        scenes = [make_scene(FIRST_SEED + 1000 * self.seed + 2 * index + k) for k in (0, 1)]
        made = make_conversation(rng, scenes)
        return _sample(str(index), made.messages, [scenes[shown] for shown in made.scenes])

    def identities(self, number: int) -> list[str]:
        """None: what is held out is drawn apart from all that calibrates."""
        return []

    def held_out(self, calibrated: Collection[str], number: int, skills: tuple[str, ...]) -> dict[str, list[Sample]]:
        """`number` held-out questions of each skill, those that the demo's own evaluation asks."""
        return {skill: [case_sample(case) for case in cases(skill, number)] for skill in skills}

    def adapter_questions(self, number: int) -> list[Sample]:
        """`number` held-out questions with the answers that the demo's adapter teaches."""
        return [case_sample(case) for case in adapter_cases(number)]


def case_sample(case: HeldOutCase) -> Sample:
    """A case of the demo's evaluation as the collator takes it: worded as the evaluation words it."""
    rng = random.Random(case.scenes[0].seed)
    return _sample(case.skill, messages_of(rng, list(case.turns), len(case.scenes)), list(case.scenes))


def _sample(name: str, messages: list[dict], scenes: list[Scene]) -> Sample:
    return {
        "sample_id": name,
        "messages": messages,
        "images": [Image.fromarray(draw(scene)[0]) for scene in scenes],
    }
