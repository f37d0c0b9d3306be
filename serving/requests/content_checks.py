"""What a request's messages may hold, for the three APIs that take them; and where its images stand.

vLLM takes much that it then drops or trips over: no content, roles that no template knows, `detail` of any
spelling. Each check says which message and part it means and what to do.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from qwen_vqa.plugin.images.image_detail import DEFAULT_DETAIL, DETAILS, SAME_DETAILS

CHAT_ROLES = ("system", "developer", "user", "assistant", "tool")
RESPONSE_ROLES = ("system", "developer", "user", "assistant")
MESSAGES_ROLES = ("user", "assistant", "system")
TEXT_PARTS = ("text", "input_text", "output_text", "refusal", "thinking")
# Their text may be empty: an answer that was cut at once, a tool without output, a system turn that is to be none.
MAY_BE_EMPTY = ("system", "developer", "assistant", "tool")
IMAGE_EXAMPLE = '{"type": "image_url", "image_url": {"url": "data:image/png;base64,..."}}'


# What vLLM would leave out without a word, though the answer is another without it; with what to do instead.
NOT_IN_CHAT = {
    "functions": "functions are not served; send tools",
    "function_call": "function_call is not served; send tool_choice",
    "web_search_options": "this server searches no web; leave it out",
    "audio": "the model does not speak; leave it out",
}
NOT_IN_RESPONSES = {
    "previous_response_id": "responses are not kept here; send the whole conversation in input",
    "conversation": "conversations are not kept here; send the whole conversation in input",
    "prompt": "prompts are not kept here; send instructions and input",
}


# vLLM dropped these and answers without them; their replacement takes one of json, regex, choice and grammar.
GUIDED = {
    f"guided_{name}": f'it is not served; send structured_outputs: {{"{name}": ...}}'
    for name in ("json", "regex", "choice", "grammar")
}


class ContentError(ValueError):
    """A request that is refused; `place` is the parameter, such as `messages[0].content[2]`."""

    def __init__(self, place: str, fault: str) -> None:
        super().__init__(f"{place}: {fault}")
        self.place = place


@dataclass(frozen=True)
class PlacedImage:
    """An image of a request as the media connector will be asked for it, and where it stands."""

    url: str
    place: str
    detail: str = DEFAULT_DETAIL


def chat_images(body: dict[str, Any]) -> list[PlacedImage]:
    """Check a chat completion's messages (or a batch of conversations); its images in reading order.

    Raises:
        ContentError: what is wrong, and where.
    """
    _no_unserved(body, NOT_IN_CHAT | GUIDED)
    if body.get("modalities") not in (None, [], ["text"]):
        raise ContentError("modalities", 'the model answers in text only; leave it out, or send ["text"].')
    messages = body.get("messages")
    if messages is None and "messages" in body and "prompt" not in body:
        raise ContentError("messages", "null; expected a list of messages.")
    if not isinstance(messages, list):
        return []  # vLLM says so, or it is another kind of request
    if messages and all(isinstance(conversation, list) for conversation in messages):
        return [
            image
            for number, conversation in enumerate(messages)
            for image in _conversation(conversation, f"messages[{number}]", CHAT_ROLES, _chat_part)
        ]
    return list(_conversation(messages, "messages", CHAT_ROLES, _chat_part))


def completion_images(body: dict[str, Any]) -> list[PlacedImage]:
    """As `chat_images`, for completions, which have none."""
    _no_unserved(body, GUIDED)
    return []


def messages_images(body: dict[str, Any]) -> list[PlacedImage]:
    """As `chat_images`, for Anthropic's Messages API."""
    messages = body.get("messages")
    return (
        list(_conversation(messages, "messages", MESSAGES_ROLES, _messages_part)) if isinstance(messages, list) else []
    )


def responses_images(body: dict[str, Any]) -> list[PlacedImage]:
    """As `chat_images`, for OpenAI's Responses API."""
    _no_unserved(body, NOT_IN_RESPONSES | GUIDED)
    tools = body.get("tools")
    for number, tool in enumerate(tools if isinstance(tools, list) else []):
        if isinstance(tool, dict) and tool.get("type") != "function":
            kind = _shown(tool.get("type"))
            raise ContentError(f"tools[{number}].type", f"{kind} is not served; only tools of type function are.")
    items = body.get("input")
    if items == "" or items == []:
        raise ContentError("input", "it is empty; ask something.")
    if not isinstance(items, list):
        return []
    images: list[PlacedImage] = []
    for number, item in enumerate(items):
        place = f"input[{number}]"
        _object(item, place, "an item with type or role")
        if item.get("type") == "item_reference":
            raise ContentError(place, "an item_reference: responses are not kept here; send the item itself.")
        _no_refusals(item.get("content"), f"{place}.content")
        if item.get("type", "message") == "message" or "role" in item:
            images += _message(item, place, RESPONSE_ROLES, _responses_part)
        elif isinstance(item.get("output"), list):
            images += _parts(item["output"], f"{place}.output", _responses_part)
    return images


PartCheck = Callable[[dict[str, Any], str], Iterator[PlacedImage]]


def _no_unserved(body: dict[str, Any], unserved: dict[str, str]) -> None:
    for name, advice in unserved.items():
        if body.get(name) is not None:
            raise ContentError(name, f"{advice}.")


def _conversation(messages: list, place: str, roles: tuple[str, ...], check: PartCheck) -> Iterator[PlacedImage]:
    if not messages:
        raise ContentError(place, 'it is empty; send at least one: {"role": "user", "content": "..."}.')
    for number, message in enumerate(messages):
        yield from _message(message, f"{place}[{number}]", roles, check)


