"""The original's stack, competently: transformers' generate behind FastAPI.

python -m qwen_vqa.benchmarks.alternatives.transformers_server my-model --port 8010                # one at a time
python -m qwen_vqa.benchmarks.alternatives.transformers_server my-model --port 8010 --batch 8      # static batches

Requests wait in one queue. A worker thread takes one, or in batches as many as wait, up to --batch; a batch ends
when its longest answer does. Pictures are decoded and prompts made as the project's own processor does it. Tokens
are streamed as they come, with usage in each event.
"""

import argparse
import asyncio
import base64
import io
import json
import threading
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse
from PIL import Image
from transformers.generation.streamers import BaseStreamer

from qwen_vqa.plugin.checkpoint_files import check_checkpoint
from qwen_vqa.train.model.reference_checkpoint import load_processor, load_reference


@dataclass
class GenerationJob:
    """A request: its conversation in the processor's form, and where its tokens go (None: the end)."""

    messages: list[dict[str, Any]]
    images: list[Image.Image]
    tokens: int
    loop: asyncio.AbstractEventLoop
    out: asyncio.Queue = field(default_factory=asyncio.Queue)

    def put(self, item: Any) -> None:
        """From the worker's thread."""
        self.loop.call_soon_threadsafe(self.out.put_nowait, item)


class _ToJobs(BaseStreamer):
    """A streamer for a batch: transformers' TextIteratorStreamer takes only one."""

    def __init__(self, jobs: list[GenerationJob]) -> None:
        self._jobs = jobs
        self._count = 0
        self._prompt = True

    def put(self, value: torch.Tensor) -> None:
        if self._prompt:  # generate hands over the prompt first
            self._prompt = False
            return
        self._count += 1
        for job, token in zip(self._jobs, value.reshape(-1).tolist(), strict=True):
            if self._count <= job.tokens:
                job.put(token)
            if self._count == job.tokens:
                job.put(None)

    def end(self) -> None:
        """Every job has ended already."""


class Worker:
    """The model and its queue."""

    def __init__(self, folder: Path, dtype: torch.dtype, batch: int) -> None:
        self.processor = load_processor(folder)
        self.processor.tokenizer.padding_side = "left"
        self.model = load_reference(folder, dtype).eval()
        self._dtype = dtype
        self._batch = batch
        self.waiting: SimpleQueue[GenerationJob] = SimpleQueue()
        threading.Thread(target=self._work, daemon=True).start()

    def _work(self) -> None:
        while True:
            jobs = [self.waiting.get()]
            while len(jobs) < self._batch:
                try:
                    jobs.append(self.waiting.get_nowait())
                except Empty:
                    break
            try:
                self._generate(jobs)
            except Exception as error:
                for job in jobs:
                    job.put(error)

    @torch.inference_mode()
    def _generate(self, jobs: list[GenerationJob]) -> None:
        texts = [
            self.processor.apply_chat_template(job.messages, tokenize=False, add_generation_prompt=True) for job in jobs
        ]
        images = [image for job in jobs for image in job.images]
        inputs = self.processor(text=texts, images=images or None, return_tensors="pt", padding=True)
        if "pixel_values" in inputs:
            inputs["pixel_values"] = inputs["pixel_values"].to(self._dtype)
        longest = max(job.tokens for job in jobs)
        self.model.generate(
            **inputs, max_new_tokens=longest, min_new_tokens=longest, do_sample=False, streamer=_ToJobs(jobs)
        )


def application(worker: Worker, name: str) -> FastAPI:
    """OpenAI's chat route, always streaming and always as long as asked for."""
    app = FastAPI()

    @app.get("/v1/models")
    def models() -> dict[str, Any]:
        return {"object": "list", "data": [{"id": name, "object": "model"}]}

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> StreamingResponse:
        body = await request.json()
        messages, images = await asyncio.to_thread(_parts, body["messages"])
        job = GenerationJob(messages, images, body["max_tokens"], asyncio.get_running_loop())
        worker.waiting.put(job)
        return StreamingResponse(_events(job, worker, name), media_type="text/event-stream")

    return app


async def _events(job: GenerationJob, worker: Worker, name: str) -> AsyncIterator[str]:
    tokens: list[int] = []
    text = ""
    while (token := await job.out.get()) is not None:
        if isinstance(token, Exception):
            yield f"data: {json.dumps({'error': {'message': str(token)}})}\n\n"
            return
        tokens.append(token)
        whole = worker.processor.tokenizer.decode(tokens)
        new, text = whole[len(text) :], whole
        finish = "length" if len(tokens) == job.tokens else None
        choice = {"index": 0, "delta": {"content": new}, "finish_reason": finish}
        usage = {"prompt_tokens": 0, "completion_tokens": len(tokens), "total_tokens": len(tokens)}
        event = {"object": "chat.completion.chunk", "model": name, "choices": [choice], "usage": usage}
        yield f"data: {json.dumps(event)}\n\n"
    yield "data: [DONE]\n\n"


def _parts(messages: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[Image.Image]]:
    """OpenAI's messages in the processor's form, and their decoded pictures. Data URLs alone."""
    images: list[Image.Image] = []
    converted = []
    for message in messages:
        content = message["content"]
        parts: list[dict[str, Any]] = [{"type": "text", "text": content}] if isinstance(content, str) else content
        shown = []
        for part in parts:
            if part["type"] == "image_url":
                data = base64.b64decode(part["image_url"]["url"].partition(",")[2])
                images.append(Image.open(io.BytesIO(data)).convert("RGB"))
                shown.append({"type": "image"})
            else:
                shown.append(part)
        converted.append({"role": message["role"], "content": shown})
    return converted, images


def main() -> None:
    """Load and serve."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--port", type=int, default=8010, help="(default: %(default)s)")
    parser.add_argument("--batch", type=int, default=1, help="largest batch (default: %(default)s)")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"], help="(default: %(default)s)")
    args = parser.parse_args()
    check_checkpoint(args.checkpoint)
    worker = Worker(args.checkpoint, getattr(torch, args.dtype), args.batch)
    uvicorn.run(application(worker, args.checkpoint.name), host="127.0.0.1", port=args.port, log_level="error")


if __name__ == "__main__":
    main()
