"""Muon for the matrices inside a model's layers and AdamW for the rest, as one optimizer.

Small models from nothing learn from about half the pictures that AdamW alone needs (Jordan et al. 2024,
https://kellerjordan.github.io/posts/muon/).
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn


class MuonAndAdamW(torch.optim.Optimizer):
    """Both at one learning rate: Muon's updates are scaled to the size of AdamW's.

    Args:
        parameters: all that is trained.
        layers: modules whose matrices Muon takes; embeddings, read-outs and vectors go to AdamW.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter], layers: Iterable[nn.Module], lr: float, weight_decay: float
    ) -> None:
        matrices = [p for layer in layers for p in layer.parameters() if p.ndim == 2 and p.requires_grad]
        taken = {id(parameter) for parameter in matrices}
        rest = [parameter for parameter in parameters if id(parameter) not in taken]
        self.parts = (
            torch.optim.Muon(matrices, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(rest, lr=lr, weight_decay=weight_decay / 5, betas=(0.9, 0.98)),
        )
        super().__init__([*matrices, *rest], {"lr": lr})

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The groups of both, so that a schedule reaches them."""
        return [group for part in self.parts for group in part.param_groups]

    @param_groups.setter
    def param_groups(self, groups: list[dict[str, Any]]) -> None:
        """Optimizer's own constructor sets an empty list; the parts keep theirs."""

    def add_param_group(self, group: dict[str, Any]) -> None:
        """Optimizer's constructor adds its groups; the parts have them already."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override] # returns no loss
        """One step of both."""
        for part in self.parts:
            part.step(closure)

    def state_dict(self) -> dict[str, Any]:
        """The states of both."""
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up the states of both."""
        for part, saved in zip(self.parts, state["parts"], strict=True):
            part.load_state_dict(saved)
