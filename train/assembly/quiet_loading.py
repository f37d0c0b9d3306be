"""Loading by Transformers without its table of weights: what is left over is said in our own words."""

import contextlib
from collections.abc import Iterator

from transformers.utils import logging as transformers_log


@contextlib.contextmanager
def quiet_loading() -> Iterator[None]:
    """Transformers reports errors alone, and is as before afterwards."""
    before = transformers_log.get_verbosity()
    transformers_log.set_verbosity_error()
    try:
        yield
    finally:
        transformers_log.set_verbosity(before)
