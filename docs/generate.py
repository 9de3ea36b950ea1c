"""Writes docs/reference.md and docs/metrics.md from the code. With --check says whether they differ."""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from enum import Enum
from pathlib import Path

from gswarm.catalogue import Action, Parameter, actions
from gswarm.errors import ExitCode
from gswarm.facegen import ABOUT
from gswarm.host.rest import PREFIX, path_of
from gswarm.profiler.matrix import MEANINGS
from gswarm.profiler.metrics import CLOCK_EVENTS, METRICS, SLOW_S, THROTTLES, Metric, Type
from gswarm.profiler.types import NodeTopology, TopologyRow

SAMPLE = NodeTopology(
    "n1",
    (
        TopologyRow("gpu0", ("X", "NV18", "SYS"), "0-31", 0),
        TopologyRow("gpu1", ("NV18", "X", "SYS"), "0-31", 0),
        TopologyRow("gpu2", ("SYS", "SYS", "X"), "32-63", 1),
    ),
)
HERE = Path(__file__).parent
MEANS = {
    ExitCode.OK: "done",
    ExitCode.FAILED: "it was tried and failed",
    ExitCode.USAGE: "the words on the command line, or a file, cannot be right",
    ExitCode.UNREACHABLE: "no host answers",
    ExitCode.NOT_FOUND: "what was named is not there",
    ExitCode.REFUSED: "understood, and not allowed or not possible now; nothing was changed",
    ExitCode.TIMED_OUT: "`--timeout` is over; the work goes on",
    ExitCode.INTERRUPTED: "Ctrl-C; work that was asked for goes on",
}


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    """A Markdown table."""
    cells = [tuple(cell.replace("|", "\\|") for cell in row) for row in rows]
    return [
        f"| {' | '.join(head)} |",
        f"|{'---|' * len(head)}",
        *(f"| {' | '.join(row)} |" for row in cells),
        "",
    ]


def default_of(p: Parameter) -> str:
    """What a parameter is when it is not given."""
    value = p.default.value if isinstance(p.default, Enum) else p.default
    return "" if p.required or value in (None, "", (), False) or value == [] else f"`{value}`"


def parameters_of(action: Action) -> list[str]:
    """Its parameters as a table; nothing when it takes none."""
    rows = []
    for p in action.parameters:
        name = f"`{p.name.upper()}`" if p.positional else f"`{p.flag}`"
        kind = ", ".join(f"`{choice}`" for choice in p.choices) or p.type.__name__.lower()
        rows.append((name, kind + (", several" if p.many else ""), default_of(p), p.doc))
    return table(("parameter", "type", "default", "what"), rows) if rows else []


def command(action: Action) -> list[str]:
    """One command, with its other faces."""
    words = " ".join(p.name.upper() if p.required else f"[{p.name.upper()}]" for p in action.parameters if p.positional)
    lines = [f"### gswarm {action.name} {words}".rstrip(), "", action.doc, ""]
    facts = ["read" if action.read else f"{action.effect}"]
    if action.destructive:
        facts.append("asks first, `--yes` answers")
    if action.local:
        facts.append("this machine only: needs no host")
    else:
        facts.append(f"`{'GET' if action.read else 'POST'} {PREFIX}{path_of(action)}`")
        facts.append(f"Python `await swarm.{action.id}(...)`")
    if action.until:
        facts.append("waits until it is done; `--no-wait` does not")
    lines += [" · ".join(facts) + ".", "", *parameters_of(action)]
    return [*lines, "```console", *(f"$ {line}" for line in action.examples), "```", ""]


def reference() -> str:
    """The whole page."""
    groups: dict[str, list[Action]] = defaultdict(list)
    for action in actions():
        groups[action.domain.partition(" ")[0]].append(action)
    lines = [
        "# Reference",
        "",
        "Written by `python docs/generate.py` from the code. Every command also takes `--output table|json|yaml`, and those",
        "that ask a host `--host`, `--token-file`, `--timeout` and, when they change something, `--dry-run` and `--request-id`.",
        "",
        "## Exit codes",
        "",
        *table(("code", "means"), [(str(int(code)), MEANS[code]) for code in ExitCode]),
        "Metrics have [a page of their own](metrics.md).",
        "",
    ]
    for domain, members in groups.items():
        lines += [f"## {domain or 'gswarm'}: {ABOUT.get(domain, '')}", ""]
        for action in members:
            lines += command(action)
    return "\n".join(lines).rstrip() + "\n"


