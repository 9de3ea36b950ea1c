"""The catalogue: an action is one typed async function; CLI, REST, console and Python are derived from its signature."""

from __future__ import annotations

import importlib
import inspect
import math
import sys
import types
import typing
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar

from gswarm.errors import InvalidError

F = TypeVar("F", bound=Callable[..., Awaitable[Any]])
ROOMS = ("cluster", "model", "data", "queue", "profiler", "alert", "scheduler", "system")
SCALARS = (str, int, float, bool, Path)
_WORDS = {str: "text", int: "a whole number", float: "a number", bool: "true or false", Path: "a path"}


@dataclass(frozen=True, slots=True)
class Doc:
    """What a parameter means, for help, forms and the OpenAPI page."""

    text: str


@dataclass(frozen=True, slots=True)
class Ref:
    """The parameter names a resource of this kind ("model"); completion, choices and forms come from it."""

    kind: str


@dataclass(frozen=True, slots=True)
class Short:
    """A one-letter option, for example "-O"."""

    flag: str


@typing.runtime_checkable
class Told(typing.Protocol):
    """What a local action answers that is told piece by piece while it happens."""

    def tell(self, show: Callable[[Any], None]) -> None:
        """Have it happen, and `show` each piece."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter of an action, resolved. `type` is the element's type when `many`."""

    name: str
    type: type
    many: bool
    optional: bool
    default: object
    required: bool
    positional: bool
    choices: tuple[str, ...] = ()
    doc: str = ""
    ref: str = ""
    short: str = ""

    @property
    def flag(self) -> str:
        """Its long option."""
        return "--" + self.name.strip("_").replace("_", "-")

    def coerce(self, value: object) -> object:
        """`value` (from JSON, a form or a caller) as the parameter's type. Raises InvalidError naming it."""
        if value is None:
            if self.required:
                raise InvalidError(f"{self.name} is missing", field=self.name)
            return self.default
        if self.many:
            if isinstance(value, str) or not isinstance(value, list | tuple):
                raise InvalidError(f"{self.name} takes a list", field=self.name)
            return [self._one(item) for item in value]
        return self._one(value)

    def _one(self, value: object) -> object:
        kind = self.type
        if self.choices:
            word = value.value if isinstance(value, Enum) else value
            if word not in self.choices:
                raise InvalidError(
                    f"{self.name} is {word!r}", next=f"one of {', '.join(self.choices)}", field=self.name
                )
            return kind(word) if issubclass(kind, Enum) else word
        if kind is Path and isinstance(value, str | Path):
            return Path(value)
        if kind is bool and isinstance(value, bool):
            return value
        if kind in (int, float) and isinstance(value, int | float) and not isinstance(value, bool):
            whole = isinstance(value, int) or value.is_integer()
            if whole or (kind is float and math.isfinite(value)):
                return kind(value)
        if kind is str and isinstance(value, str):
            return value
        raise InvalidError(f"{self.name} is {value!r}", why=f"{_WORDS[kind]} is expected", field=self.name)


class HostNeed(Enum):
    """Whether what is asked for needs a host."""

    YES = "yes"
    IF_NAMED = "if named"
    """This machine's host keeps it: the host that is named may mean another thing by that name; with none named it will do."""
    IF_THERE = "if there"
    """A copy lies here, and will do when the host does not answer; a host may have it newer."""
    NONE = "none"


