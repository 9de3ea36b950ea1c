"""Workflows as people write them, in YAML or JSON: read whole, or refused with file, line, column and a hint."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from gswarm.errors import InvalidError
from gswarm.names import check_name, near
from gswarm.queue import parameters, references
from gswarm.queue.references import Json
from gswarm.v1 import queue_pb2
from gswarm.v1.queue_pb2 import ActionSpec, WorkflowSpec

MAX_FILE_BYTES = 16 << 20
MAX_DEPTH = 64
MAX_ACTIONS = 10_000
MAX_PARAMS_BYTES = 1 << 20
MAX_RETRIES = 100
MAX_TIMEOUT_S = 7 * 86400.0
WORKFLOW_FIELDS = ("name", "actions")
ACTION_FIELDS = ("id", "type", "depends_on", "priority", "retries", "timeout")
TYPES = {v.name.removeprefix("TASK_TYPE_").lower(): v.number for v in queue_pb2.TaskType.DESCRIPTOR.values if v.number}
PRIORITIES = {
    v.name.removeprefix("PRIORITY_").lower(): v.number for v in queue_pb2.Priority.DESCRIPTOR.values if v.number
}
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)?")
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, None: 1.0}

At = tuple[str | int, ...]
"""A place in a document: keys and indexes from the top. A last "~key" means the key itself rather than its value."""


class Flaw(InvalidError):
    """What is wrong with a workflow, and where in the document."""

    def __init__(self, at: At, what: str, *, why: str = "", next: str = "") -> None:
        super().__init__(what, why=why, next=next, field=_path(at))
        self.at = at


def _path(at: At) -> str:
    out = ""
    for part in at:
        out += f"[{part}]" if isinstance(part, int) else f".{part.removeprefix('~')}"
    return out.lstrip(".")


def load(path: Path) -> list[WorkflowSpec]:
    """The workflows of a file (several YAML documents are several workflows). Raises InvalidError."""
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise InvalidError(f"{path} cannot be read", why=error.strerror or "", field="file") from None
    if len(raw) > MAX_FILE_BYTES:
        raise InvalidError(f"{path} is over {MAX_FILE_BYTES >> 20} MiB", next="split it", field="file")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidError(f"{path} is not UTF-8 text", why=f"byte {error.start} is not", field="file") from None
    return parse(text, str(path), is_json=path.suffix.lower() == ".json", name=path.stem)


def parse(text: str, source: str, *, is_json: bool = False, name: str = "workflow") -> list[WorkflowSpec]:
    """The workflows in a text; `source` is how errors call it, `name` names a workflow without one."""
    from gswarm.queue.positions import Document, documents

    found: list[Document] = documents(text, source, is_json=is_json, max_depth=MAX_DEPTH)
    if not found:
        raise InvalidError(f"{source} is empty", next="a workflow has name and actions", field="file")
    specs = []
    for document in found:
        try:
            spec = build(document.value, default_name=name)
            validate(spec)
        except Flaw as flaw:
            line, column = document.place(flaw.at)
            where = f"{source}:{line}:{column}: {flaw.what}"
            raise InvalidError(where, why=flaw.why, next=flaw.next, field=flaw.field) from None
        specs.append(spec)
    return specs


def build(value: Any, *, default_name: str = "workflow") -> WorkflowSpec:
    """A document's value as a spec. Raises Flaw."""
    if not isinstance(value, dict):
        raise Flaw((), "a workflow is a mapping", next="with name and actions")
    _known_only((), value, WORKFLOW_FIELDS, "a workflow has no field")
    name = value.get("name", default_name)
    if not isinstance(name, str):
        raise Flaw(("name",), f"the name is {name!r}", next="it takes text; put it in quotes")
    actions = value.get("actions")
    if not isinstance(actions, list) or not actions:
        raise Flaw(("actions",) if "actions" in value else (), "a workflow needs actions", why="a list of at least one")
    return WorkflowSpec(name=name, actions=[_action(("actions", i), action) for i, action in enumerate(actions)])


