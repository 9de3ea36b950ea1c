"""One action, four faces: every action of the catalogue can be reached from each, and says how."""

from __future__ import annotations

import inspect
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer
from fastapi import FastAPI
from gswarm_tui.deeds import catalogue as console_entries
from gswarm_tui.deeds import from_action

from gswarm import facegen, faces, index, net
from gswarm.catalogue import ROOMS, Action, actions, room_actions
from gswarm.cli import Globals, build
from gswarm.cluster.types import ConditionState, Progress
from gswarm.errors import InvalidError
from gswarm.host.rest import PREFIX, application, method_of, path_of
from gswarm.kinds import BY_SLOT
from gswarm.swarm import Swarm

# What only makes sense on this machine: command line and Python, no REST and no console entry.
LOCAL = {
    "up",
    "down",
    "doctor",
    "logs",
    "config show",
    "host start",
    "host stop",
    "client connect",
    "client backend install",
    "client backend list",
    "profiler metrics",
    "profiler recover",
    "profiler run",
    "scheduler plan",
    "scheduler validate",
    "scheduler simulate",
    "scheduler compare",
    "scheduler generate",
    "scheduler explain",
    "scheduler show",
}
EVERY = actions()
REMOTE = [action for action in EVERY if not action.local]


def names(given: list[Action]) -> list[str]:
    return [action.id for action in given]


@pytest.fixture(scope="module")
def rest() -> FastAPI:
    swarm = Swarm(net.Endpoint("127.0.0.1", 1, None))
    return application(swarm, loopback=True)


@pytest.fixture(scope="module")
def commands() -> dict[str, Any]:
    return {room: build(room, Globals()) for room in ROOMS}


def command_of(commands: dict[str, Any], action: Action) -> Any:
    found = commands[index.ROOM_OF[action.name.split()[0]]]
    for word in action.name.split():
        found = found.commands[word]
    return found


def parse(commands: dict[str, Any], line: str) -> Any:
    """What the real command line makes of a line, short of running it."""
    program, *words = shlex.split(line)
    assert program == "gswarm"
    found, context = commands[index.ROOM_OF[words[0]]], None
    while hasattr(found, "commands"):
        word = words.pop(0)
        assert word in found.commands, f"{line}: there is no {word}"
        found = found.commands[word]
    context = found.make_context(line, words)
    return context.params


def test_the_local_actions_are_these_and_no_others() -> None:
    assert {action.name for action in EVERY if action.local} == LOCAL


@pytest.mark.parametrize("action", EVERY, ids=names(EVERY))
def test_every_action_is_a_command_with_all_its_parameters(commands: dict[str, Any], action: Action) -> None:
    command = command_of(commands, action)
    taken = {name for p in command.params for name in (p.name, *p.opts)}
    for p in action.parameters:
        assert p.name in taken and (p.positional or p.flag in taken), f"{action.name} does not take {p.name}"
        assert p.doc, f"{action.name}: nothing says what {p.name} is"
    assert "--output" in taken
    assert action.local or {"--host", "--token-file", "--timeout"} <= taken
    assert ("--wait" in taken) == bool(action.until)
    assert ("--yes" in taken) == action.destructive
    assert ("--dry-run" in taken) == (not action.read and not action.local)


@pytest.mark.parametrize("action", EVERY, ids=names(EVERY))
def test_every_action_is_explained_with_examples_that_parse(commands: dict[str, Any], action: Action) -> None:
    assert re.fullmatch(r"[A-Z].*\.", action.summary.splitlines()[0]), "the first line is a sentence"
    assert action.read or action.effect, "what changes something says what"
    assert action.examples
    for line in action.examples:
        assert line.startswith(f"gswarm {action.name}"), line
        given = parse(commands, line)
        values = {p.name: given[p.name] for p in action.parameters if given[p.name] is not None}
        action.bind({name: list(value) if isinstance(value, tuple) else value for name, value in values.items()})
    # What is shown for --help is the same text.
    shown = command_of(commands, action).get_help(typer.Context(command_of(commands, action)))
    assert all(line in shown for line in action.examples) and action.summary in " ".join(shown.split())


