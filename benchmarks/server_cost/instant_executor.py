"""An engine whose model answers at once: what is measured of a server then is everything but the model.

    qwen-vqa serve --distributed-executor-backend qwen_vqa.benchmarks.server_cost.instant_executor.InstantExecutor

The model is loaded, scheduled and given its KV cache as ever; a step computes nothing, and every request whose prompt
has been scheduled gets the same token. The class of the executor is vLLM's own extension point; what a step's input and
output look like is vLLM's inside (0.32 and 0.33: `SchedulerOutput`, `ModelRunnerOutput`).
"""

from concurrent.futures import Future
from typing import Any

from vllm.v1.executor.uniproc_executor import UniProcExecutor
from vllm.v1.outputs import ModelRunnerOutput

TOKEN = 64  # "a" in the tokenizers of Qwen and of the demo


class InstantExecutor(UniProcExecutor):
    """One process, whose steps take no time."""

    def _init_executor(self) -> None:
        super()._init_executor()
        self._prompts: dict[str, int] = {}  # request to its prompt's length

    def execute_model(self, scheduler_output: Any, non_block: bool = False) -> Any:
        """A token for each request that has no prompt left to be read."""
        step = scheduler_output
        for name in step.finished_req_ids:
            self._prompts.pop(name, None)
        computed = {}
        for request in step.scheduled_new_reqs:
            self._prompts[request.req_id] = len(request.prompt_token_ids)
            computed[request.req_id] = request.num_computed_tokens
        cached = step.scheduled_cached_reqs
        computed |= dict(zip(cached.req_ids, cached.num_computed_tokens, strict=True))
        names = list(step.num_scheduled_tokens)
        tokens = [
            [TOKEN] if computed[name] + step.num_scheduled_tokens[name] >= self._prompts[name] else [] for name in names
        ]
        places = {name: place for place, name in enumerate(names)}
        output = ModelRunnerOutput(req_ids=names, req_id_to_index=places, sampled_token_ids=tokens)
        if not non_block:
            return output
        future: Future[ModelRunnerOutput] = Future()
        future.set_result(output)
        return future