def _known_only(at: At, value: Mapping[Any, Any], known: Iterable[str], what: str) -> None:
    known = tuple(known)
    for key in value:
        if key not in known:
            raise Flaw((*at, f"~{key}"), f"{what} {key}", next=near(str(key), known))


def _action(at: At, value: Any) -> ActionSpec:
    if not isinstance(value, dict):
        raise Flaw(at, "an action is a mapping", next="with id and type")
    for required in ("id", "type"):
        if required not in value:
            wrong = near(required, (k for k in value if k not in ACTION_FIELDS))
            raise Flaw(at, f"an action needs {required}", next=wrong if wrong.startswith("did you") else "")
    id_, type_ = value["id"], value["type"]
    if not isinstance(id_, str):
        raise Flaw((*at, "id"), f"the id is {id_!r}", next="it takes text; put it in quotes")
    if not isinstance(type_, str) or type_ not in TYPES:
        raise Flaw((*at, "type"), f"there is no type {type_}", next=near(str(type_), TYPES))
    priority = value.get("priority", "normal")
    if not isinstance(priority, str) or priority not in PRIORITIES:
        raise Flaw((*at, "priority"), f"there is no priority {priority}", next="critical, high, normal or low")
    retries = value.get("retries", 0)
    if not isinstance(retries, int) or isinstance(retries, bool) or not 0 <= retries <= MAX_RETRIES:
        raise Flaw((*at, "retries"), f"retries is {retries!r}", next=f"it takes a whole number from 0 to {MAX_RETRIES}")
    depends_on = value.get("depends_on") or []
    if isinstance(depends_on, str):
        depends_on = [depends_on]
    if not isinstance(depends_on, list) or not all(isinstance(d, str) for d in depends_on):
        raise Flaw((*at, "depends_on"), "depends_on takes an action's id or a list of them")
    type_known = parameters.OF_TYPE[TYPES[type_]]
    params: dict[str, Json] = {}
    for key, item in value.items():
        if key not in ACTION_FIELDS:
            if key not in type_known:
                known = (*ACTION_FIELDS, *type_known)
                raise Flaw((*at, f"~{key}"), f"{type_} takes no {key}", next=near(str(key), known))
            params[key] = _plain((*at, key), item)
    model = params.get("model") if TYPES[type_] in parameters.WITH_MODEL else ""
    return ActionSpec(
        id=id_,
        type=queue_pb2.TaskType.ValueType(TYPES[type_]),
        model=model if isinstance(model, str) else "",
        priority=queue_pb2.Priority.ValueType(PRIORITIES[priority]),
        retries=retries,
        timeout_s=_timeout((*at, "timeout"), value.get("timeout")),
        depends_on=list(dict.fromkeys(depends_on)),
        params_json=canonical(params),
    )


def canonical(value: Json) -> str:
    """JSON with sorted keys and no blanks."""
    return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _timeout(at: At, value: Any) -> float:
    if value is None:
        return 0.0
    seconds = 0.0
    if isinstance(value, int | float) and not isinstance(value, bool):
        seconds = float(value)
    elif isinstance(value, str) and (match := _DURATION.fullmatch(value.strip())):
        seconds = float(match[1]) * _UNITS[match[2]]
    if not 0 < seconds <= MAX_TIMEOUT_S:
        raise Flaw(
            at, f"the timeout is {value!r}", next="it takes seconds, or text such as 30s, 5m, 2h; a week at most"
        )
    return seconds


def _plain(at: At, value: Any) -> Json:
    """A parameter's value, if JSON can hold it."""
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            if value != value or value in (float("inf"), float("-inf")):
                raise Flaw(at, f"{value} is no number that can be sent")
            return value
        case list():
            return [_plain((*at, i), item) for i, item in enumerate(value)]
        case dict():
            for key in value:
                if not isinstance(key, str):
                    raise Flaw((*at, f"~{key}"), f"the key {key!r} is not text", next="put it in quotes")
            return {key: _plain((*at, key), item) for key, item in value.items()}
        case _:
            raise Flaw(at, f"{value!r} cannot be sent", next="put it in quotes")


