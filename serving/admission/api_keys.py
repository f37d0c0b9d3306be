"""API keys: from the command line, the environment, and a file that is read again when it changes.

The file is JSON. A key stands in it as itself or as its SHA-256 (`printf %s "$KEY" | sha256sum`), with a name for the
log and, where wanted, `admin` and limits of its own in place of the server's (0 is no limit):

    {"keys": [
        {"name": "alice", "key": "sk-1b6cc0e2b16d4a5e"},
        {"name": "batch-jobs", "sha256": "9f86d0...", "requests_per_minute": 600, "running": 8},
        {"name": "operator", "key": "sk-7f1d0a9be4c85e23", "admin": true}
    ]}
"""

import hashlib
import hmac
import re
import stat
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from qwen_vqa.plugin.errors import UserError
from qwen_vqa.serving.observability.log import say

LOOK_SECONDS = 1.0
Limit = Annotated[int, Field(ge=0)]


class ApiKey(BaseModel):
    """One key: who holds it, and what they may do. The key itself is kept as its SHA-256 alone."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, hide_input_in_errors=True)

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.@-]{1,64}$")]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$", repr=False)]
    admin: bool = False
    requests_per_minute: Limit | None = None
    image_tokens_per_minute: Limit | None = None
    running: Limit | None = None

    @model_validator(mode="before")
    @classmethod
    def _hash(cls, value):
        if not isinstance(value, dict) or "key" not in value:
            return value
        if "sha256" in value:
            raise ValueError("give either key or sha256, not both")
        rest = {name: field for name, field in value.items() if name != "key"}
        if not isinstance(value["key"], str) or not re.fullmatch(r"[!-~]{16,}", value["key"]):
            raise ValueError("key must be a string of at least 16 characters, ASCII and without spaces")
        return {**rest, "sha256": sha256(value["key"])}


class KeyFile(BaseModel):
    """What a keys file holds."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, hide_input_in_errors=True)

    keys: Annotated[tuple[ApiKey, ...], Field(min_length=1, strict=False)]

    @model_validator(mode="after")
    def _distinct(self):
        for field in ("name", "sha256"):
            values = [getattr(key, field) for key in self.keys]
            twice = sorted({key.name for key in self.keys if values.count(getattr(key, field)) > 1})
            if twice:
                raise ValueError(f"two keys have the same {'name' if field == 'name' else 'key'}: {', '.join(twice)}")
        return self


def read_key_file(path: Path) -> tuple[ApiKey, ...]:
    """The keys of a file.

    Raises:
        UserError: it cannot be read, or is not as described above; the message holds no key.
    """
    return _keys_in(_content(path), path)


def _content(path: Path) -> bytes:
    """The file's bytes; from anything but a file, reading could wait for ever."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise UserError(f"the keys file {path} is no regular file.")
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"the keys file {path} cannot be read: {error.strerror}.") from error


def _keys_in(content: bytes, path: Path) -> tuple[ApiKey, ...]:
    try:
        return KeyFile.model_validate_json(content).keys
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"]).lstrip(".")
        raise UserError(
            f"the keys file {path} is not right{f' at {where}' if where else ''}: {first['msg']}. "
            'It is JSON: {"keys": [{"name": "alice", "key": "..."}, ...]}; `qwen-vqa serve --help` names the fields.'
        ) from None  # pydantic's own error could show a key


def sha256(key: str) -> str:
    """What of a key is kept."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


class KeyRing:
    """The keys that are valid now. `plain` are keys without a name, from the command line or the environment."""

    def __init__(self, plain: Sequence[str] = (), file: Path | None = None):
        self._plain = tuple(
            ApiKey(name=f"api-key-{number}", sha256=sha256(key)) for number, key in enumerate(plain, start=1)
        )
        self._file = file
        content = _content(file) if file else b""
        self._seen = hashlib.sha256(content).digest()
        self._from_file = _keys_in(content, file) if file else ()
        self._fault = ""  # what is wrong with the file now
        self._next_look = time.monotonic() + LOOK_SECONDS

    def __bool__(self) -> bool:
        """Whether this server asks for keys at all; once it does, it does so until it stops."""
        return bool(self._plain or self._file)

    def find(self, key: str) -> ApiKey | None:
        """The entry of a key that a client sent. Takes the same time wherever in the list it is, or is not."""
        self._look_at_file()
        digest = sha256(key)
        found = None
        for entry in (*self._plain, *self._from_file):
            if hmac.compare_digest(entry.sha256, digest):
                found = entry
        return found

    def _look_at_file(self) -> None:
        if self._file is None or time.monotonic() < self._next_look:
            return
        self._next_look = time.monotonic() + LOOK_SECONDS
        try:
            content = _content(self._file)  # not its times, within whose steps it may change twice
            seen = hashlib.sha256(content).digest()
            if seen == self._seen:
                self._fault = ""
                return
            self._from_file = _keys_in(content, self._file)
            self._seen, self._fault = seen, ""
        except UserError as error:
            if str(error) != self._fault:  # once, not at every look
                say(f"ERROR: {error} The keys from before stay valid until the file is mended.")
            self._fault = str(error)
        else:
            say(f"{self._file} was read again: {len(self._from_file)} keys")
