"""How a script of this folder ends."""

import sys
from collections.abc import Callable
from typing import NoReturn

from qwen_vqa.plugin.errors import INTERRUPTED, UserError


def run(name: str, main: Callable[[], int | None]) -> NoReturn:
    """Exit with main's status, with 2 and its message where the user is at fault, and with 130 after Ctrl-C."""
    try:
        sys.exit(main())
    except UserError as error:
        print(f"{name}: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print(f"\n{name}: interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)
