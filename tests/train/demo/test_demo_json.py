"""JSON among the demo's answers: objects of one field and calls of the tool that the system turn tells of."""

import json
import random

from qwen_vqa.train.drawn.conversations import DrawnConversation, make_conversation
from qwen_vqa.train.drawn.scenes import make_scene
from qwen_vqa.train.model.reference_checkpoint import load_processor
from tests.tiny import DEMO


def conversations() -> list[DrawnConversation]:
    scenes = [make_scene(seed) for seed in range(400)]
    return [make_conversation(random.Random(seed), [scene, scenes[0]]) for seed, scene in enumerate(scenes)]


def answers(conversation: DrawnConversation) -> list[str]:
    return [message["content"] for message in conversation.messages if message["role"] == "assistant"]


def test_an_eighth_of_the_conversations_are_in_json():
    objects = [text for one in conversations() for text in answers(one) if text.startswith("{")]
    calls = [text for one in conversations() for text in answers(one) if text.startswith("<tool_call>")]
    assert 20 < len(objects) + len(calls) < 80
    assert len(calls) > 3
    for text in objects:
        (value,) = json.loads(text).values()
        assert value or value == 0


def test_a_call_is_of_the_tool_that_the_server_would_tell_of():
    processor = load_processor(DEMO)
    for one in conversations():
        if one.messages[0]["role"] != "system":
            continue
        (text,) = answers(one)
        call = json.loads(text.removeprefix("<tool_call>\n").removesuffix("\n</tool_call>"))
        tool = json.loads(one.messages[0]["content"].partition("<tools>\n")[2].partition("\n</tools>")[0])
        assert tool["function"]["name"] == call["name"]
        assert set(call["arguments"]) == set(tool["function"]["parameters"]["required"])
        told = processor.apply_chat_template(one.messages[:2], tokenize=False)
        assert told == processor.apply_chat_template(one.messages[1:2], tools=[tool], tokenize=False)
