"""What each type of task takes: names, types, which are required. Checked at submission and again once resolved."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from gswarm.errors import InvalidError
from gswarm.names import near
from gswarm.queue.references import Json, has_reference
from gswarm.v1 import queue_pb2


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter: how to tell a right value, said in words, and whether it must be there."""

    said: str
    is_right: Callable[[Json], bool]
    required: bool = False


def _number(low: float, high: float) -> Callable[[Json], bool]:
    return lambda v: isinstance(v, int | float) and not isinstance(v, bool) and low <= v <= high


def _whole(low: int, high: int) -> Callable[[Json], bool]:
    return lambda v: isinstance(v, int) and not isinstance(v, bool) and low <= v <= high


def _is_text(value: Json) -> bool:
    return isinstance(value, str)


def _is_name(value: Json) -> bool:
    return isinstance(value, str) and value != ""


def _is_names(value: Json) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) and item for item in value)


def _is_messages(value: Json) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(m, dict) and isinstance(m.get("role"), str) and "content" in m for m in value)
    )


TEXT, NAME = Parameter("text", _is_text), Parameter("a name", _is_name)

OF_TYPE: Mapping[int, Mapping[str, Parameter]] = {
    queue_pb2.TASK_TYPE_INFERENCE: {
        "model": Parameter("a model's name", _is_name, True),
        "prompt": TEXT,
        "messages": Parameter("a list of {role, content}", _is_messages),
        "max_tokens": Parameter("a whole number from 1 to 1000000", _whole(1, 1_000_000)),
        "temperature": Parameter("a number from 0 to 2", _number(0, 2)),
        "top_p": Parameter("a number from 0 to 1", _number(0, 1)),
        "seed": Parameter("a whole number", _whole(-(2**63), 2**63 - 1)),
        "stop": Parameter("text or a list of texts", lambda v: _is_text(v) or _is_names(v)),
    },
    queue_pb2.TASK_TYPE_DOWNLOAD: {
        "name": Parameter("a model's name", _is_name, True),
        "source": Parameter("a source such as file:///... or https://...", _is_name, True),
        "node": NAME,
    },
    queue_pb2.TASK_TYPE_SERVE: {
        "model": Parameter("a model's name", _is_name, True),
        "device": Parameter("a device or a list of them", lambda v: _is_name(v) or _is_names(v)),
        "backend": NAME,
        "service": NAME,
        "port": Parameter("a port from 0 to 65535", _whole(0, 65535)),
    },
    queue_pb2.TASK_TYPE_STOP: {"service": Parameter("a service's name", _is_name, True)},
    queue_pb2.TASK_TYPE_DATA_TRANSFER: {
        "chunk": Parameter("a chunk's id", _is_name, True),
        "node": Parameter("a node's name", _is_name, True),
    },
}
WITH_MODEL = frozenset({queue_pb2.TASK_TYPE_INFERENCE, queue_pb2.TASK_TYPE_SERVE})
"""Types whose model is a field of the task itself."""


def check(type_: int, params: Mapping[str, Json]) -> None:
    """Raise InvalidError, its `field` naming the parameter, unless the type takes these.

    A value that is still a reference passes; it is checked again when resolved.
    """
    word = queue_pb2.TaskType.Name(queue_pb2.TaskType.ValueType(type_)).removeprefix("TASK_TYPE_").lower()
    known = OF_TYPE[type_]
    for name, value in params.items():
        if name not in known:
            raise InvalidError(f"{word} takes no {name}", next=near(name, known), field=name)
        if not has_reference(value) and not known[name].is_right(value):
            raise InvalidError(f"{name} is {_shown(value)}", next=f"it takes {known[name].said}", field=name)
    for name, parameter in known.items():
        if parameter.required and name not in params:
            raise InvalidError(f"{word} needs {name}", why=f"{parameter.said}", field=name)
    if isinstance(model := params.get("model"), str) and has_reference(model):
        raise InvalidError("model cannot be a reference", why="the plan needs to know it beforehand", field="model")
    if type_ == queue_pb2.TASK_TYPE_INFERENCE and ("prompt" in params) == ("messages" in params):
        found = "both prompt and messages" if "prompt" in params else "neither prompt nor messages"
        raise InvalidError(f"inference has {found}", next="give one of them", field="prompt")


def _shown(value: Json) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
