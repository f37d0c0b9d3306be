"""GET /v1/models/{model}, which OpenAI has beside the list, and vLLM has not."""

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response

from qwen_vqa.serving.errors.refusals import RefusedError
from qwen_vqa.serving.vllm_server_api import ErrorResponse, ModelCard, models

PATH = "/v1/models/{model}"
HUB_ID_PATH = "/v1/models/{organisation}/{model}"  # the name of a checkpoint from the hub has a slash


def model_names(app: FastAPI) -> list[str]:
    """Every name that a request may give, adapters last."""
    there = app.state.openai_serving_models
    return [*(model.name for model in there.base_model_paths), *there.lora_requests]


def attach_model_card(app: FastAPI) -> None:
    """Add the route: the entry of one model or adapter in the list."""

    @app.get(PATH, response_model=ModelCard, responses={404: {"model": ErrorResponse}})
    async def retrieve_model(model: str, request: Request) -> Response:
        """The model's or adapter's card."""
        cards = (await models(request).show_available_models()).data
        for card in cards:
            if card.id == model:
                return JSONResponse(card.model_dump())
        there = ", ".join(card.id for card in cards)
        refusal = RefusedError(
            404, f"there is no model {model[:60]!r}; there are: {there}.", code="model_not_found", param="model"
        )
        return refusal.response()

    @app.get(HUB_ID_PATH, response_model=ModelCard, responses={404: {"model": ErrorResponse}})
    async def retrieve_hub_model(organisation: str, model: str, request: Request) -> Response:
        """The card of a model whose name is a hub id."""
        return await retrieve_model(f"{organisation}/{model}", request)
