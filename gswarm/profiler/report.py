"""A recording as one self-contained HTML page: no script, nothing from elsewhere, every name escaped, light and dark."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape

from gswarm import __version__, units
from gswarm.profiler import charts, svg, tables
from gswarm.profiler.history import History, SpanKind
from gswarm.profiler.series import Series
from gswarm.profiler.types import Analysis

CHARTS_LIMIT = 400
"""More would make a page that no browser scrolls through; the rest is named."""
_STYLE = """
:root{color-scheme:light dark;--ink:#22282f;--dim:#5c6370;--paper:#fff;--edge:#dde1e6;--blue:#1372cb;--amber:#b97a00;
--run:#7fb0dc;--ready:#cfe3d8;--red:#b3261e;--green:#00704f}
@media (prefers-color-scheme:dark){:root{--ink:#e4e7eb;--dim:#9aa3ae;--paper:#14181d;--edge:#2d343c;--blue:#5fb0ff;
--amber:#e2a93b;--run:#3f7fb8;--ready:#24463a;--red:#ff8a80;--green:#5fcf9f}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:72rem;padding:1.5rem;background:var(--paper);color:var(--ink);
font:15px/1.5 system-ui,sans-serif}
h1{font-size:1.5rem;margin:0}h2{font-size:1.1rem;margin:2rem 0 .5rem;border-bottom:1px solid var(--edge)}
h3{font-size:1rem;margin:1.2rem 0 .2rem}p{margin:.3rem 0}
.dim,caption{color:var(--dim)}.error{color:var(--red)}.warning{color:var(--amber)}
ul{padding-left:1.2rem}.table{overflow-x:auto}
table{border-collapse:collapse;font-variant-numeric:tabular-nums;white-space:nowrap}
caption{text-align:left;padding:.4rem 0}th,td{padding:.15rem .7rem .15rem 0;text-align:right;font-weight:400}
th{color:var(--dim);font-size:.85em}td.word,th.word{text-align:left}
tbody tr{border-top:1px solid var(--edge)}
.charts{display:grid;grid-template-columns:repeat(auto-fill,minmax(22rem,1fr));gap:.5rem 1.5rem}
figure{margin:0}figcaption{color:var(--dim);font-size:.85em}
svg{display:block;width:100%;height:auto}svg text{font:11px system-ui,sans-serif;fill:var(--dim)}
.line{fill:none;stroke:var(--blue);stroke-width:1.4;stroke-linecap:round;stroke-linejoin:round}
.grid{stroke:var(--edge);stroke-width:1}line.mark{stroke:var(--ink);stroke-dasharray:2 3}svg text.mark{fill:var(--ink)}
rect.task{fill:var(--run)}rect.task.failed,rect.service.failed{fill:var(--red)}
rect.service{fill:var(--ready)}rect.service.loading{fill:var(--amber)}rect.download{fill:var(--green)}
rect.mark{fill:var(--edge);stroke:var(--dim)}
"""


def pieces(found: Analysis, series: Sequence[Series], history: History) -> Iterator[str]:
    """The page, in pieces."""
    name = escape(found.name)
    yield (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{name}</title><style>{_STYLE}</style></head><body>\n"
    )
    yield f"<header><h1>{name}</h1>{_summary(found)}</header>\n"
    yield from _findings(found)
    yield from _timeline(series, history)
    yield from _tables(found)
    yield from _charts(series, history)
    yield (
        "<footer><h2>How to read it</h2><p class=dim>Means and percentiles are weighted with the time that each sample "
        "stands for; gaps count for nothing. NA: the device gave no value. Idle: GPU utilisation under 5 %. Starved: "
        "idle while tasks that the plan gave to the device were ready. Uneven: 0 % when all devices of a node do the "
        f"same, 100 % when one does everything. Made by gswarm {escape(__version__)}.</p></footer></body></html>\n"
    )


def _summary(found: Analysis) -> str:
    accelerators = [d for d in found.devices if d.kind != "CPU"]
    simulated = sum(d.kind == "SIM" for d in accelerators)
    told = (
        f"{found.start:%Y-%m-%d %H:%M:%S} to {found.end:%H:%M:%S} UTC "
        f"({units.duration((found.end - found.start).total_seconds())}), {tables.counted(len(found.nodes), 'node')}, "
        f"{tables.counted(len(accelerators), 'accelerator')}, {tables.counted(found.ticks, 'tick')}, "
        f"{tables.counted(found.events, 'event')}"
    )
    notes = [f"<p>{escape(told)}</p>"]
    if simulated:
        notes.append(
            f"<p class=warning>SIM: {simulated} of the accelerators are simulated, and so are their numbers.</p>"
        )
    notes += [f"<p class=error>Not whole: {escape(note)}</p>" for note in found.damage]
    return "".join(notes)


def _findings(found: Analysis) -> Iterator[str]:
    yield "<section><h2>Findings</h2>"
    if not found.findings:
        yield "<p>Nothing stands out.</p>"
    else:
        items = (
            f"<li><span class={f.severity.value}>{escape(f.text)}</span> <span class=dim>({escape(f.evidence)})</span></li>"
            for f in found.findings
        )
        yield f"<ul>{''.join(items)}</ul>"
    yield "</section>\n"


def _timeline(series: Sequence[Series], history: History) -> Iterator[str]:
    rows = []
    for one in series:
        name = charts.label(history, one.device)
        if services := history.of(SpanKind.SERVICE, one.device):
            rows.append((f"{name} models", services))
        if tasks := history.of(SpanKind.TASK, one.device):
            rows.append((f"{name} tasks", tasks))
    if marked := history.of(SpanKind.MARK):
        rows.append(("marks", marked))
    if downloads := history.of(SpanKind.DOWNLOAD):
        rows.append(("downloads", downloads))
    if not rows and not history.marks:
        return
    yield "<section><h2>Timeline</h2><p class=dim>Models: amber while they load, then pale; tasks blue; red failed; "
    yield f"dotted lines are marks. The pointer on a box shows what it is.</p>{svg.timeline(rows, history)}</section>\n"


def _tables(found: Analysis) -> Iterator[str]:
    yield "<section><h2>Figures</h2>"
    for head, rows, words in tables.figures(found):
        if rows:
            yield f"<div class=table>{_table(head, rows, words)}</div>"
    yield "</section>\n"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], words: int) -> str:
    def cells(tag: str, row: Sequence[str]) -> str:
        return "".join(
            f"<{tag}{' class=word' if place < words else ''}>{escape(cell)}</{tag}>" for place, cell in enumerate(row)
        )

    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    return f"<table><thead><tr>{cells('th', head)}</tr></thead><tbody>{body}</tbody></table>"


def _charts(series: Sequence[Series], history: History) -> Iterator[str]:
    metrics = [m for m in charts.METRICS if any(one.has(m) for one in series)]
    lines = {metric: [charts.line(one, history, metric) for one in series] for metric in metrics}
    tops = {metric: charts.top(found) for metric, found in lines.items()}
    shown = series[: max(1, CHARTS_LIMIT // max(1, len(metrics)))]
    yield "<section><h2>Devices</h2>"
    for place, one in enumerate(shown):
        yield f"<h3>{escape(charts.label(history, one.device))}</h3><div class=charts>"
        for metric in metrics:
            if not one.has(metric):
                continue
            found = lines[metric][place]
            caption = escape(f"{charts.title(metric)}, {found.unit}")
            yield f"<figure><figcaption>{caption}</figcaption>{svg.chart(found, history, tops[metric])}</figure>"
        if not any(one.has(metric) for metric in metrics):
            yield "<p class=dim>NA: it gave none of these values.</p>"
        yield "</div>"
    if left := len(series) - len(shown):
        yield f"<p class=warning>{left} more devices are in the figures above, but not drawn.</p>"
    yield "</section>\n"
