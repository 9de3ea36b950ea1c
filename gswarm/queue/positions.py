"""YAML and JSON documents with the line and column of every key and value."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any

import yaml

from gswarm.errors import InvalidError

Path = tuple[str | int, ...]
_ESCAPE = re.compile(r"\\(u[0-9a-fA-F]{4}|.)")
_BASE: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Loader(_BASE):  # type: ignore[misc]
    """Safe YAML without dates: 2026-11-24 is text here."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in _BASE.yaml_implicit_resolvers.items()
}


@dataclass(slots=True)
class Document:
    """A value, and where each part of it stands (line and column from 1)."""

    value: Any = None
    places: dict[Path, tuple[int, int]] = field(default_factory=dict)

    def place(self, at: Path) -> tuple[int, int]:
        """The line and column of a part, or of the nearest part around it."""
        while at not in self.places and at:
            at = at[:-1]
        return self.places.get(at, (1, 1))


def documents(text: str, source: str, *, is_json: bool, max_depth: int) -> list[Document]:
    """Every document in a text, empty ones left out. Raises InvalidError with source, line and column."""
    value: Any = None
    if is_json:
        try:
            value = json.loads(text)
        except json.JSONDecodeError as error:
            raise _bad(source, error.lineno, error.colno, error.msg) from None
        except RecursionError:
            raise _bad(source, 1, 1, "it is nested too deeply") from None
        # Only the places come from the YAML reader, which knows fewer escapes and takes no tabs between tokens.
        text = _ESCAPE.sub(lambda m: "x" * len(m[0]), text.replace("\t", " "))
    try:
        _check_shape(text, source, max_depth)
        found = []
        loader = _Loader(text)
        try:
            while loader.check_node():
                node = loader.get_node()
                document = Document()
                document.value = _walk(loader, node, (), document, source)
                if is_json:
                    document.value = value
                if document.value is not None:
                    found.append(document)
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
        raise _bad(source, line, column, error.problem or "it is no YAML") from None
    except yaml.YAMLError as error:
        raise _bad(source, 1, 1, str(error).splitlines()[0]) from None
    return found


def _bad(source: str, line: int, column: int, why: str) -> InvalidError:
    return InvalidError(f"{source}:{line}:{column}: it cannot be read", why=why, field="file")


def _check_shape(text: str, source: str, max_depth: int) -> None:
    """Refuse what is small to write and huge to read, before anything is built from it."""
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        mark: Any = event.start_mark
        line, column = mark.line + 1, mark.column + 1
        match event:
            case yaml.AliasEvent():
                raise _bad(source, line, column, "aliases (*name) are not taken; write it out")
            case yaml.CollectionStartEvent():
                depth += 1
                if depth > max_depth:
                    raise _bad(source, line, column, f"it is nested deeper than {max_depth}")
            case yaml.CollectionEndEvent():
                depth -= 1
            case _:
                pass


def _walk(loader: Any, node: yaml.Node, at: Path, document: Document, source: str) -> Any:
    document.places[at] = (node.start_mark.line + 1, node.start_mark.column + 1)
    match node:
        case yaml.MappingNode():
            out: dict[Any, Any] = {}
            for key_node, value_node in node.value:
                line, column = key_node.start_mark.line + 1, key_node.start_mark.column + 1
                if not isinstance(key_node, yaml.ScalarNode):
                    raise _bad(source, line, column, "a key is one word or text")
                key = _scalar(loader, key_node, source)
                if key in out:
                    raise _bad(source, line, column, f"{key} is there twice")
                document.places[(*at, f"~{key}")] = (line, column)
                out[key] = _walk(loader, value_node, (*at, str(key)), document, source)
            return out
        case yaml.SequenceNode():
            return [_walk(loader, item, (*at, i), document, source) for i, item in enumerate(node.value)]
        case _:
            return _scalar(loader, node, source)


def _scalar(loader: Any, node: yaml.Node, source: str) -> Any:
    line, column = node.start_mark.line + 1, node.start_mark.column + 1
    try:
        value = loader.construct_object(node)
    except ValueError as error:
        raise _bad(source, line, column, str(error)) from None
    if value is not None and not isinstance(value, str | int | float | bool):
        raise _bad(source, line, column, f"{node.tag} values are not taken; put it in quotes")
    return value
