"""Adapters that come and go while the server runs: vLLM's routes, with checks before an adapter is let in.

Beside other things, vLLM's own routes leave an unloaded adapter in its slot and give the next one a new number, until
the slots are full; on a CPU the one in the last slot then answers for the base model (see adapter_slots). Here an
adapter's number is one of 1 to --max-adapters, and is given to another when the last request for it has ended, so that
vLLM never has more numbers than slots. (vLLM's `lora_int_id`; an adapter of the same number replaces the one before.)
"""

import asyncio
import contextlib
import re
from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path

from fastapi import Depends, FastAPI, Request
from fastapi.responses import Response

from qwen_vqa.plugin.config import QwenVqaConfig
from qwen_vqa.plugin.lora.adapter import check_adapter, linear_layers
from qwen_vqa.plugin.lora.adapter_settings import AdapterError
from qwen_vqa.serving.adapters.adapters_file import AdaptersFile
from qwen_vqa.serving.adapters.models_in_use import ModelsInUse
from qwen_vqa.serving.errors.refusals import RefusedError
from qwen_vqa.serving.observability.log import say
from qwen_vqa.serving.vllm_server_api import (
    EngineClient,
    EngineDeadError,
    LoadLoRAAdapterRequest,
    LoRARequest,
    OpenAIServingModels,
    UnloadLoRAAdapterRequest,
    models,
    validate_json_request,
)

LOAD_PATH = "/v1/load_lora_adapter"
UNLOAD_PATH = "/v1/unload_lora_adapter"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")
# A client that comes back sooner would only ask again.
_DRAIN_SECONDS = 1.0


