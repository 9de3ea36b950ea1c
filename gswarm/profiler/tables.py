"""Analyses and comparisons as text that fits 80 columns."""

from __future__ import annotations

from collections.abc import Sequence

from gswarm import units
from gswarm.profiler.types import Analysis, Change, Comparison, DeviceFigures, Drawn, MetricFigures, Verdict
from gswarm.views import printable

WIDTH = 80
_ALL = "every figure with its interval: --output json"
_MARKS = {"error": "!!", "warning": "! ", "info": "  "}


def grid(head: Sequence[str], rows: Sequence[Sequence[str]], words: int = 1) -> list[str]:
    """Columns: the first `words` to the left, the others, numbers, to the right."""
    cells = [[printable(cell) for cell in row] for row in (head, *rows)]
    wide = [max(len(row[i]) for row in cells) for i in range(len(head))]
    return [
        "  ".join(cell.ljust(wide[i]) if i < words else cell.rjust(wide[i]) for i, cell in enumerate(row)).rstrip()
        for row in cells
    ]


def wrapped(text: str, first: str, rest: str) -> list[str]:
    """A sentence over as many lines as it needs."""
    import textwrap

    return textwrap.wrap(printable(text), WIDTH, initial_indent=first, subsequent_indent=rest) or [first.rstrip()]


def counted(count: int, word: str) -> str:
    """1 load, 2 loads."""
    return f"{count} {word}{'' if count == 1 else 's'}"


def several(names: Sequence[str]) -> str:
    """Devices of one node in a few words: n1:gpu0, or gpu0-gpu3, gpu5 of n1."""
    if len(names) == 1:
        return names[0]
    node, colon, _ = names[0].partition(":")
    runs: list[list[str]] = []
    numbered = [(*_numbered(name.removeprefix(f"{node}:") if colon else name), name) for name in names]
    for place, (stem, number, _) in enumerate(numbered):
        before = numbered[place - 1][:2] if place else None
        if before is not None and number is not None and before == (stem, number - 1):
            runs[-1].append(f"{stem}{number}")
        else:
            runs.append([stem if number is None else f"{stem}{number}"])
    told = ", ".join(run[0] if len(run) == 1 else f"{run[0]}{', ' if len(run) == 2 else '-'}{run[-1]}" for run in runs)
    return f"{told} of {node}" if colon else told


def _numbered(name: str) -> tuple[str, int | None]:
    stem = name.rstrip("0123456789")
    digits = name[len(stem) :]
    return (stem, int(digits)) if digits and not (len(digits) > 1 and digits[0] == "0") else (name, None)


def _percent(value: float | None) -> str:
    """A percentage, from 0 to 100."""
    return units.NA if value is None else f"{value:.0f}%"


def _share(value: float | None) -> str:
    return units.NA if value is None else "<1%" if 0 < value < 0.005 else f"{value * 100:.0f}%"


def _watts(milliwatts: float | None) -> str:
    return units.NA if milliwatts is None else f"{milliwatts / 1000:.0f}W"


def _joules(joules: float | None) -> str:
    """In Wh from a tenth of one on: what people pay for."""
    if joules is None:
        return units.NA
    hours = joules / 3600
    return f"{joules:.0f}J" if hours < 0.1 else f"{hours:.1f}Wh" if hours < 1000 else f"{hours / 1000:.1f}kWh"


def _of(device: DeviceFigures, metric: str) -> MetricFigures:
    found = device.figures(metric)
    return found or MetricFigures(metric, "", None, None, None, None, None, None, 0.0)


def analysis(found: Analysis) -> list[str]:
    """The findings first: they are what one came for."""
    accelerators = [d for d in found.devices if d.kind != "CPU"]
    simulated = sum(d.kind == "SIM" for d in accelerators)
    out = wrapped(
        f"{found.name}: {units.duration((found.end - found.start).total_seconds())} from {units.clock(found.start)}, "
        f"{counted(len(found.nodes), 'node')}, {counted(len(accelerators), 'accelerator')}"
        f"{f' ({simulated} SIM)' if simulated else ''}, {counted(found.ticks, 'tick')}, {counted(found.events, 'event')}",
        "",
        "  ",
    )
    for note in found.damage:
        out += wrapped(f"not whole: {note}", "", "  ")
    out += [""]
    for finding in found.findings:
        out += wrapped(finding.text, f"{_MARKS[finding.severity.value]} ", "   ")
    if not found.findings:
        out.append("nothing stands out")
    for head, rows, words in figures(found):
        if rows:
            out += ["", *grid(head, rows, words)]
    return out


Table = tuple[Sequence[str], Sequence[Sequence[str]], int]
"""Headings, cells, and how many of the columns are words."""


def figures(found: Analysis) -> tuple[Table, ...]:
    """What is said in columns, for text and page alike."""
    return _utilisation(found.devices), _means(found.devices), _nodes(found), _models(found)


def _utilisation(devices: Sequence[DeviceFigures]) -> Table:
    rows = []
    for d in devices:
        util = _of(d, "gpu_util_percent")
        rows.append(
            (
                d.device,
                d.kind,
                *(_percent(value) for value in (util.mean, util.p50, util.p95, util.p99, util.max)),
                _share(d.idle_share),
                _share(d.starved_share),
                _share(d.loading_share),
                _share(d.throttled_share),
            )
        )
    head = ("DEVICE", "KIND", "UTIL", "P50", "P95", "P99", "MAX", "IDLE", "STARVED", "LOADING", "THROTTLED")
    return head, rows, 2