@pytest.mark.parametrize("action", REMOTE, ids=names(REMOTE))
def test_every_action_has_a_rest_route_with_the_same_parameters(rest: FastAPI, action: Action) -> None:
    routes = rest.openapi()["paths"].get(f"{PREFIX}{path_of(action)}")
    assert routes is not None, f"no route for {action.name}"
    method = method_of(action).lower()
    assert list(routes) == [method]
    described = routes[method]
    if method == "get":
        taken = {p["name"] for p in described.get("parameters", ())}
    else:
        name = described["requestBody"]["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
        taken = set(rest.openapi()["components"]["schemas"][name].get("properties", ()))
    assert taken == {p.name for p in action.parameters}
    assert described["summary"] == action.summary


@pytest.mark.parametrize("action", REMOTE, ids=names(REMOTE))
def test_every_action_has_a_console_entry(action: Action) -> None:
    (entry,) = (found for found in console_entries() if found.name == action.name)
    assert [f.name for f in entry.fields] == [p.name for p in action.parameters]
    assert (entry.is_destructive, entry.key, entry.role) == (action.destructive, action.key, action.role)


@pytest.mark.parametrize("action", REMOTE, ids=names(REMOTE))
def test_every_action_is_a_typed_python_method(action: Action) -> None:
    swarm = Swarm(net.Endpoint("127.0.0.1", 1, None))
    method = getattr(getattr(swarm, action.domain) if action.domain else swarm, action.verb.replace("-", "_"))
    taken = inspect.signature(method).parameters
    for p in action.parameters:
        kind = taken[p.name].kind
        assert (kind is inspect.Parameter.KEYWORD_ONLY) is not p.positional
        assert (taken[p.name].default is inspect.Parameter.empty) is p.required
    assert ("wait" in taken) == bool(action.until)


@pytest.mark.parametrize("action", [a for a in EVERY if a.local], ids=names([a for a in EVERY if a.local]))
def test_what_is_local_is_a_plain_coroutine_and_nowhere_else(rest: FastAPI, action: Action) -> None:
    assert inspect.iscoroutinefunction(action.function) and not action.takes_swarm
    assert f"{PREFIX}{path_of(action)}" not in rest.openapi()["paths"]
    assert action.name not in {entry.name for entry in console_entries()}


@pytest.mark.parametrize("action", EVERY, ids=names(EVERY))
def test_every_resource_named_and_every_end_waited_for_exists(action: Action) -> None:
    for p in action.parameters:
        assert not p.ref or p.ref in BY_SLOT, f"{action.name}: {p.name} refers to {p.ref}"
    if action.until:
        until = action.progress()
        assert until is not None
        one: Any = next(iter(getattr(action.returns, "__args__", ())), action.returns)
        gone = until(one(), None)
        assert isinstance(gone, Progress) and gone.state in (ConditionState.DONE, ConditionState.FAILED)


def test_no_two_keys_of_a_domain_are_the_same() -> None:
    keys = [(action.domain, action.key) for action in EVERY if action.key]
    assert len(keys) == len(set(keys))


def test_a_command_imports_the_room_that_has_it() -> None:
    for room in ROOMS:
        for action in room_actions(room):
            assert index.ROOM_OF[action.name.split()[0]] == room
    assert set(index.ROOM_OF) == {action.name.split()[0] for action in EVERY}


def test_what_is_generated_is_what_the_catalogue_says() -> None:
    assert Path(faces.__file__).read_text() == facegen.faces(EVERY), "run python -m gswarm.facegen"
    assert Path(index.__file__).read_text() == facegen.index(EVERY), "run python -m gswarm.facegen"


def test_the_static_help_names_every_command() -> None:
    for action in EVERY:
        first, *rest = action.name.split()
        (line,) = (line for line in index.HELP.splitlines() if re.match(rf"  {first} ", line))
        assert not rest or re.search(rf"\b{rest[0]}\b", line)


def find(name: str) -> Action:
    return next(action for action in EVERY if action.name == name)


@pytest.mark.parametrize(
    ("name", "values", "told"),
    [
        ("model serve", {}, "name is missing"),
        ("model serve", {"name": 3}, "name is 3: text is expected"),
        ("model serve", {"name": "m", "port": "80"}, "port is '80': a whole number is expected"),
        ("model serve", {"name": "m", "port": 1.5}, "a whole number is expected"),
        ("model serve", {"name": "m", "port": float("inf")}, "port is inf: a whole number is expected"),
        ("data acquire", {"chunk": "c", "holder": "h", "lease": float("nan")}, "lease is nan: a number is expected"),
        ("model serve", {"name": "m", "port": True}, "port is True"),
        ("model serve", {"name": "m", "device": "cpu"}, "device takes a list"),
        ("model serve", {"name": "m", "devices": ["cpu"]}, "Did you mean device"),
        ("token create", {"name": "x", "role": "root"}, "viewer, operator, agent, infer, admin"),
        ("profiler export", {"name": "x", "format": "xml"}, "One of csv, parquet, json"),
    ],
)
def test_wrong_values_are_refused_by_name(name: str, values: dict[str, object], told: str) -> None:
    with pytest.raises(InvalidError, match=re.escape(told)) as caught:
        find(name).bind(values)
    assert caught.value.field


@pytest.mark.parametrize(
    "values",
    [
        {"name": "smollm2"},
        {"name": "a model; rm -rf /", "device": ["n1:gpu0", "n1:gpu1"], "port": 9100},
        {"name": "--help", "option": ["a=b c", "d='e'"]},
    ],
)
def test_the_command_line_that_the_console_echoes_does_the_same(
    commands: dict[str, Any], values: dict[str, object]
) -> None:
    action = find("model serve")
    deed = from_action(action)
    line = deed.line(values)
    given = parse(commands, line)
    assert deed.parse(shlex.split(line)[3:]) == values, "the console's own command line reads it as well"
    assert action.bind({p.name: given[p.name] for p in action.parameters}) == action.bind(values)


@pytest.mark.parametrize("page", ["slow-run.md", "recordings.md"])
def test_every_command_line_of_a_page_parses(commands: dict[str, Any], page: str) -> None:
    text = (Path(__file__).parent.parent / "docs" / page).read_text()
    lines = re.findall(r"^\$ gswarm (?:--\w+ \S+ )*([a-z].*?)(?: +[#>].*)?$", text, re.MULTILINE)
    assert len(lines) > 5
    for line in lines:
        parse(commands, f"gswarm {line}")
