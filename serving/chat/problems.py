"""What went wrong between the chat page and the server, in words that say what to do."""

import re

from openai import (
    APIConnectionError,
    APIError,
    APIStatusError,
    APITimeoutError,
    AuthenticationError,
    NotFoundError,
    OpenAIError,
    RateLimitError,
)

# A part of the request as servers name it, with the field inside it: `messages[0].content[2].image_url.url`.
PLACE = re.compile(r"(messages\[\d+\](?:\.content\[\d+\])?)(?:\.\w+|\[\d+\])*")


def problem_of(error: OpenAIError, url: str, begun: bool = False) -> str:
    """The sentence for the user. The server's own message is kept, with the place it names; a key never is.

    Args:
        error: what the OpenAI SDK raised.
        url: the server's address.
        begun: whether a part of the answer had come before.
    """
    if isinstance(error, APITimeoutError):
        return f"The server at {url} took too long to answer. It may be busy; try again."
    if isinstance(error, APIConnectionError) and begun:
        return f"The connection to {url} broke before the answer was complete. Try again."
    if isinstance(error, APIConnectionError):
        return f"No server answers at {url}. Start it with qwen-vqa serve, or name another: qwen-vqa chat --url URL."
    if isinstance(error, AuthenticationError):
        return (
            f"The server at {url} refuses this page's API key, or it has none (401). "
            "Start the page with a key of that server: qwen-vqa chat --api-key KEY, or with VLLM_API_KEY set."
        )
    if isinstance(error, RateLimitError):
        return f"Too much at once (429). {_message(error)}{_when(error)}"
    if isinstance(error, NotFoundError):
        return f"{_message(error)} (404) The list of models beside is the server's newest; choose from it."
    if isinstance(error, APIStatusError):
        whose = "The server failed" if error.status_code >= 500 else "The server refuses this"
        return f"{whose} ({error.status_code}). {_message(error)}{_when(error)}"
    return f"The server broke off. {_message(error)}"


def place_of(error: OpenAIError) -> str:
    """The field of the request that the server finds at fault (`messages[0].content[2]`), or nothing."""
    return (error.param or "") if isinstance(error, APIError) else ""


def in_users_words(problem: str, place: str, places: dict[str, str]) -> str:
    """The problem with each place that it names, or else the one that the server gave with it, as the user calls it.

    Args:
        problem: from `problem_of`.
        place: from `place_of`.
        places: from `ChatConversation.places`.
    """

    def named_by_user(found: re.Match[str]) -> str:
        words = places.get(found[1])
        if words is None:
            return found[0]
        begins_sentence = problem[: found.start()].rstrip()[-1:] in ("", ".")
        return words[:1].upper() + words[1:] if begins_sentence else words

    said = PLACE.sub(named_by_user, problem)
    named = PLACE.match(place)
    if said == problem and named and named[1] in places:
        said = f"{problem} That is {places[named[1]]}."
    return said


def _message(error: OpenAIError) -> str:
    """The server's words, without the SDK's "Error code: 400 - {...}" around them."""
    body = getattr(error, "body", None)
    inner = body.get("error", body) if isinstance(body, dict) else None
    return str(inner["message"]) if isinstance(inner, dict) and inner.get("message") else str(error)


def _when(error: APIStatusError) -> str:
    seconds = error.response.headers.get("retry-after", "")
    return f" The server says: try again in {seconds} s." if seconds.isdecimal() else ""
