"""Plan lanes: what each device does now and next, drawn as tinted blocks on a linear axis of wall-clock cells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import floor

from gswarm.scheduler.lanes import label

from .. import figures
from ..themes import Form
from ..view import BlockView
from .spans import Spans

ZOOMS = (1, 2, 5, 10, 15, 30)
"""Seconds a cell."""
LOAD = "░"


def axis(cells: int, cell_s: int) -> Spans:
    """The heading above lanes: now, then a mark each dozen cells or so."""
    if cells <= 0:
        return ()
    step = 12
    out = "now"
    at = step
    while at < cells:
        mark = figures.ahead(at * cell_s)
        if at + len(mark) > cells:
            break
        out = out.ljust(at) + mark
        at += step
    return ((out.ljust(cells)[:cells], "dim"),)


def lane(
    blocks: Sequence[BlockView],
    now: float,
    cells: int,
    cell_s: int,
    short: Mapping[str, str],
    form: Form = Form.TINT,
) -> Spans:
    """One lane of exactly `cells` cells. Cells stand on the wall clock, so a lane moves by whole cells only."""
    if cells <= 0:
        return ()
    chars, styles = [" "] * cells, ["text"] * cells
    owner: list[BlockView | None] = [None] * cells
    origin = floor(now / cell_s)

    def cell_of(time: float) -> int:
        return floor(time / cell_s) - origin

    # Two models may run on one device at once: the longer block lies beneath, and shows where the shorter one ends.
    for block in sorted(blocks, key=lambda b: b.start - b.end):
        first = 0 if block.is_running else cell_of(block.start)
        if block.load_s > 0:
            loading = cell_of(block.start - block.load_s)
            for x in range(max(0, loading), min(cells, max(first, loading + 1))):
                chars[x], styles[x] = LOAD, "load"
        end = max(cell_of(block.end), first + 1)
        for x in range(max(0, first), min(end, cells)):
            owner[x] = block
    x = 0
    while x < cells:
        block_here = owner[x]
        start = x
        while x < cells and owner[x] is block_here:
            x += 1
        if block_here is not None:
            initial = short.get(block_here.model, block_here.model[:1].upper())
            _draw(block_here, chars, styles, start, x, initial, form)
    return _joined(chars, styles)


def _draw(
    block: BlockView, chars: list[str], styles: list[str], first: int, end: int, initial: str, form: Form
) -> None:
    when = "now" if block.is_running else "later"
    hue = block.hue % 8
    room = end - first - (2 if form is Form.MONO else 1)
    text = label(block.model, block.count, room, initial) if room > 0 else ""
    if form is Form.MONO:
        inside = text.ljust(room, "=") if room > 0 else ""
        drawn = "[" if end - first == 1 else f"[{inside}]"
        for x, c in enumerate(drawn, first):
            chars[x], styles[x] = c, f"{when}{hue}"
        return
    for x in range(first, end):
        chars[x], styles[x] = " ", f"{when}{hue}"
    chars[first], styles[first] = "▌", f"{when}edge{hue}"
    for x, c in enumerate(text, first + 1):
        chars[x] = c


def _joined(chars: Sequence[str], styles: Sequence[str]) -> Spans:
    out: list[tuple[str, str]] = []
    start = 0
    for x in range(1, len(chars) + 1):
        if x == len(chars) or styles[x] != styles[start]:
            out.append(("".join(chars[start:x]), styles[start]))
            start = x
    return tuple(out)


def zoomed(cell_s: int, step: int) -> int:
    """The next zoom in or out, held at the ends."""
    at = ZOOMS.index(cell_s) if cell_s in ZOOMS else ZOOMS.index(5)
    return ZOOMS[max(0, min(len(ZOOMS) - 1, at + step))]
