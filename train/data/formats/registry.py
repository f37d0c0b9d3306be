"""The data sets that `--data` knows, by name."""

from collections.abc import Iterator
from typing import Protocol

from qwen_vqa.plugin.errors import UserError
from qwen_vqa.train.data.formats import llava, local, textvqa, vizwiz
from qwen_vqa.train.data.row import Row
from qwen_vqa.train.data.source import EXAMPLES, DataSource


class Adapter(Protocol):
    """A module that reads one data set's formats.

    `rows` raises UserError for a file that is another's. An entry that does not have the format is a row with a fault,
    named by its place and by what was expected (`entries.rows_of`).
    """

    NAME: str
    NEEDS_IMAGES: bool  # the release has a folder of pictures beside its annotations

    def rows(self, source: DataSource) -> Iterator[Row]: ...


ADAPTERS: dict[str, Adapter] = {adapter.NAME: adapter for adapter in (llava, textvqa, vizwiz, local)}


def adapter_of(source: DataSource) -> Adapter:
    """The adapter that a source names.

    Raises:
        UserError: there is none of that name.
    """
    if source.name not in ADAPTERS:
        raise UserError(
            f"--data {source.name}=...: no such data set; known are {', '.join(ADAPTERS)}. "
            f"For example: --data {EXAMPLES[0]}"
        )
    return ADAPTERS[source.name]
