"""The one frame-diff layer: what Textual is about to write is cut down to the cells that differ from the terminal.

Textual repaints whole dirty strips. Here every strip is taken apart into cells (a character and the escape codes of
its style), compared with what the terminal shows, and only changed runs are written, grouped by style, since a
style's codes cost more than a cursor move. Overlays, screens and themes need nothing: they all end in strips.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, TypeAlias

from rich.cells import cell_len, get_character_cell_size
from rich.color import ColorSystem
from rich.style import Style

if TYPE_CHECKING:
    from rich.console import Console
    from textual.geometry import Size
    from textual.strip import Strip

try:
    from textual._compositor import ChopsUpdate, CompositorUpdate, LayoutUpdate
    from textual.app import App

    _IS_KNOWN = callable(getattr(App, "_display", None)) and callable(
        getattr(CompositorUpdate, "render_segments", None)
    )
except ImportError:  # pragma: no cover - a Textual whose private names have gone
    _IS_KNOWN = False

BRIDGE = 4
"""Equal cells between two changed runs that are written again rather than jumped over."""
Cell: TypeAlias = tuple[str, str]
"""A character (empty: the right half of the wide one before it) and the codes of its style."""
UNKNOWN: Cell = ("\x00", "")
Runs: TypeAlias = "dict[str, list[tuple[int, int, str, int]]]"
"""Codes to the runs written in them: row, column, text, cells."""


class FrameDiff:
    """Knows what the terminal shows, and narrows updates to what differs."""

    def __init__(self, *, is_on: bool = True) -> None:
        self.is_on = is_on
        self._rows: list[list[Cell]] = []
        self._width = 0
        self._codes: dict[Style, tuple[str, str]] = {}
        self._blanks: dict[str, str] = {}
        """Codes of a visible style to those of its blank, when a blank may be written in that style."""

    @classmethod
    def if_possible(cls) -> FrameDiff:
        """On, unless GSWARM_DIFF=0 or Textual no longer has what this needs."""
        return cls(is_on=_IS_KNOWN and os.environ.get("GSWARM_DIFF", "1") != "0")

    def forget(self) -> None:
        """The terminal may show anything now."""
        self._rows = []

    def narrowed(self, update: Any, size: Size) -> Any:
        """An update that writes only what differs; anything not understood passes, and the frame is forgotten."""
        if not self.is_on or update is None:
            return update
        if isinstance(update, ChopsUpdate | LayoutUpdate):
            return _Narrowed(self, update, size)
        self.forget()
        return update

    # Taking apart

    def _fit(self, size: Size) -> None:
        if self._width != size.width or len(self._rows) != size.height:
            self._width = size.width
            self._rows = [[UNKNOWN] * size.width for _ in range(size.height)]

    def _style(self, style: Style | None, system: ColorSystem) -> tuple[str, str]:
        """The codes of a style for visible characters, and for blanks, whose foreground does not show."""
        key = style or Style.null()
        codes = self._codes.get(key)
        if codes is None:
            if len(self._codes) > 4096:
                self._codes.clear()
                self._blanks.clear()
            visible = _codes(key, system)
            shows = key.underline or key.reverse or key.strike or key.overline or key.underline2 or key.blink
            blank = visible if shows or key.link else _codes(Style(bgcolor=key.bgcolor), system)
            codes = self._codes[key] = (visible, blank)
            self._blanks[visible] = blank
        return codes

    def _cells(self, strip: Strip, system: ColorSystem) -> list[Cell]:
        cells: list[Cell] = []
        append = cells.append
        for text, style, control in strip:
            if control:
                continue
            visible, blank = self._style(style, system)
            if text.isascii():
                cells.extend([(c, blank) if c == " " else (c, visible) for c in text])
                continue
            for c in text:
                width = get_character_cell_size(c)
                if width == 1:
                    append((c, blank if c == " " else visible))
                elif width == 2:
                    append((c, visible))
                    append(("", visible))
                elif cells:  # combines with the character before it
                    at = -1 if cells[-1][0] or len(cells) < 2 else -2
                    cells[at] = (cells[at][0] + c, cells[at][1])
        return cells

    def render(self, update: ChopsUpdate | LayoutUpdate, size: Size, system: ColorSystem) -> str:
        """The codes and characters that bring the terminal from what it shows to `update`."""
        self._fit(size)
        runs: Runs = {}
        for y, x, strip in _strips(update):
            if not 0 <= y < size.height or x >= size.width:
                continue
            cells = self._cells(strip, system)[: size.width - x]
            if cells and cells[-1][0] and cell_len(cells[-1][0]) == 2:  # its right half was cut off
                cells[-1] = (" ", cells[-1][1])
            row = self._rows[y]
            end = x + len(cells)
            if row[x:end] != cells:
                self._compare(y, x, row, cells, runs)
                if x and not row[x][0]:  # its left half, outside of this update, goes with it
                    row[x - 1] = UNKNOWN
                if end < size.width and not row[end][0]:
                    row[end] = UNKNOWN
                row[x:end] = cells
        self._adopt_blanks(runs)
        return _written(runs, size.width)

    def _adopt_blanks(self, runs: Runs) -> None:
        """Runs of blanks alone ride with a style of their background that is written anyway."""
        hosts = {blank: codes for codes, blank in self._blanks.items() if codes in runs and codes != blank}
        for blank in [codes for codes in runs if codes in hosts]:
            runs[hosts[blank]].extend(runs.pop(blank))

    def _compare(self, y: int, x: int, row: list[Cell], cells: list[Cell], runs: Runs) -> None:
        length = len(cells)
        changed = [cell != row[x + i] for i, cell in enumerate(cells)]
        for i, (char, _) in enumerate(cells):  # a wide character changes whole
            if not char and i and (changed[i] or changed[i - 1]):
                changed[i] = changed[i - 1] = True
            elif char and changed[i] and i + 1 < length and not row[x + i + 1][0] and cells[i + 1][0]:
                changed[i + 1] = True  # the right half that stood there goes with its left half
        blanks = self._blanks
        i = 0
        while i < length:
            if not changed[i]:
                i += 1
                continue
            start = last = i
            codes = cells[i][1]
            blank = blanks.get(codes, codes)
            i += 1
            while i < length and i - last <= BRIDGE + 1:
                char, own = cells[i]
                if own == codes or (char == " " and own == blank):
                    pass
                elif codes == blank and blanks.get(own) == blank:
                    codes = own  # it began with blanks: they take the style of what follows
                else:
                    break
                if changed[i]:
                    last = i
                i += 1
            if codes != blank and all(char == " " for char, _ in cells[start : last + 1]):
                codes = blank
            text = "".join(char for char, _ in cells[start : last + 1])
            runs.setdefault(codes, []).append((y, x + start, text, last + 1 - start))
            i = last + 1


def _codes(style: Style, system: ColorSystem) -> str:
    rendered = style.render("x", color_system=system)
    head = rendered.partition("x")[0]
    return head[2:-1] if head.startswith("\x1b[") else head


def _strips(update: ChopsUpdate | LayoutUpdate) -> Iterator[tuple[int, int, Strip]]:
    """Row, column and strip of all that `update` would write, as its own `render_segments` walks them."""
    if isinstance(update, LayoutUpdate):
        for y, line in enumerate(update.strips, update.region.y):
            x = update.region.x
            for strip in line:
                yield y, x, strip
                x += strip.cell_length
        return
    for y, x1, x2 in update.spans:
        for end, (x, part) in zip(update.chop_ends[y], update.chops[y].items(), strict=False):
            if part is None or x > x2 or end <= x1:
                continue
            yield y, x, part if x2 > x >= x1 and end <= x2 else part.crop(0, min(end, x2) - x)


def _parts(codes: str) -> tuple[str, str, str]:
    """Attributes, foreground and background of a style's codes; what is not named is the terminal's own."""
    attributes: list[str] = []
    ground = {"3": "39", "4": "49"}
    words = codes.split(";") if codes else []
    while words:
        word = words.pop(0)
        if word in ("38", "48"):
            count = 4 if words[0] == "2" else 2
            ground[word[0]] = ";".join([word, *words[:count]])
            del words[:count]
        elif len(word) == 2 and word[0] in "349":
            ground["3" if word[0] == "9" else word[0]] = word
        elif len(word) == 3 and word.startswith("10"):
            ground["4"] = word
        else:
            attributes.append(word)
    return ";".join(attributes), ground["3"], ground["4"]


def _written(runs: Runs, width: int) -> str:
    if not runs:
        return ""
    out: list[str] = []
    at_y, at_x = -1, -1
    attributes, front, back = "", "39", "49"
    groups = sorted((_parts(codes), codes) for codes in runs)
    # background first: neighbours share it, and only what differs is written
    groups.sort(key=lambda group: (group[0][0], group[0][2], group[0][1]))
    out.append("\x1b[0m")
    for (new_attributes, new_front, new_back), codes in groups:
        words = []
        if new_attributes != attributes:
            words, front, back = ["0"], "39", "49"
            if new_attributes:
                words.append(new_attributes)
        words += [new_front] * (new_front != front) + [new_back] * (new_back != back)
        attributes, front, back = new_attributes, new_front, new_back
        if words:
            out.append(f"\x1b[{';'.join(words)}m")
        for y, x, text, cells in sorted(runs[codes]):
            if y == at_y and x != at_x and x > at_x:
                out.append(f"\x1b[{x - at_x}C" if x - at_x > 1 else "\x1b[C")
            elif y != at_y or x != at_x:
                out.append(f"\x1b[{y + 1};{x + 1}H" if x else f"\x1b[{y + 1}H")
            out.append(text)
            at_y, at_x = y, x + cells
            if at_x >= width:  # the cursor hangs at the margin: place it anew
                at_y = -1
    out.append("\x1b[0m")
    return "".join(out)


if _IS_KNOWN:

    class _Narrowed(CompositorUpdate):
        """Compared only when it is truly written, so that an update the app drops is not taken for shown."""

        def __init__(self, diff: FrameDiff, update: ChopsUpdate | LayoutUpdate, size: Size) -> None:
            self.diff, self.update, self.size = diff, update, size

        def render_segments(self, console: Console) -> str:
            system = getattr(console, "_color_system", None) or ColorSystem.TRUECOLOR
            return self.diff.render(self.update, self.size, system)
