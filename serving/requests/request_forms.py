"""Forms in which clients send what vLLM takes in another: they are written as vLLM takes them."""

from collections.abc import Callable
from typing import Any

from qwen_vqa.plugin.images.image_detail import SAME_DETAILS

Body = dict[str, Any]


def chat_forms(body: Body) -> bool:
    """Rewrites a chat request in place; returns whether anything was another way."""
    changed = _no_empty_tools(body)
    for message in _messages(body.get("messages")):
        for part in _objects(message.get("content")):
            for holder in (part, part.get("image_url")):
                changed |= isinstance(holder, dict) and _plain_detail(holder)
        if message.get("role") == "assistant" and not message.get("content") and message.get("refusal"):
            # It was the model's answer: what it refused stays said.
            message["content"] = message.pop("refusal")
            changed = True
    return changed


def responses_forms(body: Body) -> bool:
    """As `chat_forms`, for the Responses API."""
    changed = _no_empty_tools(body)
    for item in _objects(body.get("input")):
        for part in (*_objects(item.get("content")), *_objects(item.get("output"))):
            if part.get("type") == "input_image":
                changed |= _plain_detail(part) | ("detail" not in part)
                part.setdefault("detail", "auto")  # vLLM's type has no default for it
        if item.get("role") == "assistant" and isinstance(item.get("content"), list):
            changed |= _one_text(item) | ("type" not in item)
            item.setdefault("type", "message")
    return changed


def tool_forms(body: Body) -> bool:
    """As `chat_forms`, where only tools can have another form."""
    return _no_empty_tools(body)


FORMS: dict[str, Callable[[Body], bool]] = {
    "/v1/chat/completions": chat_forms,
    "/v1/chat/completions/batch": chat_forms,
    "/v1/chat/completions/render": chat_forms,
    "/v1/chat/completions/tokens": chat_forms,
    "/generative_scoring": chat_forms,
    "/invocations": chat_forms,
    "/tokenize": chat_forms,
    "/v1/decisions": responses_forms,  # since vLLM 0.33
    "/v1/messages": tool_forms,
    "/v1/messages/count_tokens": tool_forms,
    "/v1/messages/render": tool_forms,
    "/v1/responses": responses_forms,
    "/v1/responses/render": responses_forms,
}


def _messages(value: Any) -> list[Body]:
    """Of one conversation, or of a batch of them."""
    batch = value if isinstance(value, list) and all(isinstance(entry, list) for entry in value) else [value]
    return [message for conversation in batch for message in _objects(conversation)]


def _objects(value: Any) -> list[Body]:
    return [entry for entry in value if isinstance(entry, dict)] if isinstance(value, list) else []


def _no_empty_tools(body: Body) -> bool:
    """`tools: []` is what clients send who have none; only where a call is forced, one is missing."""
    if body.get("tools") != [] or body.get("tool_choice") not in (None, "auto", "none"):
        return False
    for name in ("tools", "tool_choice", "parallel_tool_calls"):
        body.pop(name, None)
    return True


def _plain_detail(holder: Body) -> bool:
    detail = holder.get("detail", "")
    if detail is None:
        del holder["detail"]
    elif isinstance(detail, str) and detail in SAME_DETAILS:
        holder["detail"] = SAME_DETAILS[detail]
    else:
        return False
    return True


def _one_text(item: Body) -> bool:
    """vLLM reads the first part of an earlier answer, and forgets the others."""
    parts = item["content"]
    texts = [str(part["text"]) for part in _objects(parts) if part.get("type") == "output_text" and "text" in part]
    if len(parts) < 2 or len(texts) < len(parts):
        return False
    item["content"] = [{**parts[0], "text": "".join(texts)}]
    return True
