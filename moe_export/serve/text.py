"""Text as it arrives, held back where a stop string may begin."""

from __future__ import annotations

from collections.abc import Sequence


class StopStrings:
    """Text up to the first of some strings.

    >>> stops = StopStrings(["END"])
    >>> stops.add("one E"), stops.add("ND two"), stops.met
    ('one ', '', True)
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.met = False

    def add(self, text: str) -> str:
        """Text that is certain to come before a stop string."""
        self._held += text
        places = [at for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if places:
            self.met = True
            return self._held[: min(places)]
        return self._release(len(self._held) - self._beginning())

    def rest(self) -> str:
        """Text that was held back, once no more follows."""
        return "" if self.met else self._release(len(self._held))

    def _beginning(self) -> int:
        """Length of the longest end of the text that a stop string begins with."""
        longest = max((len(stop) - 1 for stop in self._stops), default=0)
        for length in range(min(longest, len(self._held)), 0, -1):
            if any(stop.startswith(self._held[-length:]) for stop in self._stops):
                return length
        return 0

    def _release(self, length: int) -> str:
        text, self._held = self._held[:length], self._held[length:]
        return text
