"""A comparison of strategies as a picture: makespan over the bound, and the waits and responses of the worst hundredth."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO

from gswarm.scheduler.types import Outcome

BARS = (("wait p99", "#1372cb"), ("response p99", "#9b6600"))
"""Hues of the console's light theme, told apart with every kind of sight."""


def compared(rows: Sequence[Outcome], format: str, title: str) -> bytes:
    """The picture, "svg" or "png". Raises ImportError without matplotlib; the same rows give the same bytes."""
    import matplotlib
    from matplotlib.figure import Figure

    names = [row.strategy for row in rows]
    places = range(len(rows))
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "gswarm", "font.size": 9}):
        figure = Figure(figsize=(8.4, 1.3 + 0.34 * len(rows)), layout="constrained")
        figure.suptitle(title, fontsize=10)
        left, right = figure.subplots(1, 2, sharey=True)
        left.barh(places, [row.ratio for row in rows], color="#00704f", height=0.6)
        for place, row in zip(places, rows, strict=True):
            left.text(row.ratio, place, f" {row.ratio:.3f}", va="center")
        left.axvline(1.0, color="#22282f", linewidth=0.8)
        left.set_yticks(places, names)
        left.invert_yaxis()
        left.set_xlim(0, 1.18 * max([1.0, *(row.ratio for row in rows)]))
        left.set_xlabel("makespan / lower bound")
        seconds = ([row.wait_p99_s for row in rows], [row.response_p99_s for row in rows])
        for (name, colour), values, shift in zip(BARS, seconds, (-0.18, 0.18), strict=True):
            right.barh([place + shift for place in places], values, color=colour, height=0.34, label=name)
        right.set_xlabel("seconds")
        right.legend(frameon=False, loc="lower right", fontsize=8)
        for axes in (left, right):
            axes.spines[["top", "right"]].set_visible(False)
        out = BytesIO()
        figure.savefig(out, format=format, metadata={"Date": None} if format == "svg" else None, dpi=150)
    return out.getvalue()
