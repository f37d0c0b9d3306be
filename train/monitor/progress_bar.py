"""The progress bar of a run: steps, ETA, and the last loss beside it."""

from typing import Any

from transformers import ProgressCallback

_SHOWN = {"loss": "loss", "grad_norm": "gradient", "learning_rate": "rate"}


class TrainingProgress(ProgressCallback):
    """transformers' bar, which has the ETA, with what is logged beside it in place of a line a step."""

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Show the last values."""
        shown = {name: f"{float(logs[key]):.3g}" for key, name in _SHOWN.items() if logs and key in logs}
        if self.training_bar is not None and shown:
            self.training_bar.set_postfix(shown, refresh=False)
