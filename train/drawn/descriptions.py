"""What a scene shows, in words: the phrases that answers are made of."""

from qwen_vqa.train.drawn import words
from qwen_vqa.train.drawn.scenes import Scene, Thing


def describe(scene: Scene) -> str:
    """'There are two red stars and a cat.' The order is that of the word lists, not of the picture."""
    if scene.visibility != "clear":
        return f"The picture is too {scene.visibility}."
    if not scene.things:
        return "The picture is empty."
    groups = groups_of(scene)
    start = "There are" if len(groups[0]) > 1 else "There is"
    return f"{start} {join([group_phrase(group) for group in groups])}."


def groups_of(scene: Scene) -> list[list[Thing]]:
    """Things alike in name and colour, in the order of the word lists."""
    order = [*words.SHAPES, *words.EMOJI]
    groups: dict[str, list[Thing]] = {}
    for thing in scene.things:
        groups.setdefault(thing.phrase, []).append(thing)
    return sorted(groups.values(), key=lambda g: order.index(g[0].name) if g[0].name in order else len(order))


def group_phrase(group: list[Thing]) -> str:
    """'a red circle', 'three cats', 'the number 42'."""
    thing = group[0]
    if thing.kind == "number":
        return f"the number {thing.name}"
    if len(group) == 1:
        return words.with_article(thing.phrase)
    colour = f"{thing.colour} " if thing.kind == "shape" else ""
    return f"{words.COUNT_WORDS[len(group)]} {colour}{words.plural(thing.name)}"


def join(phrases: list[str]) -> str:
    return phrases[0] if len(phrases) == 1 else f"{', '.join(phrases[:-1])} and {phrases[-1]}"
