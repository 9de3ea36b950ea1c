"""The memory ledger of one device: a bar whose parts add up to the whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .. import figures
from .spans import Span, Spans, fit


@dataclass(frozen=True, slots=True)
class Part:
    """A share of the memory. `hue` None: not a model's (foreign, not told apart)."""

    name: str
    detail: str
    count: int
    hue: int | None = None
    is_free: bool = False


def widths(parts: Sequence[Part], cells: int) -> list[int]:
    """Cells for each part, largest remainder first, so that they add up; what is there gets a cell."""
    total = sum(p.count for p in parts)
    if not total or cells <= 0:
        return [0] * len(parts)
    exact = [p.count * cells / total for p in parts]
    out = [max(1, int(e)) if p.count else 0 for e, p in zip(exact, parts, strict=True)]
    while sum(out) > cells:
        out[out.index(max(out))] -= 1
    order = sorted(range(len(parts)), key=lambda i: exact[i] - int(exact[i]), reverse=True)
    for i in order:
        if sum(out) >= cells:
            break
        if parts[i].count:
            out[i] += 1
    if sum(out) < cells:
        out[out.index(max(out))] += cells - sum(out)
    return out


def ledger(parts: Sequence[Part], cells: int) -> tuple[Spans, Spans, Spans]:
    """The bar, the names under it, the sizes under those."""
    bar: list[Span] = []
    names: list[Span] = []
    sizes: list[Span] = []
    for part, width in zip(parts, widths(parts, cells), strict=True):
        if not width:
            continue
        if part.is_free:
            bar.append(("━" * width, "track"))
        elif part.hue is None:
            bar += [("▌", "faint"), ("░" * (width - 1), "load")]
        else:
            bar += [("▌", f"nowedge{part.hue % 8}"), (" " * (width - 1), f"now{part.hue % 8}")]
        names += fit(((part.name, "text"),), width) if width > 3 else ((" " * width, "text"),)
        size = f"{part.count / 2**30:.1f}G"
        text = f"{size} {part.detail}" if part.detail and len(size) + 1 + len(part.detail) < width else size
        sizes += fit(((text, "dim"),), width) if width > len(size) else ((" " * width, "text"),)
    return tuple(bar), tuple(names), tuple(sizes)


def total_line(parts: Sequence[Part]) -> str:
    """The sum in words: "16.1 + 40.0 + 19.1 free = 80.0 GiB"."""
    terms = []
    for part in parts:
        if part.count:
            name = " free" if part.is_free else "" if part.name == "" else f" {part.name}"
            terms.append(f"{part.count / 2**30:.1f}{name}")
    return f"{' + '.join(terms)} = {figures.size(sum(p.count for p in parts))}" if terms else ""
