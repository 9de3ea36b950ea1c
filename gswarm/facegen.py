"""Generates faces.py (typed Python methods) and index.py (static help, domain to room) from the catalogue."""

from __future__ import annotations

import argparse
import sys
import typing
from collections import defaultdict
from collections.abc import Iterable
from enum import Enum
from pathlib import Path
from typing import Any

from gswarm.catalogue import Action, Parameter, actions

HERE = Path(__file__).parent
ABOUT = {
    "": "this machine and the whole",
    "node": "machines that run an agent",
    "device": "GPUs and CPUs, live",
    "event": "who did what, when, and what happened",
    "alert": "what is wrong now, by rules",
    "token": "who may do what",
    "model": "store, deploy and serve models",
    "data": "share data between processes and nodes",
    "queue": "submit work, see the plan and why",
    "profiler": "record metrics and replay them",
    "scheduler": "plan, check and compare batches of tasks",
    "host": "the central coordinator",
    "client": "the agent on this machine",
    "config": "settings and where they come from",
    "logs": "what host and agent wrote",
}


def _type_text(kind: Any, imports: set[tuple[str, str]]) -> str:
    if kind is None or kind is type(None):
        return "None"
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is not None and arguments:
        inner = ", ".join("..." if a is Ellipsis else _type_text(a, imports) for a in arguments)
        if origin is typing.Union or str(origin) == "<class 'types.UnionType'>":
            return inner.replace(", ", " | ")
        name = origin.__name__
        if name == "list":
            name = "builtins.list"  # a face may have a method of that name
        if origin.__module__ != "builtins":
            imports.add((origin.__module__, name))
        return f"{name}[{inner}]"
    if kind.__module__ != "builtins":
        imports.add((kind.__module__, kind.__name__))
    return str(kind.__name__)


def _parameter_text(p: Parameter, imports: set[tuple[str, str]]) -> str:
    kind = p.type
    if p.choices and not issubclass(kind, Enum):
        imports.add(("typing", "Literal"))
        text = f"Literal[{', '.join(repr(c) for c in p.choices)}]"
    else:
        text = _type_text(kind, imports)
    if p.many:
        imports.add(("collections.abc", "Sequence"))
        text = f"Sequence[{text}]"
    if p.optional:
        text += " | None"
    if p.required:
        return f"{p.name}: {text}"
    if isinstance(p.default, Enum):
        raise TypeError(f"{p.name}: an enum default would make faces.py import its module; use None")
    return f"{p.name}: {text} = {'()' if p.many else repr(p.default)}"


def _method(action: Action, imports: set[tuple[str, str]]) -> str:
    name = action.verb.replace(" ", "_").replace("-", "_")
    positional = [_parameter_text(p, imports) for p in action.parameters if p.positional]
    keyword = [_parameter_text(p, imports) for p in action.parameters if not p.positional]
    if action.until:
        keyword += ["wait: bool = False", "timeout: float | None = None"]
    head = ["self", *positional, *(["*"] if keyword else []), *keyword]
    returns = _type_text(action.returns, imports)
    module, function = action.function.__module__, action.function.__name__
    values = [f"list({p.name})" if p.many else p.name for p in action.parameters if p.positional]
    values += [
        f"{p.name}=list({p.name})" if p.many else f"{p.name}={p.name}" for p in action.parameters if not p.positional
    ]
    if action.face:
        module, _, made = action.face.partition(":")
        imports.add((module, made))
        head_line = f"    def {name}({', '.join(head)}) -> {made}:"
        body = f"        return {made}({', '.join(['self._swarm', *values])})"
        return "\n".join(
            [head_line, f'        """{action.summary}"""', f"        from {module} import {made}", "", body]
        )
    lines = [f"    async def {name}({', '.join(head)}) -> {returns}:", f'        """{action.summary}"""']
    lines.append(f"        from {module} import {function} as act")
    call = f"await act({', '.join(['self._swarm', *values])})"
    if action.until:
        until_module, _, until = action.until.partition(":")
        lines.append(f"        asked = {call}")
        lines.append("        if not wait:")
        lines.append("            return asked")
        lines.append(f"        from {until_module} import {until} as until")
        if returns.startswith("builtins.list["):
            lines.append("        return [await self._swarm.wait(until, one, timeout=timeout) for one in asked]")
        else:
            lines.append("        return await self._swarm.wait(until, asked, timeout=timeout)")
    else:
        lines.append(f"        {'' if returns == 'None' else 'return '}{call}")
    return "\n".join(lines)


def _class_name(domain: str) -> str:
    return domain.replace(" ", "_").title().replace("_", "") + "Face"


