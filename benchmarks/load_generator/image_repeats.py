"""Which of the user's own pictures a run shows more than once, and what that makes of its caches."""

from typing import Any

from qwen_vqa.benchmarks.load_generator.measurement_points import Plan
from qwen_vqa.benchmarks.load_generator.workload import Shown, conversations

# The server counts for others, too: less than this above what is explained is let pass.
TOLERANCE = 0.02


def repeat_notes(plan: Plan) -> list[str]:
    """Where all cells together show more pictures than the folder or the question file has."""
    own = {question.image for question in plan.spec.questions if question.image}
    if not own and not plan.spec.files:
        return []
    shown, asked = Shown(plan.spec, plan.seed), 0
    for number in range(len(plan.cells)):
        talks = conversations(plan.spec, plan.seed + number, plan.requests, plan.lengths, shown)
        asked += sum(picture.source in own for talk in talks for picture in talk.turns[0].pictures)
    notes = []
    for what, there, wanted in (
        ("folder", len(plan.spec.files), shown.files.taken),
        ("question file", len(own), asked),
    ):
        if wanted > there:
            notes.append(
                f"the {what} has {there} images for the {wanted} times that the cells show one: they repeat, and "
                "caches know them"
            )
    return notes


def warm_remark(cell: dict[str, Any]) -> str | None:
    """What to say of a cold cell whose pictures the server knew beyond the cell's own repeats and later turns."""
    rate = cell["server"]["mm_cache_hit_rate"] if cell["server"] else None
    explained = cell["pictures_known"] or 0.0
    if cell["cache"] != "cold" or rate is None or rate <= explained + TOLERANCE:
        return None
    return (
        f"caches were not cold: {rate:.0%} of the pictures were known, where the cell's own repeats make "
        f"{explained:.0%}; take another --seed, or restart the server where the pictures are your own files"
    )
