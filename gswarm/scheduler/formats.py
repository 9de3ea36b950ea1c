"""The files of scheduling: config and requests in (JSON or YAML, plain or gzip), plans in and out; errors name the line."""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from gswarm.scheduler import clusters
from gswarm.scheduler.plan import Execution, Plan
from gswarm.scheduler.problem import MOST, Gpu, Model, Node, Problem, ProblemError, Request, build, find_cycle

T = TypeVar("T")
Keys = tuple[str | int, ...]
_MISSING: Any = object()


class FormatError(ProblemError):
    """A file that says what cannot be: names the file, the place in it and the line."""

    def __init__(self, file: str, keys: Keys, message: str, line: int | None = None) -> None:
        self.file, self.keys, self.line = file, keys, line
        place = f"{file}:{line}" if line else file
        path = _shown(keys)
        super().__init__(f"{place}: {path}: {message}" if path else f"{place}: {message}")


def _shown(keys: Keys) -> str:
    return "".join(f"[{k}]" if isinstance(k, int) else f".{k}" for k in keys).lstrip(".")


def _number(value: object) -> float | None:
    """A finite number; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None


class Document:
    """A file's content, and where in it things stand."""

    def __init__(self, name: str, data: bytes) -> None:
        """Parse. Raises FormatError for what is neither JSON nor YAML."""
        self.name = name
        try:
            self.text = (gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data).decode()
        except (OSError, EOFError) as error:
            raise FormatError(name, (), f"cannot be unpacked: {error}") from None
        except UnicodeDecodeError as error:
            raise FormatError(name, (), f"is no text: {error}") from None
        self.content = self._parse()

    def _parse(self) -> Any:
        if self.text.lstrip()[:1] in ("{", "["):
            try:
                return json.loads(self.text)
            except json.JSONDecodeError as error:
                if self.name.removesuffix(".gz").endswith(".json"):
                    raise FormatError(self.name, (), f"is no JSON: {error.msg}", error.lineno) from None
            except ValueError as error:  # a number of thousands of digits
                raise FormatError(self.name, (), f"is no JSON: {error}") from None
        import yaml

        try:
            return yaml.load(self.text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        except yaml.MarkedYAMLError as error:
            line = error.problem_mark.line + 1 if error.problem_mark else None
            raise FormatError(self.name, (), f"is no YAML: {error.problem}", line) from None
        except (yaml.YAMLError, ValueError) as error:
            raise FormatError(self.name, (), f"is no YAML: {error}") from None

    def error(self, keys: Keys, message: str) -> FormatError:
        """An error at a place, with its line."""
        return FormatError(self.name, keys, message, self.line_of(keys))

    def line_of(self, keys: Keys) -> int | None:
        """The line where the value at `keys` stands, or the nearest thing around it; JSON is read as the YAML it is."""
        import yaml

        found: int | None = None
        depth = 0
        stack: list[list[Any]] = []  # per open collection: is it a mapping, its key or position, on the way
        try:
            for event in yaml.parse(self.text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
                scalar = event.value if isinstance(event, yaml.ScalarEvent) else None
                opens = isinstance(event, yaml.MappingStartEvent | yaml.SequenceStartEvent)
                if isinstance(event, yaml.MappingEndEvent | yaml.SequenceEndEvent):
                    if stack.pop()[2] and len(stack) < depth + 1:
                        return found
                    continue
                if not (scalar is not None or opens or isinstance(event, yaml.AliasEvent)):
                    continue
                on_way = not stack
                if stack:
                    top = stack[-1]
                    if top[0] and top[1] is None:
                        top[1] = scalar or ""
                        continue
                    if not top[0]:
                        top[1] = 0 if top[1] is None else top[1] + 1
                    on_way = top[2] and len(stack) <= len(keys) and str(keys[len(stack) - 1]) == str(top[1])
                    if top[0]:
                        top[1] = None
                if on_way:
                    found, depth = event.start_mark.line + 1 if event.start_mark else None, len(stack)
                    if depth == len(keys):
                        return found
                if opens:
                    stack.append([isinstance(event, yaml.MappingStartEvent), None, on_way])
        except yaml.YAMLError:
            pass
        return found

    def take(self, holder: Any, keys: Keys, kind: type[T], default: Any = _MISSING) -> Any:
        """`holder`'s value under the last of `keys`, checked; numbers are finite and not negative."""
        value = holder.get(keys[-1], _MISSING) if isinstance(holder, Mapping) else _MISSING
        if value is _MISSING or value is None:
            if default is not _MISSING:
                return default
            raise self.error(keys, "is missing")
        if kind is float:
            if (number := _number(value)) is None or number < 0:
                raise self.error(keys, f"{value!r:.60} is no number from 0 up")
            if number > MOST:
                raise self.error(keys, f"{value!r:.60} is more than {MOST:g}")
            return number
        if kind is int and isinstance(value, float) and value.is_integer():
            value = int(value)
        if kind is str and isinstance(value, int) and not isinstance(value, bool):
            value = str(value)  # YAML reads an id of digits as a number
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            words = {str: "text", int: "a whole number", bool: "true or false", dict: "a mapping", list: "a list"}
            raise self.error(keys, f"{value!r:.60} is not {words[kind]}")
        if isinstance(value, int) and abs(value) > MOST:
            raise self.error(keys, f"{value!r:.60} is beyond {math.copysign(MOST, value):g}")
        return value


def read_file(path: Path) -> Document:
    """A config, requests or plan file. Raises FormatError, OSError."""
    return Document(str(path), path.read_bytes())


class _Dated(NamedTuple):
    """A request as its file has it."""

    at: datetime
    name: str
    nodes: tuple[Node, ...]
    seconds: list[float]
    priority: int
    due_s: float

    def since(self, first: datetime) -> Request:
        """With seconds since the first one, which are exact to the microsecond; those since 1970 are not."""
        arrival = (self.at - first).total_seconds()
        return Request(self.name, arrival, self.nodes, self.seconds, (), self.priority, arrival + self.due_s)


def problem_of(config: Document, requests: Document, gpus: int | Sequence[Gpu], **optional: Any) -> Problem:
    """The problem that two documents pose. Raises FormatError; what is ignored is in `Problem.warnings`.

    Where `gpus` is a number, the config's `cluster` says more of them; else these are meant.
    """
    warnings: list[str] = []
    models, numbers = _models(config)
    flows = _workflows(config, numbers, warnings)
    made = sorted(_requests(requests, flows), key=lambda request: request.at)
    if made and (made[-1].at - made[0].at).total_seconds() > MOST:
        first, last = (f"{one.name} at {one.at.isoformat()}" for one in (made[0], made[-1]))
        raise requests.error(("requests",), f"more than {MOST:g} s lie between {first} and {last}")
    count = gpus if isinstance(gpus, int) else len(gpus)
    _refuse_too_wide(config, models, {request.nodes for request in made}, count)
    if isinstance(gpus, int):
        cluster = clusters.read(config, count, numbers)
        gpus, optional = cluster.gpus, {**cluster.optional(), **optional}
        warnings += [f"{config.name}: {warning}" for warning in cluster.warnings]
    try:
        return build(
            models,
            gpus,
            (request.since(made[0].at) for request in made),
            warnings=tuple(warnings),
            **optional,
        )
    except FormatError:
        raise
    except ProblemError as error:
        raise FormatError(config.name, (), str(error)) from None


def _refuse_too_wide(config: Document, models: Sequence[Model], flows: set[tuple[Node, ...]], gpus: int) -> None:
    for node in (node for flow in flows for node in flow):
        if (model := models[node.model]).width > gpus:
            at = ("models", model.id, "gpus_required")
            raise config.error(at, f"{model.width} GPUs for a model that requests need, and there are {gpus}")


def _models(config: Document) -> tuple[list[Model], dict[str, int]]:
    table = config.take(config.content, ("models",), dict)
    models = []
    for key, body in table.items():
        at: Keys = ("models", str(key))
        if not isinstance(body, Mapping):
            raise config.error(at, "is not a mapping")
        width = config.take(body, (*at, "gpus_required"), int, 1)
        if width < 1:
            raise config.error((*at, "gpus_required"), f"{width} is below 1")
        models.append(
            Model(
                str(key),
                width,
                config.take(body, (*at, "memory_gb"), float),
                config.take(body, (*at, "load_time_seconds"), float),
                config.take(body, (*at, "name"), str, ""),
                config.take(body, (*at, "sleep_seconds"), float, None),
                config.take(body, (*at, "wake_seconds"), float, None),
            )
        )
    return models, {m.id: number for number, m in enumerate(models)}


def _workflows(config: Document, models: Mapping[str, int], warnings: list[str]) -> dict[str, tuple[Node, ...]]:
    flows = {}
    for key, body in config.take(config.content, ("workflows",), dict).items():
        at: Keys = ("workflows", str(key))
        listed = config.take(body, (*at, "nodes"), list)
        positions: dict[str, int] = {}
        chosen: list[int] = []
        for number, node in enumerate(listed):
            here: Keys = (*at, "nodes", number)
            name = config.take(node, (*here, "id"), str)
            model = config.take(node, (*here, "model"), str)
            if name in positions:
                raise config.error((*here, "id"), f"node {name} is there twice")
            if model not in models:
                raise config.error((*here, "model"), f"there is no model {model!r}; known: {', '.join(models)}")
            positions[name] = number
            chosen.append(models[model])
        needs: list[dict[int, None]] = [{} for _ in listed]
        for number, edge in enumerate(config.take(body, (*at, "edges"), list, ())):
            here = (*at, "edges", number)
            ends = [config.take(edge, (*here, side), str) for side in ("from", "to")]
            absent = [end for end in ends if end not in positions]
            if absent:
                warnings.append(f"{config.name}: {_shown(here)}: ignored, the workflow has no node {absent[0]!r}")
                continue
            needs[positions[ends[1]]][positions[ends[0]]] = None
        waits = [tuple(n) for n in needs]
        if cycle := find_cycle(waits):
            names = list(positions)
            raise config.error((*at, "edges"), f"is a cycle: {' -> '.join(names[n] for n in cycle)}")
        flows[str(key)] = tuple(
            Node(name, model, wait) for name, model, wait in zip(positions, chosen, waits, strict=True)
        )
    return flows


def _requests(requests: Document, flows: Mapping[str, tuple[Node, ...]]) -> Iterator[_Dated]:
    seen: set[str] = set()
    for number, body in enumerate(requests.take(requests.content, ("requests",), list)):
        at: Keys = ("requests", number)
        name = requests.take(body, (*at, "request_id"), str)
        if name in seen:
            raise requests.error((*at, "request_id"), f"request {name} is there twice")
        seen.add(name)
        flow = requests.take(body, (*at, "workflow_id"), str)
        if flow not in flows:
            raise requests.error((*at, "workflow_id"), f"there is no workflow {flow!r}; known: {', '.join(flows)}")
        times = requests.take(body, (*at, "node_execution_times"), dict)
        seconds = []
        for node in flows[flow]:
            if (value := times.get(node.id)) is None:
                times = {str(key): value for key, value in times.items()}  # YAML reads an id of digits as a number
            if type(value) is not float or not 0.0 <= value <= MOST:
                value = requests.take(times, (*at, "node_execution_times", node.id), float)
            seconds.append(value)
        priority = requests.take(body, (*at, "priority"), int, 0)
        due_s = requests.take(body, (*at, "deadline_seconds"), float, math.inf)
        yield _Dated(_stamp(requests, body, (*at, "timestamp")), name, flows[flow], seconds, priority, due_s)


def _stamp(requests: Document, body: Mapping[str, object], at: Keys) -> datetime:
    value = body.get("timestamp")
    if value is None:
        raise requests.error(at, "is missing")
    try:
        # YAML reads a time that is not quoted as what it is.
        stamp = datetime.fromisoformat(value.isoformat() if isinstance(value, date) else value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise requests.error(at, f"{value!r} is no ISO 8601 time") from None
    return stamp if stamp.tzinfo else stamp.replace(tzinfo=UTC)


def plan_lines(problem: Problem, plan: Plan) -> Iterator[str]:
    """A plan file, piece by piece."""
    yield f'{{"gpus": {plan.gpus}, "executions": ['
    comma = "\n"
    for run in plan.executions(problem):
        yield comma + json.dumps({**run._asdict(), "gpus": list(run.gpus)})
        comma = ",\n"
    yield "\n]}\n"


def executions_of(document: Document) -> tuple[int, list[Execution]]:
    """How many GPUs a plan file is for, and its runs as they stand there. Raises FormatError."""
    gpus = document.take(document.content, ("gpus",), int)
    runs = []
    for number, body in enumerate(document.take(document.content, ("executions",), list)):
        at: Keys = ("executions", number)
        names = [document.take(body, (*at, key), str) for key in ("request_id", "node_id", "model")]
        ids = document.take(body, (*at, "gpus"), list)
        if not all(isinstance(g, int) and not isinstance(g, bool) for g in ids):
            raise document.error((*at, "gpus"), f"{ids!r} is no list of GPU numbers")
        times = []
        for key in ("start", "end", "switch_seconds"):
            value = body.get(key)
            if (time := _number(value)) is None:
                raise document.error((*at, key), "is missing" if value is None else f"{value!r:.60} is no time")
            times.append(time)
        runs.append(Execution(names[0], names[1], names[2], tuple(ids), times[0], times[1], times[2]))
    return gpus, runs
