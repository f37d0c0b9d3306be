"""Things in a random order, none twice before all came."""

from typing import Generic, TypeVar

import numpy as np

Thing = TypeVar("Thing")


class Deck(Generic[Thing]):
    """Deals its things in one order, over and over; `dealt` counts them."""

    def __init__(self, things: tuple[Thing, ...], random: np.random.Generator) -> None:
        self._things = things
        self._order = random.permutation(len(things))
        self.dealt = 0

    def deal(self) -> Thing:
        """The next one."""
        thing = self._things[self._order[self.dealt % len(self._order)]]
        self.dealt += 1
        return thing
