"""A running server, as `qwen-vqa verify` sees it: what it makes of a request, stage by stage."""

import io
import warnings
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np
from openai import APIConnectionError, APIStatusError, OpenAI

from qwen_vqa.plugin.errors import UserError, reason_of
from qwen_vqa.train.verify.verify_cases import VerifyCase


@dataclass(frozen=True)
class ServedAnswer:
    """An answer's tokens, the log-probability of each, and its text."""

    token_ids: list[int]
    logprobs: list[float]
    text: str = ""


@dataclass(frozen=True)
class ServedPrompt:
    """Token ids, image tokens included, and the pixels [images, 3, size, size] that images became.

    `pixels` is None where there are none, or where the server does not show them.
    """

    token_ids: list[int]
    pixels: np.ndarray | None


@dataclass(frozen=True)
class ServerSettings:
    """What a server computes in and how it decodes, as it says itself.

    Attributes:
        float_types: by part: language_model, vision_encoder, connector.
        decoding: the sampling parameters of a request that sets none.
    """

    float_types: dict[str, str]
    decoding: dict[str, float]

    @property
    def is_plain_greedy(self) -> bool:
        """Whether a request that sets nothing gets the likeliest token each time, without penalties."""
        rest = {name: value for name, value in self.decoding.items() if name not in ("temperature", "max_tokens")}
        neutral = {"repetition_penalty": 1, "presence_penalty": 0, "frequency_penalty": 0}
        penalised = any(rest.get(name, value) != value for name, value in neutral.items())
        return self.decoding.get("temperature") == 0 and not penalised


# Greedy, whatever sampling the checkpoint's generation config asks for.
GREEDY = {"temperature": 0, "top_p": 1.0, "top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}


VIEWS_AT_ONCE = 16


@dataclass(frozen=True)
class ServedModel:
    """A model of a server, by name. `extra` goes into every request (such as a chat template).

    Args:
        url: the API's address, ending in /v1.
        decoding: sampling parameters of the requests; empty: what the server has for a client that sets none.
    """

    url: str
    name: str
    api_key: str = "none"
    extra: dict[str, Any] | None = None
    decoding: dict[str, Any] = field(default_factory=lambda: dict(GREEDY))

    def settings(self) -> ServerSettings | None:
        """What the server says of itself; None where it keeps that to itself."""
        reply = self._get(f"{self.url.removesuffix('/v1')}/verify/settings")
        return None if reply.status_code != 200 else ServerSettings(**reply.json())

    def prompt(self, case: VerifyCase) -> ServedPrompt:
        """What the server makes of a request before the model sees it."""
        body = {"model": self.name, "messages": case.request_messages(), "mm_payload": "tensors", **(self.extra or {})}
        reply = self._post(f"{self.url}/chat/completions/render", may_be_closed=True, json=body)
        if reply.status_code != 200:
            body |= {"max_tokens": 1, "return_token_ids": True}
            reply = self._post(f"{self.url}/chat/completions", json=body)
            return ServedPrompt(reply.json()["prompt_token_ids"], None)
        items = ((reply.json().get("features") or {}).get("kwargs_data") or {}).get("image") or []
        if not items:
            return ServedPrompt(reply.json()["token_ids"], None)
        # vLLM's own reader of its own wire format.
        from vllm.entrypoints.scale_out.token_in_token_out.mm_serde import decode_mm_kwargs_item

        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The given buffer is not writable")  # nor is it written to
            pixels = [np.asarray(decode_mm_kwargs_item(item)["pixel_values"].data.float()) for item in items]  # type: ignore[union-attr] # ours is a tensor
        return ServedPrompt(reply.json()["token_ids"], np.concatenate(pixels))

    def image_features(self, pixels: np.ndarray, together: int = 1) -> np.ndarray | None:
        """Connected features [views, tokens, text width] of pixels; None where the server keeps them to itself.

        Args:
            together: how many views have one image's features between them.
        """
        found, at_once = [], max(together, VIEWS_AT_ONCE // together * together)
        for start in range(0, len(pixels), at_once):
            body = io.BytesIO()
            np.save(body, pixels[start : start + at_once].astype(np.float32))
            base = self.url.removesuffix("/v1")
            reply = self._post(f"{base}/verify/image_features", may_be_closed=True, content=body.getvalue())
            if reply.status_code != 200:
                return None
            found.append(np.load(io.BytesIO(reply.content)))
        return np.concatenate(found)

    def answer(self, case: VerifyCase, max_tokens: int) -> ServedAnswer:
        """The answer to a conversation, of so many tokens at most."""
        client = OpenAI(base_url=self.url, api_key=self.api_key, timeout=600)
        try:
            reply = client.chat.completions.create(
                model=self.name,
                messages=case.request_messages(),  # type: ignore[arg-type] # the SDK types each part
                max_tokens=max_tokens,
                logprobs=True,
                extra_body={**self.decoding, "return_tokens_as_token_ids": True, **(self.extra or {})},
            )
        except (APIStatusError, APIConnectionError) as error:
            raise UserError(f"{self.url} did not answer: {error}") from error
        tokens = reply.choices[0].logprobs.content  # type: ignore[union-attr] # asked for
        return ServedAnswer(
            [int(token.token.removeprefix("token_id:")) for token in tokens or []],
            [token.logprob for token in tokens or []],
            reply.choices[0].message.content or "",
        )

    def _get(self, url: str) -> httpx.Response:
        try:
            return httpx.get(url, headers={"Authorization": f"Bearer {self.api_key}"}, timeout=600)
        except httpx.HTTPError as error:
            raise UserError(f"no answer from {url}: {reason_of(error)}. Is the server running?") from error

    def _post(self, url: str, may_be_closed: bool = False, **request: Any) -> httpx.Response:
        headers = {"Authorization": f"Bearer {self.api_key}"}
        try:
            reply = httpx.post(url, headers=headers, timeout=600, **request)
        except httpx.HTTPError as error:
            raise UserError(f"no answer from {url}: {reason_of(error)}. Is the server running?") from error
        if reply.status_code in (403, 404) and may_be_closed:
            return reply
        if reply.status_code != 200:
            raise UserError(f"{url} answered {reply.status_code}: {reply.text[:300]}")
        return reply


def served_models(url: str, api_key: str) -> list[str]:
    """The names a server answers to.

    Raises:
        UserError: nothing answers there.
    """
    try:
        return [model.id for model in OpenAI(base_url=url, api_key=api_key).models.list()]
    except (APIStatusError, APIConnectionError) as error:
        raise UserError(
            f"no server at {url}: {reason_of(error)}. Give the address with /v1, and --api-key if it has one."
        ) from error