@dataclass(frozen=True)
class Action:
    """One thing that can be done."""

    domain: str
    """CLI group, "model"; empty for top-level commands such as `up`."""
    verb: str
    function: Callable[..., Awaitable[Any]]
    room: str
    role: str
    read: bool
    local: bool
    destructive: bool
    effect: str
    until: str
    """ "module:function" that says how far the result is, for actions that take long; empty: done when answered."""
    key: str
    face: str = ""
    """ "module:Class" that its Python method returns, made of the swarm and the parameters; empty: a plain coroutine."""
    host_for: str = ""
    """ "module:function" that says of values whether they need a host; empty: they always do."""
    _cache: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)

    @property
    def name(self) -> str:
        """ "model serve"."""
        return f"{self.domain} {self.verb}".strip()

    @property
    def id(self) -> str:
        """ "model.serve"."""
        return self.name.replace(" ", ".").replace("-", "_")

    @property
    def summary(self) -> str:
        """The first line of the docstring."""
        return self.doc.partition("\n")[0]

    @property
    def doc(self) -> str:
        """The docstring without its examples."""
        return inspect.getdoc(self.function).partition("\nExamples:\n")[0].strip() if self.function.__doc__ else ""  # type: ignore[union-attr]

    @property
    def examples(self) -> tuple[str, ...]:
        """Command lines from the docstring."""
        _, _, text = (inspect.getdoc(self.function) or "").partition("\nExamples:\n")
        return tuple(line.strip() for line in text.splitlines() if line.strip())

    @property
    def takes_swarm(self) -> bool:
        """Whether the function's first parameter is the swarm."""
        return next(iter(inspect.signature(self.function).parameters), "") == "swarm"

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        """Its parameters in order; annotations are resolved one by one, so `swarm` may stay unresolved."""
        if "parameters" not in self._cache:
            self._cache["parameters"] = tuple(
                _parameter(self.function, p)
                for name, p in inspect.signature(self.function).parameters.items()
                if name != "swarm"
            )
        found: tuple[Parameter, ...] = self._cache["parameters"]
        return found

    @property
    def returns(self) -> Any:
        """The resolved return annotation."""
        if "returns" not in self._cache:
            self._cache["returns"] = _resolve(self.function, inspect.signature(self.function).return_annotation)
        return self._cache["returns"]

    def progress(self) -> Callable[[Any, Any], Any] | None:
        """The `until` function, imported."""
        if not self.until:
            return None
        module, _, name = self.until.partition(":")
        found: Callable[[Any, Any], Any] = getattr(importlib.import_module(module), name)
        return found

    def needs_host(self, values: Mapping[str, object]) -> HostNeed:
        """Whether these values need a host; without one there is no swarm to pass."""
        if not self.host_for:
            return HostNeed.YES
        module, _, name = self.host_for.partition(":")
        found: HostNeed = getattr(importlib.import_module(module), name)(values)
        return found

    def bind(self, values: Mapping[str, object]) -> dict[str, object]:
        """Checked keyword values for `values`. Raises InvalidError for unknown, missing or wrong ones."""
        from gswarm.names import near

        known = {p.name: p for p in self.parameters}
        for name in values:
            if name not in known:
                raise InvalidError(f"{self.name} has no parameter {name!r}", next=near(name, known), field=name)
        return {name: p.coerce(values.get(name)) for name, p in known.items()}

    async def run(self, swarm: Any, /, **values: object) -> Any:
        """Do it: check values, call the function."""
        bound = self.bind(values)
        arguments = [bound.pop(p.name) for p in self.parameters if p.positional]
        if self.takes_swarm:
            return await self.function(swarm, *arguments, **bound)
        return await self.function(*arguments, **bound)


_REGISTRY: dict[str, dict[str, Action]] = {room: {} for room in ROOMS}


def action(
    domain: str,
    verb: str,
    *,
    role: str = "",
    effect: str = "",
    read: bool = False,
    local: bool = False,
    destructive: bool = False,
    until: str = "",
    key: str = "",
    face: str = "",
    host_for: str = "",
) -> Callable[[F], F]:
    """Register an async function as an action. The function itself stays as it is."""

    def register(function: F) -> F:
        room = function.__module__.split(".")[1]
        made = Action(
            domain,
            verb,
            function,
            room,
            role or ("viewer" if read else "operator"),
            read,
            local,
            destructive,
            effect,
            until,
            key,
            face,
            host_for,
        )
        if made.name in _REGISTRY.setdefault(room, {}):
            raise ValueError(f"there are two actions {made.name}")
        _REGISTRY[room][made.name] = made
        return function

    return register


def room_actions(room: str) -> list[Action]:
    """The actions of one room, imported on demand."""
    try:
        importlib.import_module(f"gswarm.{room}.actions")
    except ModuleNotFoundError as error:
        if error.name not in (f"gswarm.{room}", f"gswarm.{room}.actions"):
            raise
    return list(_REGISTRY.get(room, {}).values())


def actions() -> list[Action]:
    """Every action there is."""
    return [found for room in ROOMS for found in room_actions(room)]


def _resolve(function: Callable[..., Any], annotation: Any) -> Any:
    if isinstance(annotation, str):
        scope = vars(sys.modules[function.__module__])
        return eval(annotation, scope)  # our own source text, written in this repository
    return annotation


def _parameter(function: Callable[..., Any], p: inspect.Parameter) -> Parameter:
    annotation = _resolve(function, p.annotation)
    doc = ref = short = ""
    if typing.get_origin(annotation) is typing.Annotated:
        annotation, *markers = typing.get_args(annotation)
        for marker in markers:
            match marker:
                case Doc(text):
                    doc = text
                case Ref(kind):
                    ref = kind
                case Short(flag):
                    short = flag
    optional = many = False
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        (annotation,) = (a for a in typing.get_args(annotation) if a is not type(None))
        optional = True
    if typing.get_origin(annotation) is list:
        (annotation,) = typing.get_args(annotation)
        many = True
    choices: tuple[str, ...] = ()
    if typing.get_origin(annotation) is typing.Literal:
        choices, annotation = typing.get_args(annotation), str
    elif isinstance(annotation, type) and issubclass(annotation, Enum):
        choices = tuple(str(member.value) for member in annotation if member.value != "unknown")
    elif annotation not in SCALARS:
        raise TypeError(f"{function.__name__}: {p.name} is {annotation}, which no face can take")
    if optional and many:
        raise TypeError(f"{function.__name__}: {p.name} is a list or None; give an empty list instead")
    required = p.default is inspect.Parameter.empty
    return Parameter(
        p.name,
        annotation,
        many,
        optional,
        None if required else p.default,
        required,
        p.kind is not inspect.Parameter.KEYWORD_ONLY,
        choices,
        doc,
        ref,
        short,
    )
