"""Writes docs/reference.md from the code: commands, exit codes, metrics, settings. With --check says whether it differs."""

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
from gswarm.profiler.metrics import METRICS

TARGET = Path(__file__).with_name("reference.md")
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
        "## Metrics",
        "",
        "What each device is asked every second. What it does not give is `NA`, never 0.",
        "",
        *table(
            ("metric", "unit", "where it comes from"), [(f"`{m.name}`", m.unit or "count", m.source) for m in METRICS]
        ),
    ]
    for domain, members in groups.items():
        lines += [f"## {domain or 'gswarm'}: {ABOUT.get(domain, '')}", ""]
        for action in members:
            lines += command(action)
    return "\n".join(lines).rstrip() + "\n"


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="exit 1 when the page differs")
    options = parser.parse_args()
    text = reference()
    if not options.check:
        TARGET.write_text(text)
    elif not TARGET.exists() or TARGET.read_text() != text:
        sys.exit("docs/reference.md is not what the code says. Run: python docs/generate.py")


if __name__ == "__main__":
    main()
