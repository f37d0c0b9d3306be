"""A data set from its release into Arrow on disk, once; the next run finds it there."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

from datasets import Dataset
from datasets.exceptions import DatasetGenerationError

from qwen_vqa.plugin.errors import UserError
from qwen_vqa.train.data.formats.registry import adapter_of
from qwen_vqa.train.data.row import FEATURES
from qwen_vqa.train.data.source import DataSource

FORMAT = 2  # of the Arrow files: to be raised when FEATURES or an adapter changes what it writes
ROWS_IN_MEMORY = 200


def read_data_set(source: DataSource, cache: Path | None = None) -> Dataset:
    """The rows of a data set (see `row.FEATURES`), memory-mapped; pictures stay files until they are opened.

    The Arrow file lies in `cache` (default: the cache of the library `datasets`), by a name that changes with the
    annotations, so that it is never stale.

    Raises:
        UserError: something named is missing, or an entry does not have the format.
    """
    adapter = adapter_of(source)
    source.check(adapter.NEEDS_IMAGES)
    try:
        return Dataset.from_generator(
            _rows,
            features=FEATURES,
            gen_kwargs={"source": source},
            cache_dir=str(cache) if cache else None,
            fingerprint=source_key(source),
            writer_batch_size=ROWS_IN_MEMORY,
        )
    except DatasetGenerationError as error:
        if isinstance(error.__cause__, UserError):
            raise error.__cause__ from None
        raise


def source_key(source: DataSource) -> str:
    """Changes when the data set does: what was asked for, and size and time of the files."""
    asked = {key: value for key, value in asdict(source).items() if key != "weight"}
    paths = [Path(source.location), *([Path(source.images)] if source.images else [])]
    if Path(source.location).is_dir():
        paths += sorted(Path(source.location).rglob("*.parquet"))
    files = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in paths if path.exists()]
    return hashlib.sha256(json.dumps([FORMAT, asked, files]).encode()).hexdigest()[:32]


def _rows(source: DataSource) -> Iterator[dict[str, Any]]:
    # Of a stream no more than asked for is read; of a file everything, and the mix draws from it.
    limit = source.samples if source.in_hub_form else None
    found = False
    for row in islice(adapter_of(source).rows(source), limit):
        found = True
        yield row.arrow()
    if not found:
        raise UserError(f"data set {source.name}: {source.location} is empty: it holds no samples.")
