"""Which of ten people's answers a model is to learn."""

from collections import Counter


def majority_answer(answers: list[str]) -> str:
    """The answer that most people gave, as the first of them spelt it; "" when nobody said anything.

    Answers are alike that differ in case and outer spaces alone. Of equally frequent ones the first in order wins.
    """
    spellings: dict[str, str] = {}
    counts: Counter[str] = Counter()
    for answer in answers:
        spelling = " ".join(answer.split())
        if spelling:
            spellings.setdefault(spelling.casefold(), spelling)
            counts[spelling.casefold()] += 1
    return spellings[counts.most_common(1)[0][0]] if counts else ""