def _message(message: Any, place: str, roles: tuple[str, ...], check: PartCheck) -> Iterator[PlacedImage]:
    _object(message, place, "a message with role and content")
    role = message.get("role")
    if role not in roles:
        raise ContentError(f"{place}.role", f"{_shown(role)} is no role; use one of {', '.join(roles)}.")
    if not isinstance(message.get("name"), str | None):
        raise ContentError(f"{place}.name", f"{_shown(message['name'])} is no name; expected text.")
    content = message.get("content")
    if content is None and role == "assistant" and (message.get("tool_calls") or message.get("reasoning")):
        return
    if not isinstance(content, str | list):
        raise ContentError(f"{place}.content", f"{_shown(content)}; expected text or a list of parts.")
    if content == [] or (not content and role not in MAY_BE_EMPTY):
        raise ContentError(f"{place}.content", "it is empty; send text, an image, or leave the message out.")
    if isinstance(content, list):
        yield from _parts(content, f"{place}.content", check, may_be_empty=role in MAY_BE_EMPTY)


def _parts(parts: list, place: str, check: PartCheck, may_be_empty: bool = True) -> Iterator[PlacedImage]:
    texts_only = True
    for number, part in enumerate(parts):
        here = f"{place}[{number}]"
        if isinstance(part, str):  # vLLM takes a bare text for a text part
            texts_only = texts_only and not part
            continue
        _object(part, here, f'{{"type": "text", "text": "..."}} or {IMAGE_EXAMPLE}')
        if part.get("type") in TEXT_PARTS:
            texts_only = texts_only and not _text(part, here)
        else:
            texts_only = False
            yield from check(part, here)
    if texts_only and not may_be_empty:
        raise ContentError(place, "its text is empty; send text, an image, or leave the message out.")


def _text(part: dict[str, Any], place: str) -> str:
    field = part["type"] if part["type"] in ("refusal", "thinking") else "text"
    text = part.get(field)
    if not isinstance(text, str):
        raise ContentError(f"{place}.{field}", f"{_shown(text)}; expected text.")
    return text


def _chat_part(part: dict[str, Any], place: str) -> Iterator[PlacedImage]:
    kind = part.get("type")
    if kind == "input_image":
        yield from _responses_part(part, place)
        return
    if kind != "image_url":
        raise ContentError(place, f"a part of type {_shown(kind)}; only text and image_url are taken: {IMAGE_EXAMPLE}")
    image = part.get("image_url")
    if not isinstance(image, dict) or not isinstance(image.get("url"), str) or not image["url"]:
        raise ContentError(f"{place}.image_url", f"no url in it; expected {IMAGE_EXAMPLE}")
    _no_uuid(part, place)
    # OpenAI has it inside image_url; beside it, it would be forgotten without a word.
    detail = image.get("detail", part.get("detail"))
    yield PlacedImage(image["url"], place, _detail(detail, f"{place}.image_url.detail"))


def _responses_part(part: dict[str, Any], place: str) -> Iterator[PlacedImage]:
    kind = part.get("type")
    if kind != "input_image":
        raise ContentError(place, f"a part of type {_shown(kind)}; only text and input_image are taken.")
    url = part.get("image_url")
    if not isinstance(url, str) or not url:
        raise ContentError(f"{place}.image_url", "no image; files by id are not kept here, send a data or http(s) URL.")
    _no_uuid(part, place)
    yield PlacedImage(url, place, _detail(part.get("detail"), f"{place}.detail"))


def _messages_part(part: dict[str, Any], place: str) -> Iterator[PlacedImage]:
    if part.get("type") == "tool_result" and isinstance(part.get("content"), list):
        yield from _parts(part["content"], f"{place}.content", _messages_part)
    if part.get("type") != "image":
        return  # tool_use, thinking and the like: vLLM's own types say what they hold
    source: Any = part.get("source")
    _object(source, f"{place}.source", '{"type": "base64", "media_type": "image/png", "data": "..."}')
    field = "url" if source.get("type") == "url" else "data"
    if source.get("type") not in ("url", "base64") or not isinstance(source.get(field), str) or not source[field]:
        raise ContentError(f"{place}.source", "no image; expected a source of type base64 with data, or url with url.")
    # Written as vLLM writes it for the connector.
    url = source["url"] if field == "url" else f"data:{source.get('media_type', 'image/jpeg')};base64,{source['data']}"
    yield PlacedImage(url, place)


def _detail(detail: Any, place: str) -> str:
    if detail is None:
        return DEFAULT_DETAIL
    if detail not in DETAILS:
        raise ContentError(place, f"{_shown(detail)}; it must be one of {', '.join((*DETAILS, *SAME_DETAILS))}.")
    return detail


def _no_refusals(content: Any, place: str) -> None:
    # vLLM takes an earlier answer's parts for texts, and answers 500 where one is none.
    for number, part in enumerate(content if isinstance(content, list) else []):
        if isinstance(part, dict) and part.get("type") == "refusal":
            raise ContentError(f"{place}[{number}]", "a refusal is not taken here; send it as output_text.")


def _no_uuid(part: dict[str, Any], place: str) -> None:
    # vLLM would take it for the image's cache key, and answer one user with another's picture.
    if part.get("uuid") is not None:
        raise ContentError(f"{place}.uuid", "images are not kept by id here; send the image and leave uuid out.")


def _object(value: Any, place: str, expected: str) -> None:
    if not isinstance(value, dict):
        raise ContentError(place, f"{_shown(value)}; expected {expected}.")


def _shown(value: Any) -> str:
    return "nothing" if value is None else repr(value)[:60]
