"""A bar on a track, drawn with half cells: a share of something with a cap."""

from __future__ import annotations

from .spans import Spans


def bar(share: float | None, cells: int, style: str = "bar") -> Spans:
    """`share` of 1 as `━` on a track of `cells` cells; no share, only the track."""
    halves = 0 if share is None else round(max(0.0, min(1.0, share)) * cells * 2)
    if share and share > 0.005 and halves == 0:
        halves = 1
    full, half = divmod(halves, 2)
    out = []
    if full or half:
        out.append(("━" * full + "╸" * half, style))
    if rest := cells - full - half:
        out.append(("━" * rest, "track"))
    return tuple(out)
