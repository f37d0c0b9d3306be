"""What the server prints: lines for people, or one JSON object a line (`--log-format json`)."""

import datetime
import json
import sys
from typing import Any, Literal, get_args

Format = Literal["text", "json"]
FORMATS: tuple[Format, ...] = get_args(Format)
_format: Format = "text"


def set_format(log_format: Format) -> None:
    """For this process, once, before it prints."""
    global _format
    _format = log_format


def say(text: str) -> None:
    """For whoever runs the server. Not through logging, whose level vLLM's own log has set to errors alone."""
    line = _json("serve", {"message": text}) if _format == "json" else f"qwen-vqa: {text}"
    print(line, file=sys.stderr, flush=True)


def write_request(fields: dict[str, Any]) -> None:
    """The line of a request; in text, what is None is left out."""
    if _format == "json":
        print(_json("request", fields), flush=True)
        return
    told = {name: value for name, value in fields.items() if value is not None}
    head = [_now(), told.pop("method"), told.pop("route"), told.pop("status"), f"{told.pop('seconds'):.3f} s"]
    print(*head, *(f"{name}={_plain(value)}" for name, value in told.items()), flush=True)


def is_json() -> bool:
    """Whether every line is to be JSON."""
    return _format == "json"


def _json(kind: str, fields: dict[str, Any]) -> str:
    return json.dumps({"time": _now(), "kind": kind, **fields})


def _plain(value: Any) -> str:
    """A value that cannot be taken for two, or for another line: names may come from clients."""
    text = f"{value:.3f}" if isinstance(value, float) else str(value)
    return text if text.isprintable() and " " not in text else json.dumps(text)


def _now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")
