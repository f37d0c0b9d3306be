"""How answers are decoded where a request says nothing: by generation_config.json, and what vLLM makes of it.

Transformers counts the repetition penalty over generated tokens alone where it is given embeddings, as training scripts
of this kind give it; vLLM counts the prompt's tokens, too. The same number is then another decoding, so `assemble`
writes none.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

GENERATION_FILE = "generation_config.json"
GREEDY = {"do_sample": False}


@dataclass(frozen=True)
class Decoding:
    """Values of generation_config.json; None where it says nothing."""

    do_sample: bool | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    repetition_penalty: float | None = None
    max_new_tokens: int | None = None

    @classmethod
    def of(cls, folder: Path) -> "Decoding":
        """What a checkpoint folder asks for."""
        file = folder / GENERATION_FILE
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        return cls(**{name: found.get(name) for name in cls.__dataclass_fields__})

    @property
    def greedy(self) -> bool:
        """Whether it says so: transformers' `do_sample: false`, which vLLM does not read."""
        return self.do_sample is False

    def __str__(self) -> str:
        if self.greedy:
            parts = ["greedy"]
        else:
            named = {name: getattr(self, name) for name in ("temperature", "top_p", "top_k")}
            parts = [f"{name} {value:g}" for name, value in named.items() if value is not None]
            parts = parts or ["temperature 1, the OpenAI API's default"]
        if self.repetition_penalty not in (None, 1):
            parts.append(f"repetition_penalty {self.repetition_penalty:g}, over prompt and answer")
        if self.max_new_tokens is not None:
            parts.append(f"{self.max_new_tokens} tokens unless the request says")
        return ", ".join(parts)
