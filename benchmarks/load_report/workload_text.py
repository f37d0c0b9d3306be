"""What was asked, in words: the workload of a result, for people who read its page."""

from typing import Any


def workload_facts(workload: dict[str, Any]) -> dict[str, str]:
    """Names and values of a result's `workload`, in the order in which a reader asks for them."""
    least, most = workload["output_tokens"]
    facts = {
        "models": ", ".join(f"{name} ({share:.0%} of the requests)" for name, share in workload["models"]),
        "requests": f"{workload['requests']:,} a cell, after {workload['warm_up']:,} to warm up",
        "pictures": _pictures(workload),
        "questions": f"{len(workload['questions']):,} of a file" if workload["questions"] else "the load generator's",
        "answers": f"{least} tokens" if least == most else f"{least} to {most} tokens",
        "conversations": _turns(workload),
    }
    if workload["text_words"]:
        facts["questions"] += f", after {workload['text_words']} drawn words"
    return facts


def _pictures(workload: dict[str, Any]) -> str:
    number = workload["images_per_request"]
    if not number:
        return "none"
    sizes = ", ".join(f"{width} x {height}" for width, height in workload["sizes"])
    which = f"of {len(workload['files']):,} files" if workload["files"] else f"drawn, {sizes} pixels"
    return f"{number} a request, {which}; {workload['repeated_images']:.0%} came before"


def _turns(workload: dict[str, Any]) -> str:
    if not workload["multi_turn"]:
        return "one turn"
    return f"{workload['turns']} turns in {workload['multi_turn']:.0%} of them, one in the others"
