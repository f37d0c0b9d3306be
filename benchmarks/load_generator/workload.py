"""What is asked: conversations drawn from a seed. The same spec and seed make the same requests, byte for byte."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from qwen_vqa.benchmarks.load_generator.sample_images import SampleImage
from qwen_vqa.benchmarks.load_generator.shuffled import Shuffled
from qwen_vqa.plugin.images.message_parts import user_message

QUESTIONS = (
    "What is written here?",
    "How many things are there?",
    "Which colour is the largest one?",
    "Describe the picture.",
    "What is on the left?",
    "Is there a circle?",
)
# Drawn before a question where text is to take an image's place.
WORDS = ("circle", "square", "table", "paper", "window", "street", "number", "yellow", "orange", "behind", "between")
FOLLOW_UPS = ("And on the right?", "What colour is it?", "How many are there?", "Is there anything else?")


@dataclass(frozen=True)
class WorkloadQuestion:
    """A line of the user's question file: the text, and an image (path or URL) of its own, if any."""

    text: str
    image: str | None = None


@dataclass(frozen=True)
class WorkloadSpec:
    """What requests are like.

    `models` are names with shares that sum to 1 (a base model and its adapters). `sizes` are (width, height) of
    rendered images, `files` the user's own in place of them, `questions` the user's own in place of ours.
    `repeated_images` is the share of conversations about an image that came before, `multi_turn` the share that has
    `turns` turns in place of one. `output_tokens` are the least and the most, drawn evenly between. `text_words` are
    drawn before each question, so that a prompt without an image can be as long as one with.
    """

    models: tuple[tuple[str, float], ...]
    sizes: tuple[tuple[int, int], ...] = ((640, 480),)
    files: tuple[str, ...] = ()
    questions: tuple[WorkloadQuestion, ...] = ()
    images_per_request: int = 1
    repeated_images: float = 0.0
    multi_turn: float = 0.0
    turns: int = 3
    output_tokens: tuple[int, int] = (32, 32)
    text_words: int = 0


@dataclass(frozen=True)
class WorkloadTurn:
    """A user's turn. `output_tokens` is the answer's length; `repeated_image` marks an image that came before."""

    text: str
    pictures: tuple[SampleImage, ...]
    output_tokens: int
    repeated_image: bool = False

    def message(self) -> dict[str, Any]:
        """In OpenAI's form, pictures first. Draws or reads the pictures."""
        return user_message(self.text, (picture.url() for picture in self.pictures))


@dataclass(frozen=True)
class WorkloadConversation:
    """One user's turns, to one model. `index` is the number of its first request in the cell."""

    index: int
    model: str
    turns: tuple[WorkloadTurn, ...]


class Shown:
    """What a run has asked about so far: its cells draw from the same ones, so that the user's own files and questions
    come again only after all of them came."""

    def __init__(self, spec: WorkloadSpec, seed: int) -> None:
        random = np.random.default_rng([seed, 2])
        self.files = Shuffled(spec.files, random)
        self.questions = Shuffled(spec.questions, random)
        self.pictures: set[SampleImage] = set()


def conversations(
    spec: WorkloadSpec, seed: int, count: int, lengths: tuple[int | None, ...] = (), shown: Shown | None = None
) -> list[WorkloadConversation]:
    """Conversations with `count` requests in all; `lengths` (of a trace) set a conversation's output tokens.

    `shown` goes on from the cells before; None: nothing was shown.
    """
    draw = _Draw(spec, seed, shown or Shown(spec, seed))
    made: list[WorkloadConversation] = []
    requests = 0
    while requests < count:
        turns = spec.turns if draw.random.random() < spec.multi_turn else 1
        length = lengths[len(made)] if len(made) < len(lengths) else None
        made.append(draw.conversation(requests, min(turns, count - requests), length))
        requests += len(made[-1].turns)
    return made


def known_pictures(talks: list[WorkloadConversation], ended: set[int]) -> float | None:
    """Of the pictures in these requests, the share that came before among them: what a cold cache knows at most.

    `ended` are the requests' numbers. Later turns bring the first turn's pictures again.
    """
    seen: set[SampleImage] = set()
    known = count = 0
    for talk in talks:
        for turn in range(len(talk.turns)):
            if talk.index + turn in ended:
                for picture in talk.turns[0].pictures:
                    known += picture in seen
                    count += 1
                    seen.add(picture)
    return known / count if count else None


class _Draw:
    """The state of drawing a workload: the random numbers, and the pictures that came before."""

    def __init__(self, spec: WorkloadSpec, seed: int, shown: Shown) -> None:
        self.spec = spec
        self.random = np.random.default_rng([seed, 0])
        self.run = shown
        self.shown: list[tuple[SampleImage, ...]] = []

    def conversation(self, index: int, turns: int, length: int | None) -> WorkloadConversation:
        names = [name for name, _ in self.spec.models]
        model = names[self.random.choice(len(names), p=[share for _, share in self.spec.models])]
        question = self._question()
        pictures, repeated = self._pictures(question)
        first = WorkloadTurn(question.text, pictures, length or self._length(), repeated)
        later = [WorkloadTurn(self._pick(FOLLOW_UPS), (), length or self._length()) for _ in range(turns - 1)]
        return WorkloadConversation(index, model, (first, *later))

    def _question(self) -> WorkloadQuestion:
        if not self.spec.questions:
            # The number keeps prompts without an image apart, which a prefix cache would know again.
            number = f"{self.random.integers(10**6):06d}"
            words = (self._pick(WORDS) for _ in range(self.spec.text_words))
            return WorkloadQuestion(" ".join((f"{number}:", *words, self._pick(QUESTIONS))))
        return self.run.questions.take()

    def _pictures(self, question: WorkloadQuestion) -> tuple[tuple[SampleImage, ...], bool]:
        if question.image is not None:
            pictures: tuple[SampleImage, ...] = (SampleImage(source=question.image),)
        elif self.spec.images_per_request == 0:
            return (), False
        elif self.shown and self.random.random() < self.spec.repeated_images:
            return self.shown[self.random.integers(len(self.shown))], True
        else:
            pictures = tuple(self._picture() for _ in range(self.spec.images_per_request))
        repeated = any(picture in self.run.pictures for picture in pictures)
        self.run.pictures.update(pictures)
        self.shown.append(pictures)
        return pictures, repeated

    def _picture(self) -> SampleImage:
        if self.spec.files:
            return SampleImage(source=self.run.files.take())
        width, height = self.spec.sizes[self.random.integers(len(self.spec.sizes))]
        return SampleImage(int(self.random.integers(2**62)), width, height)

    def _length(self) -> int:
        least, most = self.spec.output_tokens
        return int(self.random.integers(least, most + 1))

    def _pick(self, texts: tuple[str, ...]) -> str:
        return texts[self.random.integers(len(texts))]
