"""Shuffled sampling without replacement: things in a random order, none twice before all came."""

from typing import Generic, TypeVar

import numpy as np

Thing = TypeVar("Thing")


class Shuffled(Generic[Thing]):
    """Gives its things in one order, over and over; `taken` counts them."""

    def __init__(self, things: tuple[Thing, ...], random: np.random.Generator) -> None:
        self._things = things
        self._order = random.permutation(len(things))
        self.taken = 0

    def take(self) -> Thing:
        """The next one."""
        thing = self._things[self._order[self.taken % len(self._order)]]
        self.taken += 1
        return thing
