"""`${step.output.field}` references inside a task's parameters: finding them, and putting results in their place."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from gswarm.errors import InvalidError

Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]
_MARK = re.compile(r"\$\$\{|\$\{([^{}]*)\}?")
_PATH = re.compile(r"([A-Za-z0-9][A-Za-z0-9_-]*)\.output((?:\.[A-Za-z0-9_-]+)*)")
MAX_RESOLVED_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class Reference:
    """One reference: the step's id, the fields below its output, and where in the parameters it stands."""

    step: str
    fields: tuple[str, ...]
    at: tuple[str | int, ...]
    text: str


def parse(inside: str, at: tuple[str | int, ...] = ()) -> Reference:
    """What stands between the braces. Raises InvalidError."""
    match = _PATH.fullmatch(inside.strip())
    if match is None:
        raise InvalidError(
            f"${{{inside}}} is no reference",
            next="write ${step.output} or ${step.output.field}; $${ is a plain ${",
            field=".".join(map(str, at)),
        )
    return Reference(match[1], tuple(match[2].split(".")[1:]), at, f"${{{inside}}}")


def find(value: Json, at: tuple[str | int, ...] = ()) -> Iterator[Reference]:
    """Every reference in a value, depth first. Raises InvalidError at the first that is none."""
    match value:
        case str():
            for mark in _MARK.finditer(value):
                if mark[0] != "$${":
                    yield parse(mark[1] if mark[0].endswith("}") else mark[1] + " without }", at)
        case list():
            for index, item in enumerate(value):
                yield from find(item, (*at, index))
        case dict():
            for key, item in value.items():
                yield from find(item, (*at, key))
        case _:
            pass


def has_reference(value: Json) -> bool:
    """Whether a value will change when references are resolved."""
    return isinstance(value, str) and any(mark[0] != "$${" for mark in _MARK.finditer(value))


def resolve(value: Json, output_of: Callable[[str], Json]) -> Json:
    """The value with results in place. A string that is one reference takes the result's own type.

    `output_of(step)` gives a step's output. Raises InvalidError for a field that is not there, or too much text.
    """
    match value:
        case str():
            return _resolve_text(value, output_of)
        case list():
            return [resolve(item, output_of) for item in value]
        case dict():
            return {key: resolve(item, output_of) for key, item in value.items()}
        case _:
            return value


def _resolve_text(text: str, output_of: Callable[[str], Json]) -> Json:
    whole = _MARK.fullmatch(text)
    if whole and whole[0] != "$${":
        return pick(parse(whole[1]), output_of)
    size = 0

    def put(mark: re.Match[str]) -> str:
        nonlocal size
        if mark[0] == "$${":
            return "${"
        found = pick(parse(mark[1]), output_of)
        shown = found if isinstance(found, str) else json.dumps(found, ensure_ascii=False)
        size += len(shown)
        if size > MAX_RESOLVED_BYTES:
            raise InvalidError("its references resolve to more than 4 MiB", next="pass large results as data chunks")
        return shown

    return _MARK.sub(put, text)


def pick(reference: Reference, output_of: Callable[[str], Json]) -> Json:
    """The result a reference names: the text of an inference, else the whole output, or a field of it."""
    value = output_of(reference.step)
    if not reference.fields:
        return value["text"] if isinstance(value, dict) and isinstance(value.get("text"), str) else value
    for field in reference.fields:
        if isinstance(value, Mapping) and field in value:
            value = value[field]
        elif isinstance(value, list) and field.isdigit() and int(field) < len(value):
            value = value[int(field)]
        else:
            known = (
                ", ".join(value)
                if isinstance(value, Mapping)
                else f"{len(value)} items" if isinstance(value, list) else ""
            )
            raise InvalidError(
                f"{reference.text} is not in the output of {reference.step}",
                why=f"it has {known}" if known else f"it is {json.dumps(value)[:60]}",
            )
    return value