def validate(spec: WorkflowSpec) -> None:
    """Check a spec whole, whoever made it, and add the dependencies that references imply. Raises Flaw."""
    try:
        check_name(spec.name, "workflow name", spaces=True)
    except InvalidError as error:
        raise Flaw(("name",), error.what, why=error.why, next=error.next) from None
    if not 0 < len(spec.actions) <= MAX_ACTIONS:
        raise Flaw(
            ("actions",), f"{len(spec.actions)} actions", next=f"from 1 to {MAX_ACTIONS}; submit several workflows"
        )
    first: dict[str, int] = {}
    for index, action in enumerate(spec.actions):
        at: At = ("actions", index)
        if not _ID.fullmatch(action.id):
            rule = "it starts with a letter or digit and has only letters, digits, _ and -, 64 at most"
            raise Flaw((*at, "id"), f"{action.id[:80]!r} cannot be an id", why=rule)
        if action.id in first:
            raise Flaw(
                (*at, "id"), f"there are two actions {action.id}", why=f"the first is number {first[action.id] + 1}"
            )
        first[action.id] = index
    for index, action in enumerate(spec.actions):
        _validate_action(("actions", index), action, first)
    if cycle := find_cycle({a.id: list(a.depends_on) for a in spec.actions}):
        raise Flaw(
            ("actions", first[cycle[0]], "depends_on"),
            "the actions wait for each other",
            why=" -> ".join(cycle),
            next="take one of these dependencies out",
        )


def _validate_action(at: At, action: ActionSpec, known: Mapping[str, int]) -> None:
    if action.type not in parameters.OF_TYPE:
        raise Flaw((*at, "type"), f"there is no type {action.type}")
    if action.priority not in PRIORITIES.values():
        raise Flaw((*at, "priority"), f"there is no priority {action.priority}")
    if action.retries > MAX_RETRIES:
        raise Flaw((*at, "retries"), f"retries is {action.retries}", next=f"{MAX_RETRIES} at most")
    if not 0 <= action.timeout_s <= MAX_TIMEOUT_S:
        raise Flaw((*at, "timeout"), f"the timeout is {action.timeout_s} s", next="a week at most")
    if len(action.params_json.encode()) > MAX_PARAMS_BYTES:
        raise Flaw(at, "its parameters are over 1 MiB", next="put large input into the data pool")
    try:
        params = json.loads(action.params_json or "{}")
    except (ValueError, RecursionError):
        raise Flaw(at, "its parameters are not JSON") from None
    if not isinstance(params, dict):
        raise Flaw(at, "its parameters are not a mapping")
    for need in action.depends_on:
        if need not in known:
            others = (k for k in known if k != action.id)
            raise Flaw(_item(at, "depends_on", action, need), f"there is no action {need}", next=near(need, others))
    try:
        parameters.check(action.type, params)
        used = list(references.find(params))
    except InvalidError as error:
        where = (*at, *error.field.split(".")[:1]) if error.field else at
        raise Flaw(where, error.what, why=error.why, next=error.next) from None
    if action.type in parameters.WITH_MODEL and action.model != params["model"]:
        raise Flaw((*at, "model"), "the action's model is not its parameters'")
    for reference in used:
        if reference.step not in known:
            others = (k for k in known if k != action.id)
            raise Flaw((*at, *reference.at), f"there is no action {reference.step}", next=near(reference.step, others))
        if reference.step not in action.depends_on:
            action.depends_on.append(reference.step)


def _item(at: At, field: str, action: ActionSpec, need: str) -> At:
    return (*at, field, list(action.depends_on).index(need))


def find_cycle(needs: Mapping[str, list[str]]) -> list[str]:
    """A cycle as a closed path, or nothing."""
    done: set[str] = set()
    for start in needs:
        path: list[str] = []
        on_path: set[str] = set()
        stack: list[tuple[str, int]] = [(start, 0)]
        while stack:
            node, position = stack.pop()
            if position == 0:
                if node in on_path:
                    return [*path[path.index(node) :], node]
                if node in done:
                    continue
                path.append(node)
                on_path.add(node)
            following = needs.get(node, [])
            if position < len(following):
                stack += [(node, position + 1), (following[position], 0)]
            else:
                path.pop()
                on_path.discard(node)
                done.add(node)
    return []