def faces(found: Iterable[Action]) -> str:
    """The source of faces.py."""
    domains: dict[str, list[Action]] = defaultdict(list)
    for action in found:
        if not action.local and action.takes_swarm:
            domains[action.domain].append(action)
    imports: set[tuple[str, str]] = set()
    classes = []
    for domain, group in domains.items():
        if not domain:
            continue
        methods = "\n\n".join(_method(action, imports) for action in group)
        classes.append(
            f'class {_class_name(domain)}:\n    """{ABOUT.get(domain, domain)}."""\n\n'
            f"    def __init__(self, swarm: Swarm) -> None:\n        self._swarm = swarm\n\n{methods}\n"
        )
    roots = "\n\n".join(_method(action, imports) for action in domains.get("", ()))
    root_body = f"\n\n{roots}" if roots else ""
    attributes = "\n".join(f"        self.{domain} = {_class_name(domain)}(swarm)" for domain in domains if domain)
    classes.append(
        'class Faces:\n    """Every action of the catalogue that talks to a host, by domain."""\n\n'
        f"    def __init__(self, swarm: Swarm) -> None:\n        self._swarm = swarm\n{attributes}{root_body}\n"
    )
    by_module: dict[str, list[str]] = defaultdict(list)
    for module, name in sorted(imports | {("gswarm.swarm", "Swarm")}):
        by_module[module].append(name)
    # Standard library first, ours after, each sorted: as the linter wants it.
    ours = {m: n for m, n in by_module.items() if m.startswith("gswarm")}
    std = {m: n for m, n in by_module.items() if m not in ours}
    blocks = ["\n".join(f"    from {m} import {', '.join(n)}" for m, n in sorted(g.items())) for g in (std, ours) if g]
    header = (
        '"""Typed methods of every action, generated by `python -m gswarm.facegen`; never edited by hand."""\n\n'
        "from __future__ import annotations\n\nimport builtins\nfrom typing import TYPE_CHECKING\n\nif TYPE_CHECKING:\n"
        + "\n\n".join(blocks)
    )
    return _formatted(header + "\n\n\n" + "\n\n".join(classes))


def _formatted(source: str) -> str:
    import black

    return black.format_str(source, mode=black.Mode(line_length=120))


def index(found: Iterable[Action]) -> str:
    """The source of index.py."""
    group: dict[str, list[Action]] = defaultdict(list)
    for action in found:
        group[action.domain.partition(" ")[0] if action.domain else ""].append(action)
    rooms = {
        a.name if not a.domain else a.domain.partition(" ")[0]: a.room for actions_ in group.values() for a in actions_
    }
    width = 12
    lines = [
        "Usage: gswarm [OPTIONS] COMMAND [ARGS]...",
        "",
        "A swarm of GPU machines from one terminal.",
        "",
        "Commands:",
    ]
    for action in group.get("", ()):
        lines.append(f"  {action.name:<{width}}{action.summary.rstrip('.')}")
    for domain, members in group.items():
        if domain:
            verbs = ", ".join(dict.fromkeys(a.verb.partition(" ")[0] for a in members))
            lines.append(f"  {domain:<{width}}{ABOUT.get(domain, '')}: {verbs}")
    lines += [
        f"  {'completion':<{width}}Print a shell completion script: bash, zsh, fish",
        "",
        "Options:",
        "  --host HOST:PORT      the host to talk to (else GSWARM_HOST, config.yaml, this machine's)",
        "  --token-file FILE     a file with the token (else GSWARM_TOKEN, this machine's)",
        "  --output FORMAT       table, json or yaml",
        "  --from RECORDING      answer reads from a recording instead of a host",
        "  --at TIME             at this time in the recording: 12:04:31, 2026-11-24T12:04:31Z or +12m",
        "  --version             the version",
        "  --help                this text; every command has its own, with examples",
        "",
        "Examples:",
        "  gswarm up                                       start host and agent here, open the console",
        "  gswarm model serve smollm2 --device cpu         serve a model",
        "  gswarm queue submit flow.yaml                   submit a workflow",
        "",
        "Exit codes: 0 ok, 1 failed, 2 usage, 3 host unreachable, 4 not found, 5 refused, 124 timed out, 130 interrupted",
    ]
    source = (
        '"""Static help and where each command lives, generated by `python -m gswarm.facegen`; never edited by hand."""\n\n'
        f"ROOM_OF = {rooms!r}\n\nHELP = '''\\\n" + "\n".join(lines) + "\n'''\n"
    )
    return _formatted(source)


def main() -> None:
    """Write both files, or with --check say whether they are what the catalogue says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="exit 1 when a file differs")
    options = parser.parse_args()
    found = actions()
    for name, source in (("faces.py", faces(found)), ("index.py", index(found))):
        path = HERE / name
        if not options.check:
            path.write_text(source)
        elif not path.exists() or path.read_text() != source:
            sys.exit(f"gswarm/{name} is not what the catalogue says. Run: python -m gswarm.facegen")


if __name__ == "__main__":
    main()
