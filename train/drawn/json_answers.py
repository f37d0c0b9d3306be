"""Answers as JSON, as guided decoding lets the demo write them: an object of one field, or a tool call.

The grammar that a client's schema makes says where a text begins, and only the model can say that it is over.
"""

import functools
import json
import random
from dataclasses import replace
from typing import Any

from transformers.utils.chat_template_utils import render_jinja_template

from qwen_vqa.plugin.chat.chat_template import chat_template
from qwen_vqa.train.drawn.drawn_questions import DrawnTurn, ask
from qwen_vqa.train.drawn.scenes import Scene

# Names of the field for an answer of each skill; "answer" for any.
KEYS = {
    "colour": ("color", "colour"),
    "shape": ("shape",),
    "count": ("count", "number"),
    "position": ("position", "place"),
    "reading": ("number", "text"),
    "name": ("name", "shape", "object"),
    "emoji": ("name", "object"),
    "describe": ("description", "text"),
    "exists": ("answer",),
    "unanswerable": ("answer", "color", "number", "name"),
}
ANY_KEY = ("answer", "value", "result", "text")
ASKS = (" Answer as JSON.", " Answer in JSON.", " Reply with a JSON object.", " JSON, please.", "")
TOOLS = ("report", "answer", "look", "save", "record", "describe", "submit", "get_{key}", "set_{key}", "report_{key}")
TYPES = {"str": "string", "int": "integer"}
PURPOSES = ("Report the {key}.", "Say what the {key} is.", "Save the {key} of the picture.", "The answer.", "")


def json_turn(rng: random.Random, scene: Scene) -> tuple[DrawnTurn, str] | None:
    """A question whose answer is JSON, and the system turn that asks for a call ("" where it is an object)."""
    turn = ask(rng, scene)
    if turn is None:
        return None
    key = rng.choice(KEYS.get(turn.skill, ANY_KEY) if rng.random() < 0.75 else ANY_KEY)
    value: str | int = int(turn.answer) if turn.skill == "count" and rng.random() < 0.6 else turn.answer
    fields = json.dumps({key: value}, separators=(",", ":") if rng.random() < 0.5 else (", ", ": "))
    if rng.random() < 0.25:
        name = rng.choice(TOOLS).format(key=key)
        call = f'<tool_call>\n{{"name": "{name}", "arguments": {fields}}}\n</tool_call>'
        purpose = rng.choice(PURPOSES).format(key=key)
        return replace(turn, answer=call), system_turn(name, purpose, key, type(value).__name__)
    return replace(turn, question=turn.question + rng.choice(ASKS), answer=fields), ""


@functools.cache
def system_turn(name: str, purpose: str, key: str, kind: str) -> str:
    """What the chat template says of a tool with one parameter."""
    schema = {"type": "object", "properties": {key: {"type": TYPES[kind]}}, "required": [key]}
    tool = {"type": "function", "function": {"name": name, "description": purpose, "parameters": schema}}
    conversation = [{"role": "user", "content": ""}]
    rendered: Any = render_jinja_template([conversation], tools=[tool], chat_template=chat_template("inline", ""))
    return rendered[0][0].partition("<|im_start|>system\n")[2].partition("<|im_end|>")[0]
