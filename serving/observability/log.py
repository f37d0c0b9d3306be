"""What the server prints: lines for people, or one JSON object a line (`--log-format json`)."""

import contextlib
import datetime
import json
import os
import sys
from typing import Any, Literal, TextIO, get_args

Format = Literal["text", "json"]
FORMATS: tuple[Format, ...] = get_args(Format)
_format: Format = "text"
_verbose = False


def set_verbose() -> None:
    """For this process: `explain` is heard."""
    global _verbose
    _verbose = True


def set_format(log_format: Format) -> None:
    """For this process, once, before it prints."""
    global _format
    _format = log_format


def say(text: str) -> None:
    """For whoever runs the server. Not through logging, whose level vLLM's own log has set to errors alone."""
    line = _json("serve", {"message": text}) if _format == "json" else f"qwen-vqa: {text}"
    _write(sys.stderr, line)


def explain(text: str) -> None:
    """What was chosen, and why: for whoever asks with --verbose, and for logs that are kept as JSON."""
    if _verbose or is_json():
        say(text)


def show(text: str) -> None:
    """Lines for whoever reads along; the caller leaves them out where every line is to be JSON."""
    _write(sys.stdout, text)


def may_rewrite() -> bool:
    """Whether a person looks at a terminal that can go back to its line's begin."""
    return _format == "text" and sys.stderr.isatty() and os.environ.get("TERM") != "dumb"


def rewrite(text: str) -> None:
    """On a terminal: in place of what this wrote last, empty to clear it.

    The cursor stays at the line's begin, so that another process's line, which is longer, covers this one.
    """
    _write(sys.stderr, f"\r\x1b[K{f'qwen-vqa: {text}' if text else ''}\r", end="")


def write_request(fields: dict[str, Any]) -> None:
    """The line of a request; in text, what is None is left out."""
    if _format == "json":
        _write(sys.stdout, _json("request", fields))
        return
    told = {name: value for name, value in fields.items() if value is not None}
    head = [_now(), told.pop("method"), told.pop("route"), told.pop("status"), f"{told.pop('seconds'):.3f} s"]
    _write(sys.stdout, " ".join(map(str, (*head, *(f"{name}={_plain(value)}" for name, value in told.items())))))


def is_json() -> bool:
    """Whether every line is to be JSON."""
    return _format == "json"


def flush() -> None:
    """Before this process ends at once."""
    with contextlib.suppress(OSError):
        sys.stdout.flush()


def _write(stream: TextIO, text: str, end: str = "\n") -> None:
    """In one write: with PYTHONUNBUFFERED `print` makes two, and another thread's line may come between them.

    Who cannot be told any more is no reason not to serve: a closed pipe (`serve | head -1`), a terminal that is gone.
    """
    try:
        stream.write(f"{text}{end}")
        stream.flush()
    except BrokenPipeError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())  # for all that writes there in this process
        os.close(nowhere)
    except OSError:
        return  # a full disk: the next line may fit again


def _json(kind: str, fields: dict[str, Any]) -> str:
    return json.dumps({"time": _now(), "kind": kind, **fields})


def _plain(value: Any) -> str:
    """A value that cannot be taken for two, or for another line: names may come from clients."""
    text = f"{value:.3f}" if isinstance(value, float) else str(value)
    return text if text.isprintable() and " " not in text else json.dumps(text)


def _now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")
