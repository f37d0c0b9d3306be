"""`--adapters-file`: what was loaded and unloaded while the server ran, kept for its next start.

JSON: an adapter's name with its folder, or with null where it is there at every start (in the checkpoint's folder, or
by --lora-modules) and was unloaded:

    {"cats": "/srv/adapters/cats", "trained": null}

vLLM's resolver plugins (vllm/plugins/lora_resolvers) do something else: they load whatever folder has the name that a
request brings, unchecked, never unload it, and only with vLLM's own routes open.
"""

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator, Callable, Collection
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from qwen_vqa.plugin.errors import UserError
from qwen_vqa.serving.errors.refusals import RefusedError

_ENTRIES: TypeAdapter[dict[str, str | None]] = TypeAdapter(dict[str, str | None])


class AdaptersFile:
    """The file, and what it holds.

    Args:
        path: it need not be there yet, but its folder.
        given: names of the adapters that are there at every start.

    Raises:
        UserError: it cannot be read or written, or is not as described above.
    """

    def __init__(self, path: Path, given: Collection[str] = ()):
        self.path = path.resolve()  # where it is a link, what it leads to is replaced, and not the link
        self._given = frozenset(given)
        self.entries: dict[str, str | None] = {}
        if not self.path.parent.is_dir() or not os.access(self.path.parent, os.W_OK):
            raise UserError(f"--adapters-file {path}: its folder is not there, or cannot be written. Make it first.")
        try:
            self.entries = _ENTRIES.validate_json(self.path.read_bytes(), strict=True)
        except FileNotFoundError:
            return
        except OSError as error:
            raise UserError(f"--adapters-file {path} cannot be read: {error.strerror}.") from error
        except ValidationError as error:
            raise UserError(
                f'--adapters-file {path} is not JSON of names and folders, such as {{"cats": "/srv/adapters/cats"}} '
                f"({error.errors(include_url=False)[0]['msg']}). Mend it, or move it away."
            ) from error

    def added_to(
        self, given: dict[str, Path], check: Callable[[Path], object], say: Callable[[str], None]
    ) -> dict[str, Path]:
        """The adapters to begin with, by name: those `given`, and what the file says of them and of others.

        Args:
            check: raises UserError for a folder that holds no adapter of this checkpoint; such an adapter is left out,
                and so is a given one of its name: nobody is answered by another than was loaded.
        """
        adapters = dict(given)
        for name, place in self.entries.items():
            adapters.pop(name, None)
            if place is None:
                continue
            folder = Path(place).expanduser().absolute()
            try:
                if not folder.is_dir():
                    raise UserError(f"there is no folder {folder}")
                check(folder)
            except UserError as error:
                reason = str(error).rstrip(".")
                say(f"adapter {name} of {self.path} is left out: {reason}. Bring it back, or unload or load it anew.")
            else:
                adapters[name] = folder
        return adapters

    @contextlib.asynccontextmanager
    async def change(self, name: str, folder: str | None) -> AsyncIterator[None]:
        """Keep that an adapter is loaded from a folder, or (None) unloaded, unless what is done within fails.

        Raises:
            RefusedError: 500, it cannot be written; then nothing is done.
        """
        before = self.entries
        after = {other: place for other, place in before.items() if other != name}
        if folder is not None or name in self._given:
            after[name] = folder
        try:
            await asyncio.to_thread(self._write, after)
        except OSError as error:
            raise RefusedError(
                500,
                f"nothing was changed, since the server's --adapters-file cannot be written: {error.strerror}.",
                "server_error",
                "adapters_file",
            ) from error
        self.entries = after
        try:
            yield
        except BaseException:
            self.entries = before
            with contextlib.suppress(OSError):
                await asyncio.to_thread(self._write, before)
            raise

    def _write(self, entries: dict[str, str | None]) -> None:
        """All or nothing, also where the power fails in between."""
        new = self.path.with_name(f".{self.path.name}.{os.getpid()}.new")
        try:
            with new.open("w", encoding="utf-8") as file:
                json.dump(entries, file, indent=2)
                file.write("\n")
                file.flush()
                os.fsync(file.fileno())
            new.replace(self.path)
        except OSError:
            new.unlink(missing_ok=True)
            raise
