"""What vLLM's types find wrong with a request, in one sentence that names the field and what was expected.

pydantic tries every form that a field may have and reports each of them, a few hundred for an item of `input`.
"""

import re
from collections.abc import Iterable
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.responses import Response

from qwen_vqa.serving.errors.refusals import RefusedError
from qwen_vqa.serving.vllm_server_api import (
    AnthropicMessagesRequest,
    ChatCompletionRequest,
    CompletionRequest,
    ResponsesRequest,
)

Error = dict[str, Any]
_SHOWN_FORMS = 8
_SHOWN_CHARACTERS = 60
# What vLLM adds to a sentence: the parameter, which the error names anyway, and the object that it made of the request.
_FOR_DEVELOPERS = re.compile(r" \(parameter=.*\)$|: \{'.*", re.DOTALL)
_KINDS = {
    "string": "text",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "list": "a list",
    "dict": "an object",
    "model": "an object",
    "dataclass": "an object",
    "none": "null",
}
_BOUNDS = {
    "greater_than_equal": ("at least", "ge"),
    "greater_than": ("more than", "gt"),
    "less_than_equal": ("at most", "le"),
    "less_than": ("less than", "lt"),
}
_PLAIN = {
    "missing": "it is missing",
    "extra_forbidden": "it is not known here; leave it out",
    "finite_number": "it must be a finite number",
}


def request_fields() -> frozenset[str]:
    """The names of a request's fields, in all APIs."""
    requests = (ChatCompletionRequest, CompletionRequest, ResponsesRequest, AnthropicMessagesRequest)
    return frozenset(name for request in requests for name in request.model_fields)


def attach_validation_errors(app: FastAPI) -> None:
    """Answer requests that do not fit their types with 400 in our words, in place of vLLM's handler.

    vLLM has built its stack already, with its own handler in it.
    """
    app.add_exception_handler(RequestValidationError, _answer)  # type: ignore[arg-type] # of this exception alone
    layer: Any = app.middleware_stack
    while layer is not None:
        if isinstance(layer, ExceptionMiddleware):
            layer.add_exception_handler(RequestValidationError, _answer)  # type: ignore[arg-type] # as above
        layer = getattr(layer, "app", None)


async def _answer(request: Request, error: RequestValidationError) -> Response:
    return refusal_of(error.errors(), error.body).response()


def refusal_of(errors: Iterable[Any], body: Any) -> RefusedError:
    """The refusal that says what is wrong.

    Args:
        errors: as pydantic lists them; FastAPI has "body" first in each place.
        body: what was sent.
    """
    found = [error for error in errors if isinstance(error, dict)]
    for error in found:
        fault = (error.get("ctx") or {}).get("error")
        if isinstance(fault, Exception):  # vLLM's own check, which speaks in words
            param = getattr(fault, "parameter", None) or _place(error, body)
            return RefusedError(400, sentence(str(fault)), param=param)
    if not found:
        return RefusedError(400, sentence("; ".join(map(str, errors)) or "the request is not as it has to be"))
    first = _path(found[0], body)[:1]
    place, text = _nearest([error for error in found if _path(error, body)[:1] == first], body)
    return RefusedError(400, sentence(f"{place or 'the body'}: {text}"), param=place)


def _nearest(errors: list[Error], body: Any) -> tuple[str | None, str]:
    """Where the request comes nearest to fitting, and what was expected there."""
    errors = _of_its_kind(errors, body)
    paths = [_path(error, body) for error in errors]
    depth = max(map(len, paths))
    deepest = [index for index, path in enumerate(paths) if len(path) == depth]
    places = {paths[index] for index in deepest}
    if len(places) == 1:
        return _written(places.pop()), _faults([errors[index] for index in deepest])
    parent = paths[deepest[0]][:-1]
    here = [index for index in deepest if paths[index][:-1] == parent]
    faults = {f"{paths[index][-1]}: {_faults([errors[index]])}" for index in here}
    return _written(parent), " or ".join(sorted(faults)[:_SHOWN_FORMS])


def _of_its_kind(errors: list[Error], body: Any) -> list[Error]:
    """Of a field that may be one of several objects, told apart by `type`, the errors of the one that was meant.

    pydantic names the forms that it tried in the place, between the steps that lead through the body. Where none of
    them has this `type`, that is what is wrong.
    """
    other = [error for error in errors if error.get("type") == "literal_error" and error["loc"][-1] in ("type", "role")]
    tried = {tuple(error["loc"][:-1]) for error in other}
    deep = max((len(_path(error, body)) for error in other), default=0)
    meant = [
        error
        for error in errors
        if not any(tuple(error["loc"][: len(form)]) == form for form in tried) and len(_path(error, body)) >= deep - 1
    ]
    return meant or other


def _faults(errors: list[Error]) -> str:
    """What was expected at one place, in each of the forms that it may have."""
    got = _shown(errors[0].get("input"))
    expected = list(dict.fromkeys(name for error in errors for name in _expected(error)))
    if expected:
        more = f" or {len(expected) - _SHOWN_FORMS} others" if len(expected) > _SHOWN_FORMS else ""
        return f"expected {' or '.join(expected[:_SHOWN_FORMS])}{more}; got {got}"
    return " or ".join(list(dict.fromkeys(_fault(error) for error in errors))[:_SHOWN_FORMS])


def _path(error: Error, body: Any) -> tuple[str | int, ...]:
    """The steps of an error's place that lead through the body; the others are names of pydantic's own."""
    steps: list[str | int] = []
    here = body
    location = [step for step in error.get("loc", ()) if step != "body"]
    for number, step in enumerate(location):
        if isinstance(here, dict) and isinstance(step, str):
            if step in here:
                here = here[step]
            elif not (error.get("type") == "missing" and number == len(location) - 1):
                continue
            steps.append(step)
        elif isinstance(here, list) and isinstance(step, int) and step < len(here):
            here = here[step]
            steps.append(step)
    return tuple(steps)


def _place(error: Error, body: Any) -> str | None:
    return _written(_path(error, body))


def _written(path: tuple[str | int, ...]) -> str | None:
    """("messages", 0, "content") as messages[0].content."""
    text = "".join(f"[{step}]" if isinstance(step, int) else f".{step[:_SHOWN_CHARACTERS]}" for step in path)
    return text.lstrip(".") or None


def _expected(error: Error) -> list[str]:
    """The values or kinds of value that would have fitted, where it is about these."""
    kind = str(error.get("type"))
    if kind in ("literal_error", "enum"):
        return re.findall(r"'[^']*'", str((error.get("ctx") or {}).get("expected")))
    name = _KINDS.get(kind.partition("_")[0])
    return [name] if name and kind.rpartition("_")[2] in ("type", "parsing", "float", "required") else []


def _fault(error: Error) -> str:
    kind, context = str(error.get("type")), error.get("ctx") or {}
    if kind in _BOUNDS:
        words, name = _BOUNDS[kind]
        return f"it must be {words} {context.get(name)}; got {_shown(error.get('input'))}"
    return _PLAIN.get(kind) or str(error.get("msg", kind))


def _shown(value: Any) -> str:
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "a list"
    return "null" if value is None else repr(value)[:_SHOWN_CHARACTERS]


def sentence(text: str) -> str:
    """A fault's text as one sentence, without what vLLM adds to it for developers."""
    text = _FOR_DEVELOPERS.sub("", text.strip().removeprefix("Value error, "))
    return text if text.endswith((".", "!", "?")) else f"{text}."