class AdapterChanges:
    """Loads and unloads adapters, one at a time.

    Args:
        config: the checkpoint's, for `check_adapter`.
        most: adapters held at once, those that are leaving included.
        max_rank: for which vLLM has room.
        in_use: the requests that run.
        note: what is to be said of an adapter (name, folder) on this base once it is loaded; None on a 16-bit base.
        kept: where changes are kept for the next start.
    """

    def __init__(
        self,
        config: QwenVqaConfig,
        most: int,
        max_rank: int,
        in_use: ModelsInUse,
        note: Callable[[str, Path], str] | None = None,
        kept: AdaptersFile | None = None,
    ):
        self._config = config
        self._layers = linear_layers(config)
        self._most = most
        self._max_rank = max_rank
        self._in_use = in_use
        self._note = note
        self._kept = kept
        self._one_at_a_time = asyncio.Lock()
        # Unloaded, but still answering requests that came before: by name, the number it holds and who waits for it.
        self._leaving: dict[str, tuple[int, asyncio.Task]] = {}
        # vLLM's prefix cache knows an adapter by name and path alone: these are in it with weights that are no more.
        self._stale: set[tuple[str, str]] = set()

    async def load(self, wanted: LoadLoRAAdapterRequest, served: OpenAIServingModels) -> None:
        """Serve an adapter, or with `load_inplace` put another in the place of one.

        Raises:
            RefusedError: what is wrong with the name, the folder, the adapter; or there is no place for it.
        """
        async with self._one_at_a_time:
            self._check_name(wanted, served)
            # First of all whether there is a place: the check reads the adapter's file.
            number = self._number(wanted.lora_name, served)
            path = await self._checked_path(wanted.lora_path)
            adapter = LoRARequest(
                wanted.lora_name, number, path, load_inplace=True, is_3d_lora_weight=wanted.is_3d_lora_weight
            )
            async with self._keeping(adapter.lora_name, path):
                await self._hand_over(adapter, served.engine_client)
            if before := served.lora_requests.get(adapter.lora_name):
                self._stale.add((before.lora_name, before.lora_path))
            if (adapter.lora_name, adapter.lora_path) in self._stale:
                await served.engine_client.reset_prefix_cache(reset_running_requests=True)
                self._stale.clear()
            # What requests carry along must not say `load_inplace`: vLLM would read the folder again in every step.
            adapter.load_inplace = False
            served.lora_requests[adapter.lora_name] = adapter
            if self._note is not None:
                say(self._note(adapter.lora_name, Path(path)))

    async def unload(self, name: str, served: OpenAIServingModels) -> None:
        """Serve an adapter no more. Requests that run are answered to their end.

        Raises:
            RefusedError: there is no such adapter.
        """
        async with self._one_at_a_time:
            if served.is_base_model(name):
                raise RefusedError(
                    400, f"{name!r} is the base model; only adapters can be unloaded.", param="lora_name"
                )
            left_out = self._kept is not None and self._kept.entries.get(name) is not None
            if name not in served.lora_requests and not left_out:
                there = ", ".join(served.lora_requests) or "none"
                raise RefusedError(404, f"there is no adapter {name!r}; there are: {there}.", param="lora_name")
            async with self._keeping(name, None):
                adapter = served.lora_requests.pop(name, None)
            if adapter is None:  # of the file, whose folder was gone when the server started
                return
            self._stale.add((name, adapter.lora_path))
            self._leaving[name] = (adapter.lora_int_id, asyncio.create_task(self._see_off(name)))

    def _keeping(self, name: str, folder: str | None) -> contextlib.AbstractAsyncContextManager[None]:
        return contextlib.nullcontext() if self._kept is None else self._kept.change(name, folder)

    async def _see_off(self, name: str) -> None:
        await self._in_use.end_of(name)
        del self._leaving[name]

    def _check_name(self, wanted: LoadLoRAAdapterRequest, served: OpenAIServingModels) -> None:
        name = wanted.lora_name
        if not _NAME.fullmatch(name):
            raise RefusedError(
                400,
                f"{name[:60]!r} cannot be an adapter's name: letters, digits and . _ : - may be in it, at most 128, "
                "and the first is a letter or a digit.",
                param="lora_name",
            )
        if served.is_base_model(name):
            raise RefusedError(400, f"{name!r} is the base model's name; give another.", param="lora_name")
        if name in served.lora_requests and not wanted.load_inplace:
            raise RefusedError(
                400,
                f"there is an adapter {name!r} already. Unload it first, or replace it with load_inplace: true.",
                param="lora_name",
            )
        if name in self._leaving:
            raise self._wait_for(f"the adapter {name!r} that was unloaded", [name])

    def _number(self, name: str, served: OpenAIServingModels) -> int:
        if name in served.lora_requests:
            return served.lora_requests[name].lora_int_id
        taken = {adapter.lora_int_id for adapter in served.lora_requests.values()}
        taken |= {number for number, _ in self._leaving.values()}
        free = [number for number in range(1, self._most + 1) if number not in taken]
        if free:
            return free[0]
        full = f"this server holds {self._most} adapters (--max-adapters)"
        if self._leaving:
            raise self._wait_for(f"{full}; of them {', '.join(self._leaving)}, unloaded,", list(self._leaving))
        raise RefusedError(
            409,
            f"{full}: {', '.join(served.lora_requests)}. Unload one with POST {UNLOAD_PATH}, "
            "or replace one with load_inplace: true under its name.",
            code="adapters_full",
        )

    def _wait_for(self, what: str, names: list[str]) -> RefusedError:
        requests = sum(self._in_use.count(name) for name in names)
        return RefusedError(
            409,
            f"{what} still answers {requests} requests. Try again when they are done.",
            code="adapter_in_use",
            retry_after=_DRAIN_SECONDS,
        )

    async def _checked_path(self, path: str) -> str:
        if not path:
            raise RefusedError(400, "lora_path is empty; give the adapter's folder on this server.", param="lora_path")
        try:
            folder = Path(path).expanduser().absolute()
            summary = await asyncio.to_thread(check_adapter, folder, self._config, self._layers)
        except (AdapterError, RuntimeError) as error:  # RuntimeError: ~ of somebody who has no home
            raise RefusedError(400, str(error)[:2000], param="lora_path") from error
        if summary.rank > self._max_rank:
            raise RefusedError(
                400,
                f"the adapter {folder} has rank {summary.rank}; this server has room for {self._max_rank} at most. "
                f"Start it with --max-lora-rank {summary.rank}.",
                param="lora_path",
            )
        return str(folder)

    async def _hand_over(self, adapter: LoRARequest, engine: EngineClient) -> None:
        try:
            await engine.add_lora(adapter)
        except EngineDeadError:
            raise
        except Exception as error:  # whatever its worker found: it comes back as a plain Exception
            raise RefusedError(400, f"vLLM does not take the adapter: {error}", param="lora_path") from error


def attach_adapter_routes(app: FastAPI, changes: AdapterChanges) -> None:
    """Add POST /v1/load_lora_adapter and /v1/unload_lora_adapter, with vLLM's own bodies and answers."""

    @app.post(LOAD_PATH, dependencies=[Depends(validate_json_request)])
    async def load_lora_adapter(wanted: LoadLoRAAdapterRequest, request: Request) -> Response:
        """Serve the adapter in a folder of this machine as a model by `lora_name`."""
        try:
            await changes.load(wanted, models(request))
        except RefusedError as refusal:
            return refusal.response()
        return Response(f"Success: LoRA adapter '{wanted.lora_name}' added successfully.", HTTPStatus.OK)

    @app.post(UNLOAD_PATH, dependencies=[Depends(validate_json_request)])
    async def unload_lora_adapter(wanted: UnloadLoRAAdapterRequest, request: Request) -> Response:
        """Serve the adapter `lora_name` no more; what it is answering goes on to its end."""
        try:
            await changes.unload(wanted.lora_name, models(request))
        except RefusedError as refusal:
            return refusal.response()
        return Response(f"Success: LoRA adapter '{wanted.lora_name}' removed successfully.", HTTPStatus.OK)
