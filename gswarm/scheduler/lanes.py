"""A plan as lanes over time, one a GPU: its blocks, which any screen can draw, and a drawing of them as lines of text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from itertools import groupby
from math import ceil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gswarm.scheduler.plan import Execution

IDLE = -1
TOLERANCE_S = 1e-6
TICK_CELLS = 12
"""Between two marks of the axis, at least."""
TICKS_S = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 28800, 86400)
HUES = (43, 46, 42, 103, 44, 41, 45, 47)
"""Backgrounds of the terminal's own 16 colours; the console's `ansi` theme has them in this order."""


class Form(Enum):
    """How to draw: in colour, without, or in ASCII alone."""

    COLOUR = auto()
    PLAIN = auto()
    ASCII = auto()


@dataclass(frozen=True, slots=True)
class Block:
    """Tasks of one model, one after another on one GPU without a load between them. Seconds since t = 0."""

    model: str
    start: float
    """Of its first task; the load, if there is one, takes the `load_s` before it."""
    end: float
    load_s: float
    count: int


def blocks(executions: Iterable[Execution], gpus: int, *, gap_s: float = 0.0) -> list[list[Block]]:
    """Per GPU its blocks in order. A pause of more than `gap_s` ends one."""
    made: list[list[Block]] = [[] for _ in range(gpus)]
    open_: list[dict[tuple[tuple[int, ...], str], Block]] = [{} for _ in range(gpus)]
    for run in sorted(executions, key=lambda r: (r.start, r.end)):
        for gpu in run.gpus:
            if not 0 <= gpu < gpus:
                continue  # an invalid plan can be looked at too
            block = Block(run.model, run.start, run.end, run.switch_seconds, 1)
            key, going = (run.gpus, run.model), open_[gpu]
            before = going.get(key)
            if before is not None and not run.switch_seconds and run.start - before.end <= gap_s:
                block = Block(before.model, before.start, max(before.end, run.end), before.load_s, before.count + 1)
                del going[key]
            # What has ended by then is over; what goes on is beside it.
            for other, ended in list(going.items()):
                if other == key or ended.end <= run.start - run.switch_seconds + TOLERANCE_S:
                    made[gpu].append(going.pop(other))
            going[key] = block
    for gpu in range(gpus):
        made[gpu] = sorted([*made[gpu], *open_[gpu].values()], key=lambda block: block.start)
    return made


def beside(found: Sequence[Block]) -> list[list[Block]]:
    """The blocks of a GPU in as few rows as keep those apart that are there at one time; one where none are."""
    rows: list[list[Block]] = [[]]
    for block in found:
        begins = block.start - block.load_s + TOLERANCE_S
        row = next((row for row in rows if not row or row[-1].end <= begins), None)
        if row is None:
            rows.append(row := [])
        row.append(block)
    return rows


@dataclass(frozen=True, slots=True)
class Axis:
    """The window of time that a lane shows, in cells."""

    start: float
    end: float
    cells: int

    @property
    def cell_s(self) -> float:
        """Seconds of one cell."""
        return (self.end - self.start) / self.cells or 1.0


def initials(models: Iterable[str]) -> dict[str, str]:
    """The shortest prefix of each name that no other name shares, its first letter raised."""
    names = sorted(set(models))
    short = {}
    for name in names:
        others = [other for other in names if other != name]
        lengths = (n for n in range(1, len(name) + 1) if not any(other[:n] == name[:n] for other in others))
        length = next(lengths, len(name))
        short[name] = name if length == len(name) else name[:1].upper() + name[1:length]
    return short


def owners(lane: Sequence[Block], axis: Axis) -> list[tuple[int, bool]]:
    """What each cell shows: the number of the block that takes most of it, and whether that is its load; or IDLE.

    What is shorter than a cell has one while nothing takes more of it.
    """
    most = [0.0] * axis.cells
    shown = [(IDLE, False)] * axis.cells
    for number, block in enumerate(lane):
        for is_load, begins, ends in (
            (True, block.start - block.load_s, block.start),
            (False, block.start, block.end),
        ):
            if (is_load and not block.load_s) or ends < axis.start or begins > axis.end:
                continue
            low = (begins - axis.start) / axis.cell_s
            high = (ends - axis.start) / axis.cell_s
            for x in range(max(0, min(axis.cells - 1, int(low))), min(axis.cells, max(int(low) + 1, ceil(high)))):
                # Something that takes no time at all is still more than nothing.
                share = max(min(high, x + 1) - max(low, x), 1e-9)
                if share > most[x]:
                    most[x], shown[x] = share, (number, is_load)
    return shown


def label(model: str, count: int, room: int, initial: str, times: str = "×") -> str:
    """What fits: name and count (0: none is said), the name, five letters or more of it, its initial, nothing."""
    for text in (f"{model} {times}{count}", model) if count else (model,):
        if len(text) <= room:
            return text
    if room >= 5:
        return model[:room]
    return initial if len(initial) <= room else ""


def lane(found: Sequence[Block], axis: Axis, short: Mapping[str, str], hue: Mapping[str, int], form: Form) -> str:
    """One lane of exactly `axis.cells` cells."""
    out = []
    for (number, is_load), cells in groupby(owners(found, axis)):
        width = len(list(cells))
        if number == IDLE:
            out.append(" " * width)
        elif is_load:
            colour = hue[found[number].model] - 10
            drawn = (":" if form is Form.ASCII else "░") * width
            out.append(_painted(drawn, str(colour)) if form is Form.COLOUR else drawn)
        else:
            out.append(_block(found[number], width, short, hue, form))
    return "".join(out)


def _block(block: Block, width: int, short: Mapping[str, str], hue: Mapping[str, int], form: Form) -> str:
    if form is Form.ASCII:
        room = max(0, width - 2)
        drawn = f"[{label(block.model, block.count, room, short[block.model], 'x').ljust(room, '=')}]"
        return drawn if width > 1 else "["
    text = label(block.model, block.count, width - 1, short[block.model])
    if form is Form.PLAIN:
        return f"▌{text.ljust(width - 1, '─')}"
    return _painted(f"▌{text.ljust(width - 1)}", f"30;{hue[block.model]}")


def _painted(text: str, codes: str) -> str:
    return f"\x1b[{codes}m{text}\x1b[0m"


def draw(
    executions: Sequence[Execution], gpus: int, *, width: int, form: Form, start: float = 0.0, end: float | None = None
) -> list[str]:
    """Lines of at most `width` characters: the axis, a lane a GPU or more of them where models are on one at a time, what
    the names stand for."""
    head = len(f"gpu{gpus - 1} ")
    if end is None:
        end = max((run.end for run in executions), default=0.0)
    axis = Axis(start, max(end, start), max(1, width - head))
    runs = [run._replace(model=_printable(run.model, form)) for run in executions]
    models = list(dict.fromkeys(run.model for run in runs))
    short, hue = initials(models), {model: HUES[n % len(HUES)] for n, model in enumerate(models)}
    lines = [" " * head + _marks(axis)]
    for gpu, found in enumerate(blocks(runs, gpus, gap_s=axis.cell_s)):
        for number, row in enumerate(beside(found)):
            lines.append((f"gpu{gpu}" if not number else "").ljust(head) + lane(row, axis, short, hue, form))
    return [*lines, *_legend(models, short, hue, axis, width, form)]


def _printable(name: str, form: Form) -> str:
    """A name that takes a cell a character and does not steer the terminal."""
    return "".join(c if c.isprintable() and (c.isascii() or form is not Form.ASCII) else "?" for c in name) or "?"


def _marks(axis: Axis) -> str:
    step = next((s for s in TICKS_S if s >= TICK_CELLS * axis.cell_s), TICKS_S[-1])
    while step < TICK_CELLS * axis.cell_s:
        step *= 2
    out, number = "", ceil(axis.start / step)
    while (at := round((number * step - axis.start) / axis.cell_s)) < axis.cells:
        mark = _clock(number * step)
        if at + len(mark) <= axis.cells:
            out = out.ljust(at) + mark
        number += 1
    return out


def _clock(seconds: float) -> str:
    whole = round(seconds)
    minutes, rest = divmod(whole, 60)
    hours, left = divmod(minutes, 60)
    if hours:
        return f"{hours}h{left:02d}"
    return f"{minutes}m{rest:02d}" if minutes else f"{whole}s"


def _legend(
    models: Sequence[str], short: Mapping[str, str], hue: Mapping[str, int], axis: Axis, width: int, form: Form
) -> list[str]:
    edge, load = ("[", ":") if form is Form.ASCII else ("▌", "░")
    parts = [(f"{edge}{m}" if m == short[m] else f"{edge}{m} ({short[m]})", m) for m in models]
    parts += [(f"{load} load", ""), (f"1 cell {axis.cell_s:.3g} s", "")]
    lines, used = [""], 0
    for text, model in parts:
        text = text[:width]
        if used and used + 2 + len(text) > width:
            lines.append("")
            used = 0
        gap = "  " if used else ""
        used += len(gap) + len(text)
        lines[-1] += gap + (_painted(text, f"30;{hue[model]}") if form is Form.COLOUR and model else text)
    return lines
