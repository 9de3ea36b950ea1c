"""What can be done, as the console sees it: actions of the catalogue, their fields, and the CLI line of a filled form."""

from __future__ import annotations

import shlex
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gswarm.catalogue import Action

Value = Any
"""What a field holds once read: str, int, float, bool, Path, Enum, or a list of these."""


class FieldKind(Enum):
    TEXT = "text"
    INT = "int"
    FLOAT = "float"
    BOOL = "bool"
    PATH = "path"
    CHOICE = "choice"


WORDS = {"profiler start": "record"}
_KINDS = {int: FieldKind.INT, float: FieldKind.FLOAT, bool: FieldKind.BOOL, Path: FieldKind.PATH}


@dataclass(frozen=True, slots=True)
class Field:
    """One parameter of an action."""

    name: str
    kind: FieldKind = FieldKind.TEXT
    doc: str = ""
    ref: str = ""
    """Kind of resource it names; choices come from the swarm."""
    is_required: bool = False
    is_option: bool = False
    is_list: bool = False
    default: Value = None
    choices: tuple[str, ...] = ()
    enum: type[Enum] | None = None

    @property
    def flag(self) -> str:
        return "--" + self.name.strip("_").replace("_", "-")

    @property
    def label(self) -> str:
        return self.name.strip("_").replace("_", " ")

    def read(self, text: str) -> Value:
        """The value of `text`; ValueError says in a person's words what is wrong."""
        text = text.strip()
        if not text:
            if self.is_required:
                raise ValueError("is needed")
            return [] if self.is_list and self.default is None else self.default
        if self.is_list:
            return [self.read_one(part) for part in text.replace(",", " ").split()]
        return self.read_one(text)

    def read_one(self, text: str) -> Value:
        """The value of one word, of a list one of its parts; ValueError as `read`."""
        match self.kind:
            case FieldKind.INT:
                try:
                    return int(text)
                except ValueError:
                    raise ValueError(f"{text} is not a whole number") from None
            case FieldKind.FLOAT:
                try:
                    return float(text)
                except ValueError:
                    raise ValueError(f"{text} is not a number") from None
            case FieldKind.BOOL:
                if text.lower() in ("yes", "y", "true", "1", "on"):
                    return True
                if text.lower() in ("no", "n", "false", "0", "off"):
                    return False
                raise ValueError("say yes or no")
            case FieldKind.PATH:
                return Path(text).expanduser()
            case FieldKind.CHOICE:
                if text not in self.choices:
                    raise ValueError(f"one of {', '.join(self.choices)}")
                return self.enum(text) if self.enum is not None else text
        return text

    def show(self, value: Value) -> str:
        """`value` as it stands in an input."""
        if value is None or (self.is_list and not value):
            return ""
        if isinstance(value, list | tuple):
            return " ".join(self.show(v) if not isinstance(v, str) else v for v in value)
        if isinstance(value, bool):
            return "yes" if value else "no"
        return str(value.value) if isinstance(value, Enum) else str(value)


