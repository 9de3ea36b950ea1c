"""The last line: the keys that work now."""

from __future__ import annotations

from dataclasses import dataclass

from .line import Line
from .spans import Span, Spans


@dataclass(frozen=True, slots=True)
class Key:
    """A key and what it does, in a word."""

    key: str
    word: str


class Keys(Line):
    """Keys from the left as they fit; the last one stands at the right edge."""

    def show(self, keys: tuple[Key, ...], note: str = "") -> None:
        """Show `keys`, the last at the right edge behind `note`."""
        if not keys or not self.size.width:
            return
        *rest, last = keys
        right: Spans = ((f"{note}   ", "faint"), (last.key, "key"), (f" {last.word}", "dim"))
        room = self.size.width - 4 - len(note) - 3 - len(last.key) - 1 - len(last.word)
        left: list[Span] = []
        for key in rest:
            cells = len(key.key) + 1 + len(key.word) + (2 if left else 0)
            if cells > room:
                continue
            room -= cells
            if left:
                left.append(("  ", "text"))
            left += [(key.key, "key"), (f" {key.word}", "dim")]
        self.put(tuple(left), right)
