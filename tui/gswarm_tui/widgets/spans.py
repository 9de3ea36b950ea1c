"""Styled text as plain tuples: what rows are built of, compared by, and painted from."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeAlias

from rich.cells import cell_len, set_cell_size
from rich.segment import Segment
from textual.strip import Strip

from ..themes import Paint

Span: TypeAlias = tuple[str, str]
"""Text and the name of its style."""
Spans: TypeAlias = tuple[Span, ...]

_ASCII = str.maketrans(
    {
        "●": "*", "◐": "%", "○": "o", "◌": ".", "▲": "!", "■": "#", "━": "#", "╸": "#", "▌": "[", "×": "x", "≈": "~",
        "░": ":", "▸": ">", "▾": "v", "…": "~", "·": "-", "‹": "<", "→": ">", "│": "|", "─": "-", "▁": "_", "▂": "_",
        "▃": "-", "▄": "-", "▅": "=", "▆": "=", "▇": "#", "█": "#", "↑": "^", "↓": "v", "←": "<", "±": "+", "°": " ",
        "▶": ">", "⏸": "=", "╷": "|",
    }
)  # fmt: skip


def width(spans: Iterable[Span]) -> int:
    return sum(cell_len(text) for text, _ in spans)


def plain(spans: Iterable[Span]) -> str:
    return "".join(text for text, _ in spans)


def fit(spans: Sequence[Span], cells: int, *, align: str = "left", style: str = "text") -> Spans:
    """Exactly `cells` wide: padded, or cut with an ellipsis. A number is never cut: `#` fills instead."""
    total = width(spans)
    if total == cells:
        return tuple(spans)
    if total < cells:
        pad = ((" " * (cells - total), style),)
        return (*pad, *spans) if align == "right" else (*spans, *pad)
    if cells <= 0:
        return ()
    if align == "right":
        return (("#" * cells, spans[-1][1]),)
    kept: list[Span] = []
    room = cells - 1
    for text, name in spans:
        if (length := cell_len(text)) <= room:
            kept.append((text, name))
            room -= length
            continue
        kept.append((set_cell_size(text, room) + "…", name))
        break
    else:
        kept.append(("…", spans[-1][1]))
    lacking = cells - width(kept)
    return (*kept, (" " * lacking, style)) if lacking > 0 else tuple(kept)


def strip(spans: Iterable[Span], paint: Paint, cells: int, *, suffix: str = "") -> Strip:
    """Paint `spans` as one strip of `cells` cells; every segment carries its background."""
    segments = []
    length = 0
    for text, name in spans:
        if not text:
            continue
        if paint.is_ascii:
            text = text.translate(_ASCII)
        segments.append(Segment(text, paint[name + suffix]))
        length += cell_len(text)
    made = Strip(segments, length)
    return made if length == cells else made.adjust_cell_length(cells, paint["text"])