@dataclass(frozen=True, slots=True)
class Deed:
    """An action as a person meets it in the console."""

    name: str
    """ "model serve"."""
    key: str
    summary: str
    effect: str
    fields: tuple[Field, ...]
    run: Callable[..., Awaitable[Any]]
    is_destructive: bool = False
    is_read: bool = False
    role: str = "operator"

    @property
    def domain(self) -> str:
        return self.name.partition(" ")[0]

    @property
    def verb(self) -> str:
        return self.name.rpartition(" ")[2]

    @property
    def word(self) -> str:
        """What stands beside its key, also where its domain is not."""
        return WORDS.get(self.name, self.verb)

    @property
    def id(self) -> str:
        return self.name.replace(" ", ".")

    def field(self, name: str) -> Field | None:
        return next((f for f in self.fields if f.name == name), None)

    def line(self, values: Mapping[str, Value]) -> str:
        """The CLI line that does the same."""
        words: list[str] = []
        options: list[str] = []
        for f in self.fields:
            value = values.get(f.name, f.default)
            if f.is_option and (value is None or value == f.default or (f.is_list and not value)):
                continue
            if not f.is_option and value in (None, "", [], ()):
                if f.is_required:
                    words.append(f.name.strip("_").upper())
                continue
            if f.kind is FieldKind.BOOL and f.is_option:
                options.append(f.flag if value else f"--no-{f.flag[2:]}")
                continue
            parts = value if isinstance(value, list | tuple) else [value]
            for part in parts:
                text = shlex.quote(f.show(part) if not isinstance(part, str) else part)
                if f.is_option:
                    options += [f.flag, text]
                else:
                    words.append(text)
        command = ["gswarm", *self.name.split()]
        if any(word.lstrip("'").startswith("-") for word in words):
            return " ".join([*command, *options, "--", *words])
        return " ".join([*command, *words, *options])

    def parse(self, words: Sequence[str]) -> dict[str, Value]:
        """Values from what follows the action's name on a command line; ValueError says what is wrong."""
        values: dict[str, Value] = {}
        positional = [f for f in self.fields if not f.is_option]
        flags = {f.flag: f for f in self.fields if f.is_option}
        rest, options_end = list(words), False
        while rest:
            word = rest.pop(0)
            if word == "--" and not options_end:
                options_end = True
                continue
            if word.startswith("--") and not options_end:
                flag, _, given = word.partition("=")
                name = "--" + flag[5:] if flag.startswith("--no-") and flag not in flags else flag
                field = flags.get(name)
                if field is None:
                    raise ValueError(f"{self.name} has no option {flag}")
                if field.kind is FieldKind.BOOL:
                    values[field.name] = field.read(given) if given else name == flag
                    continue
                if not given:
                    if not rest:
                        raise ValueError(f"{flag} needs a value")
                    given = rest.pop(0)
                if field.is_list:
                    values[field.name] = [*values.get(field.name, []), field.read_one(given)]
                else:
                    values[field.name] = field.read(given)
                continue
            if not positional:
                raise ValueError(f"{self.name} takes no more than it has; {word} is too much")
            field = positional[0]
            if field.is_list:
                values[field.name] = [*values.get(field.name, []), field.read_one(word)]
            else:
                values[field.name] = field.read(word)
                positional.pop(0)
        return values


def find(deeds: Sequence[Deed], words: Sequence[str]) -> tuple[Deed, list[str]] | None:
    """The action that a command line names, and the words behind its name; the longest name wins."""
    given = list(words)
    if given[:1] == ["gswarm"]:
        given = given[1:]
    best: Deed | None = None
    for deed in deeds:
        name = deed.name.split()
        if given[: len(name)] == name and (best is None or len(name) > len(best.name.split())):
            best = deed
    return (best, given[len(best.name.split()) :]) if best is not None else None


def from_action(action: Action) -> Deed:
    """An action of the catalogue as a deed; its parameters become fields."""
    fields = []
    for p in action.parameters:
        kind = FieldKind.CHOICE if p.choices else _KINDS.get(p.type, FieldKind.TEXT)
        enum = p.type if p.choices and issubclass(p.type, Enum) else None
        fields.append(
            Field(p.name, kind, p.doc, p.ref, p.required, not p.positional, p.many, p.default, p.choices, enum)
        )
    return Deed(
        name=action.name,
        key=action.key,
        summary=action.summary,
        effect=action.effect,
        fields=tuple(fields),
        run=action.run,
        is_destructive=action.destructive,
        is_read=action.read,
        role=action.role,
    )


def catalogue() -> tuple[Deed, ...]:
    """Every action that makes sense from a console: not those that are about this machine only."""
    from gswarm.catalogue import actions

    return tuple(from_action(action) for action in actions() if not action.local)
