"""History in eighth blocks: one cell, one row, or two rows under a gauge."""

from __future__ import annotations

from collections.abc import Sequence

LEVELS = " ▁▂▃▄▅▆▇█"


def cell(percent: float | None) -> str:
    """One device in one cell; NA is a question mark."""
    if percent is None:
        return "?"
    return LEVELS[max(1, min(8, round(percent / 12.5)))]


def rows(values: Sequence[float | None], cells: int, top: float, height: int = 2) -> list[str]:
    """`values`, newest last, right aligned in `cells` columns and `height` rows of eighth blocks; NA is a gap."""
    shown: list[float | None] = list(values)[-cells:] if cells > 0 else []
    shown = [*[None] * (cells - len(shown)), *shown]
    heights = [
        None if v is None else max(1, min(8 * height, round(8 * height * v / top))) if top > 0 else 1 for v in shown
    ]
    out = []
    for row in range(height):
        floor = 8 * (height - 1 - row)
        out.append("".join(" " if h is None else LEVELS[max(0, min(8, h - floor))] for h in heights))
    return out
