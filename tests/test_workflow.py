"""Workflow files: what is read from them, and what a person is told when they are wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from gswarm.errors import GswarmError, InvalidError
from gswarm.queue import references, workflow
from gswarm.queue.references import Json
from gswarm.v1 import queue_pb2

GOOD = """\
name: demo
actions:
  - id: ask
    type: inference
    model: llama
    prompt: How are you?
  - id: sum
    type: inference
    model: llama
    priority: high
    retries: 2
    timeout: 5m
    depends_on: ask
    prompt: "Shorter: ${ask.output}"
"""


def fails(text: str, *, is_json: bool = False) -> str:
    with pytest.raises(InvalidError) as caught:
        workflow.parse(text, "flow.yaml", is_json=is_json)
    return str(caught.value)


def test_yaml_and_json_give_the_same_workflow() -> None:
    as_json = json.dumps(yaml.safe_load(GOOD), indent="\t")
    (spec,) = workflow.parse(GOOD, "flow.yaml")
    assert workflow.parse(as_json, "flow.json", is_json=True) == [spec]
    ask, short = spec.actions
    assert (spec.name, ask.id, ask.model, ask.priority) == ("demo", "ask", "llama", queue_pb2.PRIORITY_NORMAL)
    assert (short.priority, short.retries, short.timeout_s) == (queue_pb2.PRIORITY_HIGH, 2, 300.0)
    assert list(short.depends_on) == ["ask"]
    assert json.loads(short.params_json) == {"model": "llama", "prompt": "Shorter: ${ask.output}"}


def test_a_reference_is_a_dependency_though_none_is_written() -> None:
    (spec,) = workflow.parse(GOOD.replace("    depends_on: ask\n", ""), "flow.yaml")
    assert list(spec.actions[1].depends_on) == ["ask"]


def test_several_documents_are_several_workflows() -> None:
    assert [s.name for s in workflow.parse(f"{GOOD}---\n{GOOD.replace('demo', 'two')}", "x")] == ["demo", "two"]


def test_json_escapes_beyond_the_basic_plane_survive() -> None:
    text = '{"actions": [{"id": "a", "type": "inference", "model": "m", "prompt": "\\ud83d\\ude00"}]}'
    (spec,) = workflow.parse(text, "x.json", is_json=True)
    assert json.loads(spec.actions[0].params_json)["prompt"] == "😀"


def test_the_example_is_ten_prompts_over_two_models() -> None:
    (spec,) = workflow.load(Path(__file__).parent.parent / "examples/ten_prompts.yaml")
    assert (len(spec.actions), len({a.model for a in spec.actions})) == (10, 2)


@pytest.mark.parametrize(
    ("old", "new", "where", "said"),
    [
        ("    prompt: How", "    promt: How", "6:5", "did you mean prompt"),
        ("type: inference", "type: infrence", "4:11", "did you mean inference"),
        ("priority: high", "priority: urgent", "10:15", "critical, high, normal or low"),
        ("retries: 2", "retries: -1", "11:14", "from 0 to 100"),
        ("retries: 2", "retries: yes", "11:14", "from 0 to 100"),
        ("timeout: 5m", "timeout: soon", "12:14", "30s, 5m, 2h"),
        ("depends_on: ask", "depends_on: aks", "13:", "did you mean ask"),
        ("${ask.output}", "${aks.output}", "14:13", "did you mean ask"),
        ("${ask.output}", "${ask.result}", "14:13", "${step.output}"),
        ("${ask.output}", "${ask.output", "14:13", "${step.output}"),
        ("id: sum", "id: ask", "7:9", "two actions ask"),
        ("id: sum", "id: 7", "7:9", "quotes"),
        ("id: sum", "id: a b", "7:9", "cannot be an id"),
        ("    model: llama\n    prompt", "    prompt", "3:5", "needs model"),
        ("model: llama\n    prompt", "model: ${sum.output}\n    prompt", "5:12", "cannot be a reference"),
        ("    prompt: How are you?\n", "", "3:5", "neither prompt nor messages"),
        ("prompt: How are you?", "prompt: [1]", "6:13", "takes text"),
        ("prompt: How are you?", "prompt: hi\n    messages: [{role: user, content: x}]", "6:13", "both"),
        ("    model: llama\n    prompt", "    model: llama\n    model: x\n    prompt", "6:5", "there twice"),
        ("name: demo", "nmae: demo", "1:1", "did you mean name"),
        ("name: demo", "name: a/b", "1:7", "name"),
        ("actions:\n", "actions: []\nx:\n", "", ""),
        ("prompt: How are you?", "prompt: *x", "6:13", "aliases"),
        ("prompt: How are you?", "prompt: !!binary aGk=", "6:13", "quotes"),
        ("prompt: How are you?", "prompt: hi\n    max_tokens: 0", "7:17", "from 1 to"),
        ("prompt: How are you?", "prompt: 'open", "", "cannot be read"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(old: str, new: str, where: str, said: str) -> None:
    assert old in GOOD
    text = fails(GOOD.replace(old, new, 1))
    assert text.startswith(f"flow.yaml:{where}"), text
    assert said.lower() in text.lower()


def test_a_cycle_is_shown_as_a_cycle() -> None:
    chain = "".join(
        f"  - {{id: {a}, type: stop, service: s, depends_on: [{b}]}}\n" for a, b in (("a", "b"), ("b", "c"), ("c", "a"))
    )
    assert "a -> b -> c -> a" in fails(f"actions:\n{chain}")
    assert "a -> a" in fails("actions:\n  - {id: a, type: stop, service: s, depends_on: a}\n")


def test_a_deep_chain_is_no_cycle_and_no_trouble() -> None:
    lines = [f"  - {{id: a{n}, type: stop, service: s, depends_on: [a{n - 1}]}}" for n in range(1, 3000)]
    (spec,) = workflow.parse("actions:\n  - {id: a0, type: stop, service: s}\n" + "\n".join(lines), "x")
    assert len(spec.actions) == 3000


@pytest.mark.parametrize("text", ["", "---\n", "# nothing\n"])
def test_an_empty_file_is_said_to_be_empty(text: str) -> None:
    assert "is empty" in fails(text)


@pytest.mark.parametrize("text", ["[", "{", "a: b: c", "\x00", "[" * 5000, "{" * 5000, '{"a": 1,}', "nan"])
def test_what_is_no_json_is_refused_with_its_place(text: str) -> None:
    assert fails(text, is_json=True).startswith("flow.yaml:")


def test_a_file_that_is_none_is_refused(tmp_path: Path) -> None:
    for path, said in ((tmp_path / "no.yaml", "No such file"), (tmp_path, "directory")):
        with pytest.raises(InvalidError, match=said):
            workflow.load(path)
    (tmp_path / "latin.yaml").write_bytes("name: caf\xe9".encode("latin-1"))
    with pytest.raises(InvalidError, match="UTF-8"):
        workflow.load(tmp_path / "latin.yaml")


def test_a_spec_from_anyone_is_checked_like_a_file() -> None:
    (spec,) = workflow.parse(GOOD, "x")
    spec.actions[0].params_json = '{"model": "other", "prompt": "x"}'
    with pytest.raises(InvalidError, match="model"):
        workflow.validate(spec)
    spec.actions[0].params_json = "[" * 100_000
    with pytest.raises(InvalidError, match="JSON"):
        workflow.validate(spec)


scalars = st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False) | st.text()
values = st.recursive(
    scalars, lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(max_size=8), v, max_size=3), max_leaves=12
)


@settings(max_examples=200, deadline=None)
@given(st.text() | values.map(lambda v: yaml.safe_dump(v)), st.booleans())
def test_any_text_is_read_or_refused_and_nothing_else(text: str, is_json: bool) -> None:
    try:
        workflow.parse(text, "x", is_json=is_json)
    except GswarmError as error:
        assert str(error)


KEYS = ("id", "type", "model", "prompt", "depends_on", "priority", "retries", "timeout", "messages", "stop", "zzz")
actions = st.dictionaries(st.sampled_from(KEYS), values | st.sampled_from(("inference", "a", "b", "high")), max_size=8)


@settings(max_examples=200, deadline=None)
@given(st.lists(actions | values, max_size=4))
def test_any_actions_are_read_or_refused_and_nothing_else(found: list[object]) -> None:
    try:
        specs = workflow.parse(json.dumps({"actions": found}), "x.json", is_json=True)
    except GswarmError as error:
        assert str(error)
    else:
        for spec in specs:
            workflow.validate(spec)


@given(values.filter(lambda v: "$" not in json.dumps(v)))
def test_what_has_no_reference_stays_as_it_is(value: Json) -> None:
    assert references.resolve(value, lambda step: None) == value
    assert list(references.find(value)) == []


def test_references_take_the_text_the_whole_or_a_field() -> None:
    outputs: dict[str, Json] = {"a": {"text": "hi", "n": [1, {"x": 2}]}, "b": {"service": "s"}}

    def resolve(text: str) -> Json:
        return references.resolve(text, outputs.__getitem__)

    assert resolve("${a.output}") == "hi"
    assert resolve("say ${a.output}!") == "say hi!"
    assert resolve("${b.output}") == {"service": "s"}
    assert resolve("${ a.output.n.1.x }") == 2
    assert resolve("${a.output.n.1.x}, ${a.output.n}") == '2, [1, {"x": 2}]'
    assert resolve("$${a.output} costs 5$") == "${a.output} costs 5$"
    with pytest.raises(InvalidError, match="it has text, n"):
        resolve("${a.output.m}")
    with pytest.raises(InvalidError, match="2 items"):
        resolve("${a.output.n.2}")