def metric_row(m: Metric) -> tuple[str, ...]:
    """One metric; those of single NVLinks stand for all of them."""
    name, source = m.name, m.source
    if name.startswith("nvlink0_"):
        name, source = name.replace("0", "N"), source.replace(", 0)", ", N)")
    read = m.cadence.value + (f", with `profiler sampling --{m.group.value} on`" if m.group else "")
    return (f"`{name}`", m.unit or "-", m.type.value, read, source)


def metrics() -> str:
    """The metrics page."""
    single = [m for m in METRICS if not (m.name.startswith("nvlink") and m.name[6].isdigit() and m.name[6:8] != "0_")]
    kinds = [
        (f"`{Type.F32.value}`", "float32", "NaN"),
        (f"`{Type.I32.value}`", "int32", "-2147483648"),
        (f"`{Type.U64.value}`", "whole number of 64 bits that may fall", "2^64-1"),
        (f"`{Type.COUNTER.value}`", "whole number of 64 bits that only grows, but for a reset of the device", "2^64-1"),
        (f"`{Type.MASK.value}`", "a set of bits", "2^64-1"),
    ]
    bits = [(f"`{bit:#05x}`", name, "yes" if bit & THROTTLES else "") for bit, name in CLOCK_EVENTS]
    lines = [
        "# Metrics",
        "",
        "Written by `python docs/generate.py` from `gswarm/profiler/metrics.py`; `gswarm profiler metrics` lists the same.",
        "",
        "The unit is in the name. KiB is 1,024 bytes, never kilobits; counters stay 64 bits wide all the way into the",
        "recording. What a device does not give is `NA` with a reason, never 0: `not supported` is remembered, any other error is",
        "asked again. A column is sent once a device of the node gives it; a metric that no device of a node supports costs nothing.",
        f"What moves slowly is read every {SLOW_S:.0f} s, and once what does not move; a tick carries the last value of those.",
        "",
        "The metrics of SMs, tensor cores and DRAM are those of NVML's GPM: Hopper and newer, without root, and without the lock",
        "that other profilers fight for. GPM tells PCIe and NVLink traffic too. `nvmlDeviceGetPcieThroughput`, which older",
        "devices need for that, measures for 20 ms and blocks as long, twice a sample: it is off until",
        "`gswarm profiler sampling --pcie on`. The counters of single NVLinks are 38 columns a GPU, and off until",
        "`gswarm profiler sampling --nvlink on`. Both are switched while agents run, on all nodes or with `--nodes` on some.",
        "",
        "`gswarm client connect --extra-metrics NAME` samples any other property of nvitop's `Device` that takes no argument and",
        "gives a number; `client.extra_metrics` in config.yaml does the same. XID errors are events (`device.xid`) too.",
        "Processes are shown with their device (`gswarm device show`): user, program and script, never their arguments.",
        "",
        "How the GPUs of a node reach each other is told once, when its agent starts, in the words of `nvidia-smi topo -m`:",
        "",
        "```console",
        "$ gswarm profiler topology n1",
        *SAMPLE.lines(),
        "```",
        "",
        *(f"- `{short}`: {meaning}" for short, meaning in MEANINGS.items()),
        "",
        *table(("metric", "unit", "type", "read", "where it comes from"), [metric_row(m) for m in single]),
        "## Types",
        "",
        *table(("type", "is", "NA is"), kinds),
        "## Bits of `clock_event_reasons`",
        "",
        *table(("bit", "name", "too hot, or power fails"), bits),
    ]
    return "\n".join(lines).rstrip() + "\n"


PAGES = {"reference.md": reference, "metrics.md": metrics}


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="exit 1 when a page differs")
    options = parser.parse_args()
    for name, write in PAGES.items():
        target, text = HERE / name, write()
        if not options.check:
            target.write_text(text)
        elif not target.exists() or target.read_text() != text:
            sys.exit(f"docs/{name} is not what the code says. Run: python docs/generate.py")


if __name__ == "__main__":
    main()
