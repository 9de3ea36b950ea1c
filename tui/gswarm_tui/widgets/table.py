"""The table of the console: a line-API scroll view that draws visible rows only, and only those whose text changed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, TypeAlias

from textual.binding import Binding, BindingType
from textual.geometry import Region, Size
from textual.message import Message
from textual.scroll_view import ScrollView
from textual.strip import Strip

from .spans import Span, Spans, fit, plain, strip

if TYPE_CHECKING:
    from textual import events

    from ..themes import Paint


@dataclass(frozen=True, slots=True)
class Column:
    """`gap` blanks, then `width` cells."""

    title: str
    width: int
    align: str = "left"
    gap: int = 1
    heading: Spans = ()
    """Drawn instead of the title when given."""


@dataclass(frozen=True, slots=True)
class Row:
    """One line. `values` are what columns sort by; `search` is what a filter looks through besides the cells."""

    key: str
    cells: tuple[Spans, ...]
    values: tuple[float | str, ...] = ()
    search: str = ""
    tail: bool = False
    """The last cell takes the rest of the line, whatever the columns say."""

    @property
    def text(self) -> str:
        return " ".join(plain(cell) for cell in self.cells)


class Later:
    """A row that is made when it is first looked at: of thousands only the visible ones are."""

    __slots__ = ("_made", "_make", "key")

    def __init__(self, key: str, make: Callable[[], Row]) -> None:
        self.key, self._make = key, make
        self._made: Row | None = None

    @property
    def row(self) -> Row:
        if self._made is None:
            self._made = self._make()
        return self._made


AnyRow: TypeAlias = "Row | Later"


def made(row: AnyRow) -> Row:
    """The row itself."""
    return row.row if isinstance(row, Later) else row


@dataclass(frozen=True, slots=True)
class Content:
    """What a table shows at one tick."""

    columns: tuple[Column, ...] = ()
    rows: tuple[AnyRow, ...] = ()
    note: tuple[Spans, ...] = ()
    """Lines shown instead of rows: loading, empty."""
    is_stale: bool = False
    title: str = ""
    subtitle: str = ""
    fixed: int = 0
    """Rows above which sorting and filtering do not reach (0: all may move)."""


def settled(before: Sequence[str], after: Sequence[str]) -> list[str]:
    """`after` in the order of `before`, so that rows stay where they are; new keys follow their new neighbour."""
    present = set(after)
    order = [key for key in before if key in present]
    known = set(order)
    place = {key: i for i, key in enumerate(order)}
    pending: dict[int, list[str]] = {}
    at = -1
    for key in after:
        if key in known:
            at = place[key]
        else:
            pending.setdefault(at, []).append(key)
    out = list(pending.get(-1, ()))
    for i, key in enumerate(order):
        out.append(key)
        out.extend(pending.get(i, ()))
    return out


class Table(ScrollView, can_focus=True):
    """Rows under a heading, with a cursor, a filter and a sort column."""

    DEFAULT_CSS = """
    Table { scrollbar-size: 0 0; overflow-x: hidden; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up,k", "cursor(-1)", "Up", show=False, id="table.up"),
        Binding("down,j", "cursor(1)", "Down", show=False, id="table.down"),
        Binding("pageup", "page(-1)", "Page up", show=False, id="table.page_up"),
        Binding("pagedown", "page(1)", "Page down", show=False, id="table.page_down"),
        Binding("home", "cursor(-1000000)", "First", show=False, id="table.first"),
        Binding("end,G", "cursor(1000000)", "Last", show=False, id="table.last"),
        Binding("enter,l,right", "open", "Open", show=False, id="table.open"),
        Binding("o", "sort", "Sort by the next column", show=False, id="table.sort"),
        Binding("space", "mark", "Mark", show=False, id="table.mark"),
    ]

    class Opened(Message):
        """Enter on a row."""

        def __init__(self, table: Table, key: str) -> None:
            super().__init__()
            self.table, self.key = table, key

        @property
        def control(self) -> Table:
            return self.table

    class Moved(Message):
        """The cursor stands on another row."""

        def __init__(self, table: Table, key: str) -> None:
            super().__init__()
            self.table, self.key = table, key

    def __init__(self, paint: Callable[[], Paint], *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._paint = paint
        self.content = Content()
        self.shown: tuple[AnyRow, ...] = ()
        self.cursor = 0
        self.filter_text = ""
        self.sort_column: int | None = None
        self.sort_descending = False
        self.marked: set[str] = set()
        self._fresh: set[str] = set()
        self._lines: list[Spans] = []

    # What is shown

    def load(self, content: Content) -> None:
        """Show `content`; only lines whose text changed are drawn again."""
        before = self.content
        key = self.cursor_key
        old_keys = [row.key for row in before.rows]
        self.content = content
        self._fresh = {r.key for r in content.rows} - set(old_keys) if old_keys and not content.note else set()
        if len(self._fresh) > max(3, len(content.rows) // 4):
            self._fresh = set()  # a new list, not new rows in it
        if content.title != before.title:
            self.border_title = content.title
        self._settle(key)
        if self.border_subtitle != (subtitle := self._subtitle()):
            self.border_subtitle = subtitle
        redraw = content.columns != before.columns or content.is_stale != before.is_stale or content.note != before.note
        self._relayout(redraw=redraw)

    def _subtitle(self) -> str:
        parts = [f"/{self.filter_text} {len(self.shown)} of {len(self.content.rows)}"] if self.filter_text else []
        parts += [self.content.subtitle] if self.content.subtitle else []
        return " · ".join(parts)

    def _settle(self, key: str | None) -> None:
        rows = self.content.rows
        words = self.filter_text.lower().split()
        if words:
            rows = tuple(r for r in map(made, rows) if all(word in f"{r.text} {r.search}".lower() for word in words))
        if self.sort_column is not None:
            column = self.sort_column
            whole = [made(r) for r in rows]
            with_value = [r for r in whole if column < len(r.values)]
            with_value.sort(key=lambda r: (isinstance(r.values[column], str), r.values[column]))
            if self.sort_descending:
                with_value.reverse()
            rows = (*with_value, *(r for r in whole if column >= len(r.values)))
        elif self.has_focus and self.keeps_order and self.shown and rows:
            by_key = {row.key: row for row in rows}
            rows = tuple(by_key[k] for k in settled([r.key for r in self.shown], [r.key for r in rows]))
        self.shown = rows
        if key is not None:
            self.cursor = next((i for i, row in enumerate(rows) if row.key == key), min(self.cursor, len(rows) - 1))
        self.cursor = max(0, min(self.cursor, len(rows) - 1))

    keeps_order: ClassVar[bool] = True

    def on_blur(self) -> None:
        self._settle(self.cursor_key)
        self._relayout()

    def on_focus(self) -> None:
        self._relayout()

    def on_resize(self, event: events.Resize) -> None:
        self._relayout(redraw=True)

    def repaint(self) -> None:
        """Draw everything again, for another theme."""
        self._relayout(redraw=True)

    # The cursor

    @property
    def cursor_key(self) -> str | None:
        return self.shown[self.cursor].key if 0 <= self.cursor < len(self.shown) else None

    def action_cursor(self, by: int) -> None:
        self.move_to(self.cursor + by)

    def action_page(self, by: int) -> None:
        self.move_to(self.cursor + by * max(1, self.size.height - 2))

    def move_to(self, index: int) -> None:
        """Put the cursor on a row, scrolled into sight."""
        index = max(0, min(index, len(self.shown) - 1))
        if index != self.cursor:
            self.cursor = index
            if (key := self.cursor_key) is not None:
                self.post_message(self.Moved(self, key))
        self._reveal()
        self._relayout()

    def move_to_key(self, key: str) -> None:
        for i, row in enumerate(self.shown):
            if row.key == key:
                self.move_to(i)
                return

    def _reveal(self) -> None:
        height = max(1, self.size.height - 1)
        top = round(self.scroll_y)
        if self.cursor < top:
            self.scroll_to(y=self.cursor, animate=False, immediate=True)
        elif self.cursor >= top + height:
            self.scroll_to(y=self.cursor - height + 1, animate=False, immediate=True)

    def action_open(self) -> None:
        if (key := self.cursor_key) is not None:
            self.post_message(self.Opened(self, key))

    def action_mark(self) -> None:
        if (key := self.cursor_key) is not None:
            self.marked ^= {key}
            self.action_cursor(1)
            self._relayout()

    def on_click(self, event: events.Click) -> None:
        row = event.get_content_offset(self)
        if row is not None and row.y > 0:
            index = row.y - 1 + round(self.scroll_y)
            if index == self.cursor and event.chain > 1:
                self.action_open()
            elif index < len(self.shown):
                self.move_to(index)

    # Filter and sort

    def set_filter(self, text: str) -> None:
        """Show only rows that hold every word of `text`."""
        self.filter_text = text
        self._settle(self.cursor_key)
        self.border_subtitle = self._subtitle()
        self._relayout(redraw=True)

    def action_sort(self) -> None:
        """Sort by the next column, upwards then downwards, then back to the natural order."""
        width = max((len(made(r).values) for r in self.content.rows[:1]), default=0)
        if self.sort_column is None:
            self.sort_column, self.sort_descending = (0, False) if width else (None, False)
        elif not self.sort_descending:
            self.sort_descending = True
        else:
            following = self.sort_column + 1
            self.sort_column, self.sort_descending = (following if following < width else None), False
        self._settle(self.cursor_key)
        self._relayout(redraw=True)

    # Drawing

    def _relayout(self, *, redraw: bool = False) -> None:
        if not self.is_attached or not self.size.width:
            return
        size = Size(self.size.width, len(self.shown) + 1)
        if size != self.virtual_size:
            self.virtual_size = size
        before, self._lines = self._lines, [self._line(y) for y in range(self.size.height)]
        if redraw or len(before) != len(self._lines):
            self.refresh()
            return
        for y, (old, new) in enumerate(zip(before, self._lines, strict=True)):
            if old != new:
                self.refresh(Region(0, y, self.size.width, 1))

    def watch_scroll_y(self, old_value: float, new_value: float) -> None:
        super().watch_scroll_y(old_value, new_value)
        self._lines = [self._line(y) for y in range(self.size.height)]

    def _line(self, y: int) -> Spans:
        width = self.size.width
        if y == 0:
            return self._heading()
        if self.content.note and not self.shown:
            return ((" ", "text"), *self.content.note[y - 1]) if y <= len(self.content.note) else ()
        if not self.shown and self.filter_text and y == 1:
            return ((f" nothing matches /{self.filter_text}", "dim"),)
        index = y - 1 + round(self.scroll_y)
        if index >= len(self.shown):
            return ()
        row = made(self.shown[index])
        out: list[Span] = [(" ", "text")]
        used = 1
        is_cursor = index == self.cursor and self.has_focus
        for i, (column, cell) in enumerate(zip(self.content.columns, row.cells, strict=False)):
            gap = column.gap if i else 0
            if gap:
                out.append((" " * gap, "text"))
            last = row.tail and i == len(row.cells) - 1
            cells = width - used - gap if last else column.width
            spans = fit(cell, cells, align="left" if last else column.align)
            if i == 0:
                if row.key in self.marked:
                    spans = tuple((text, "focus") for text, _ in spans)
                if is_cursor:
                    spans = tuple((text, f"{name}+") for text, name in spans)
                elif row.key in self._fresh:
                    spans = tuple((text, "focus*") for text, _ in spans)
            out.extend(spans)
            used += gap + cells
        return tuple(out)

    def _heading(self) -> Spans:
        if self.content.note and not self.shown:
            return ()
        out: list[Span] = [(" ", "text")]
        for i, column in enumerate(self.content.columns):
            if i and column.gap:
                out.append((" " * column.gap, "text"))
            spans = column.heading or ((column.title, "dim"),)
            if i == self.sort_column:
                arrow = "↓" if self.sort_descending else "↑"
                title = column.title[: max(0, column.width - 1)]
                spans = ((f"{title}{arrow}", "focus"),)
            out.extend(fit(spans, column.width, align=column.align, style="dim"))
        return tuple(out)

    def render_line(self, y: int) -> Strip:
        paint = self._paint()
        spans = self._lines[y] if y < len(self._lines) else ()
        suffix = "~" if self.content.is_stale and y else ""
        return strip(spans, paint, self.size.width, suffix=suffix)
