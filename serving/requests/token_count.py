"""A route that says what a chat request would cost before it is sent, by the renderer that would render it."""

from dataclasses import replace
from typing import Any

from fastapi import Depends, FastAPI, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel

from qwen_vqa.serving.vllm_server_api import (
    ChatCompletionRequest,
    ErrorResponse,
    ModelConfig,
    ServingRender,
    TokenizeParams,
    validate_json_request,
)

PATH = "/v1/chat/completions/tokens"
# A prompt too long for the model is counted, too, that its sender learns by how much; but not a book.
COUNTED = 16


class TokenCountRequest(ChatCompletionRequest):
    """A chat request whose prompt may be longer than the model's context."""

    def build_tok_params(self, model_config: ModelConfig) -> TokenizeParams:
        """vLLM's, with a longer context unless the request has its prompt cut."""
        params = super().build_tok_params(model_config)
        if self.truncate_prompt_tokens is not None:
            return params
        return replace(params, max_total_tokens=COUNTED * model_config.max_model_len)


class TokenCount(BaseModel):
    """What a prompt costs; `text_tokens` holds the template's own tokens, too."""

    prompt_tokens: int
    image_tokens: int
    text_tokens: int
    max_model_len: int


def attach_token_count(app: FastAPI) -> None:
    """Add POST /v1/chat/completions/tokens: the body of a chat request in, a `TokenCount` out."""

    @app.post(
        PATH,
        response_model=TokenCount,
        responses={400: {"model": ErrorResponse}, 404: {"model": ErrorResponse}},
        dependencies=[Depends(validate_json_request)],
    )
    async def count_chat_tokens(request: TokenCountRequest, raw_request: Request) -> JSONResponse:
        """Tokens of a chat request's prompt. Nothing is generated."""
        renderer: ServingRender = raw_request.app.state.serving_render
        unknown = await renderer._check_model(request)
        if unknown is not None:
            return _error(unknown)
        # Not through vLLM's image cache: the engine would miss what it never got.
        rendered = await renderer.online_renderer.render_chat(request, skip_mm_cache=True)
        if isinstance(rendered, ErrorResponse):
            return _error(rendered)
        engine_input: Any = rendered[1][0]  # of a chat, never an encoder's and a decoder's apart
        prompt = len(engine_input["prompt_token_ids"])
        images = sum(place.length for place in engine_input.get("mm_placeholders", {}).get("image", ()))
        count = TokenCount(
            prompt_tokens=prompt,
            image_tokens=images,
            text_tokens=prompt - images,
            max_model_len=renderer.model_config.max_model_len,
        )
        return JSONResponse(count.model_dump())


def _error(response: ErrorResponse) -> JSONResponse:
    return JSONResponse(response.model_dump(), status_code=response.error.code)
