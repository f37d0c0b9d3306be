"""How long the server has been starting: one line that is rewritten on a terminal, elsewhere a line now and then.

The supervisor's own, which only waits meanwhile: no thread runs beside the engine's fork.
"""

import asyncio
import time

from qwen_vqa.serving.observability.log import may_rewrite, rewrite, say

SECOND = 1.0
# In a log: every ten seconds in the first minute, and then every minute.
PLAIN_PAUSE, LONG_PAUSE, LONG_AFTER = 10.0, 60.0, 60.0


class StartProgress:
    """Of one start; silent before `start` and after `stop`.

    Args:
        expected: seconds that the start before took, or None.
    """

    def __init__(self, expected: float | None = None) -> None:
        self._expected = expected
        self._stage = "starting"
        self._began = time.monotonic()
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """From now on; in the loop that runs."""
        self._began = time.monotonic()
        self._wait()

    def loading(self) -> None:
        """What can be checked is checked, and the model is being loaded."""
        self._stage = "loading"

    def stop(self) -> None:
        """Nothing more is said, and the terminal's line is empty for who writes next."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
            if may_rewrite():
                rewrite("")

    def _wait(self) -> None:
        seconds = time.monotonic() - self._began
        pause = SECOND if may_rewrite() else PLAIN_PAUSE if seconds < LONG_AFTER else LONG_PAUSE
        self._timer = asyncio.get_running_loop().call_later(pause, self._tell)

    def _tell(self) -> None:
        usual = "" if self._expected is None else f" of about {self._expected:.0f} s"
        text = f"{self._stage}, {time.monotonic() - self._began:.0f} s{usual}"
        (rewrite if may_rewrite() else say)(text)
        self._wait()
