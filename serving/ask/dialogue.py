"""Questions to a server through the OpenAI SDK, each with what was said before it."""

import re
from collections.abc import Callable
from typing import Any

from openai import APIConnectionError, APIStatusError, APITimeoutError, OpenAI, OpenAIError

from qwen_vqa.plugin.errors import UserError
from qwen_vqa.plugin.images.message_parts import user_message
from qwen_vqa.serving.ask.words import Asked

# A model may write what a terminal obeys.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class Dialogue:
    """A conversation with one model of a server.

    Args:
        url: the API's address, with /v1.
        model: its name; None for the first that the server lists.
        system: a system prompt, or None.
        timeout: seconds to wait for the next part of an answer.
        options: fields of each request.

    Raises:
        UserError: the server cannot be asked, and why.
    """

    def __init__(
        self, url: str, api_key: str, model: str | None, system: str | None, timeout: float, options: dict[str, Any]
    ):
        self._url, self._options = url, options
        self._client = OpenAI(base_url=url, api_key=api_key, timeout=timeout, max_retries=0)
        self._system: list[Any] = [{"role": "system", "content": system}] if system is not None else []
        self._turns: list[Any] = []
        self.model = model or self._first_model()

    def forget(self) -> None:
        """Begin anew."""
        self._turns = []

    def ask(self, asked: Asked, show: Callable[[str], None]) -> str:
        """The answer, whose pieces are shown as they come. It is remembered with its question, also if it is cut short
        by Ctrl-C; a question that failed is not.

        Raises:
            UserError: the server refused, or cannot be reached.
        """
        question: Any = user_message(asked.question or "", asked.pictures)
        answer = ""
        try:
            stream: Any = self._client.chat.completions.create(
                model=self.model,
                messages=[*self._system, *self._turns, question],
                stream=True,
                **self._options,
            )
            with stream:
                for chunk in stream:
                    for choice in chunk.choices:
                        piece = choice.delta.content or ""
                        answer += piece
                        show(_CONTROL.sub("", piece))
                        if choice.finish_reason == "length":
                            show(" [cut off: --max-tokens]" if "max_tokens" in self._options else " [cut off]")
        except OpenAIError as error:
            if answer:
                show("\n")
            raise UserError(self._problem(error)) from error
        finally:
            if answer:
                self._turns += [question, {"role": "assistant", "content": answer}]
        show("\n")
        return answer

    def _first_model(self) -> str:
        try:
            names = [model.id for model in self._client.models.list()]
        except OpenAIError as error:
            raise UserError(self._problem(error)) from error
        if not names:
            raise UserError(f"the server at {self._url} lists no model; name one with --model.")
        return names[0]

    def _problem(self, error: OpenAIError) -> str:
        """In one line, with the server's own words."""
        if isinstance(error, APITimeoutError):
            return f"the server at {self._url} took too long to answer; --timeout gives it longer."
        if isinstance(error, APIConnectionError):
            return f"no server responds at {self._url}. Start one with `qwen-vqa serve`, or name another with --url."
        if not isinstance(error, APIStatusError):
            return f"{self._url}: {_one_line(str(error))}"
        body = error.body if isinstance(error.body, dict) else {}
        inner = body.get("error", body)
        message = inner.get("message") if isinstance(inner, dict) else None
        said = _one_line(str(message or error))
        key = " Give a key of that server with --api-key or OPENAI_API_KEY." if error.status_code == 401 else ""
        return f"{self._url} answers {error.status_code}: {said}{key}"


def _one_line(text: str) -> str:
    return " ".join(_CONTROL.sub(" ", text).split())[:500]