def _means(devices: Sequence[DeviceFigures]) -> Table:
    rows = []
    for d in devices:
        memory, power, heat = _of(d, "memory_used_bytes"), _of(d, "power_mw"), _of(d, "temperature_c")
        rows.append(
            (
                f"{d.device}{' SIM' if d.kind == 'SIM' else ''}",
                *(units.size(value) for value in (memory.mean, memory.max, d.head_room_bytes)),
                *(_watts(value) for value in (power.mean, power.p95, power.max)),
                units.NA if heat.max is None else f"{heat.max:.0f}°C",
                _joules(d.energy_j),
                d.energy_basis or "-",
            )
        )
    return ("DEVICE", "MEMORY", "MAX", "FREE", "POWER", "P95", "MAX", "HOTTEST", "ENERGY", "BASIS"), rows, 1


def _nodes(found: Analysis) -> Table:
    rows = []
    for n in found.nodes:
        part = f" of {n.energy_devices}" if 0 < n.energy_devices < n.devices else ""
        rows.append(
            (
                n.node,
                str(n.devices),
                _percent(n.util_mean),
                _share(n.idle_share),
                _share(n.throttled_share),
                _share(n.imbalance),
                _joules(n.energy_j) + part,
            )
        )
    return ("NODE", "DEVICES", "UTIL", "IDLE", "THROTTLED", "UNEVEN", "ENERGY"), rows, 1


def _models(found: Analysis) -> Table:
    rows = [
        (
            m.model,
            str(m.tasks),
            str(m.failed),
            *(units.duration(value) for value in (m.run_mean_s, m.run_p95_s, m.wait_mean_s, m.wait_p95_s)),
            str(m.loads),
            units.duration(m.load_mean_s),
            units.count(m.tokens),
        )
        for m in found.models
    ]
    return ("MODEL", "TASKS", "FAILED", "RUN", "P95", "WAIT", "P95", "LOADS", "LOAD", "TOKENS"), rows, 1


# Comparisons


def quantity(value: float | None, unit: str) -> str:
    """A value in its unit, short."""
    if value is None:
        return units.NA
    match unit:
        case "B":
            return f"{'-' if value < 0 else ''}{units.size(abs(value))}"
        case "mW":
            return f"{value / 1000:.3g}W"
        case _:
            return f"{value:.3g}{unit}" if abs(value) < 1000 else f"{value:.0f}{unit}"


def _row(change: Change) -> tuple[str, ...]:
    signed = "+" if (change.difference or 0) > 0 else ""
    between = units.NA
    if change.low is not None and change.high is not None:
        between = f"{quantity(change.low, change.unit)} to {quantity(change.high, change.unit)}"
    return (
        change.subject,
        change.metric,
        quantity(change.a, change.unit),
        quantity(change.b, change.unit),
        f"{signed}{quantity(change.difference, change.unit)}",
        between,
    )


def comparison(found: Comparison) -> list[str]:
    """What changed, then what did not and what cannot be told."""
    out = [f"{found.a} (A) and {found.b} (B)"]
    for note in found.damage:
        out += wrapped(f"not whole: {note}", "", "  ")
    moved = [c for c in found.changes if c.verdict in (Verdict.MORE, Verdict.LESS)]
    same = [c for c in found.changes if c.verdict is Verdict.SAME]
    unknown = [c for c in found.changes if c.verdict is Verdict.UNKNOWN]
    if moved:
        out += ["", "changed", *grid(("WHAT", "METRIC", "A", "B", "B - A", "BETWEEN"), [_row(c) for c in moved], 2)]
    if same:
        out += ["", "no change shown", *_listed(same)]
    if unknown:
        out += ["", "cannot be told", *_listed(unknown)]
    if not found.changes:
        return [*out, "", "they have no device and no model in common"]
    said = (
        f"B - A lies in BETWEEN, all of these at once with {found.confidence:.0%} confidence "
        f"(circular block bootstrap, {found.resamples} resamples, seed {found.seed})"
    )
    return [*out, "", *wrapped(said, "", ""), *wrapped(_ALL, "", "")]


def _listed(changes: Sequence[Change]) -> list[str]:
    """Which metrics of what: devices of a node with the same ones in one line."""
    metrics: dict[tuple[str, str, str], list[str]] = {}
    for change in changes:
        metrics.setdefault((change.subject, change.kind, change.detail), []).append(change.metric)
    alike: dict[tuple[str, str], list[str]] = {}
    for (subject, kind, why), names in metrics.items():
        name = subject.removesuffix(" SIM") if kind == "device" else subject
        place = f"node {name.partition(':')[0]}" if kind == "device" else f"model {name}"
        told = f"{subject.removeprefix(name)}: {', '.join(names)}{f' ({why})' if why else ''}"
        alike.setdefault((place, told), []).append(name)
    return [line for (_, told), of in alike.items() for line in wrapped(f"{several(of)}{told}", "", "  ")]


# Pictures


def drawn(found: Drawn) -> list[str]:
    """The picture itself, or where it is."""
    if found.picture:
        from gswarm.profiler.terminal import coloured

        return coloured(found.picture)
    out = [f"{found.path}: {', '.join(found.metrics)} of {counted(found.devices, 'device')}"]
    return [*out, *([f"not whole: {found.damage}"] if found.damage else [])]
