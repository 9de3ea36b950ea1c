"""The files of scheduling: what they may look like, and that every mistake is told with its file, place and line."""

from __future__ import annotations

import copy
import gzip
import json
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import jsonschema
import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from gswarm.scheduler.formats import Document, FormatError, executions_of, plan_lines, problem_of, read_file
from gswarm.scheduler.generate import Recipe, generate
from gswarm.scheduler.plan import Plan, from_columns
from gswarm.scheduler.problem import Gpu, Model, Node, Placement, Problem, ProblemError, Request, build
from tests.support.scheduling import naive, problems

SCHEMAS = Path(__file__).resolve().parent.parent / "docs" / "schemas"
Json = dict[str, Any]

CONFIG: Json = {
    "models": {
        "small": {"name": "Small", "memory_gb": 8, "gpus_required": 1, "load_time_seconds": 2.5, "type": "llm"},
        "wide": {"memory_gb": 20.5, "gpus_required": 2, "load_time_seconds": 9, "config": {"steps": [1, 2]}},
    },
    "workflows": {
        "flow": {
            "name": "Flow",
            "nodes": [
                {"id": "a", "model": "small", "inputs": [], "outputs": ["x"]},
                {"id": "b", "model": "wide", "inputs": ["x"], "outputs": []},
                {"id": "c", "model": "small"},
            ],
            "edges": [{"from": "a", "to": "b"}, {"from": "a", "to": "c"}, {"from": "b", "to": "c"}],
        },
        "one": {"nodes": [{"id": "a", "model": "wide"}], "edges": []},
    },
    "metadata": {"made": "by hand"},
}
REQUESTS: Json = {
    "metadata": {},
    "requests": [
        {
            "request_id": "r1",
            "timestamp": "2025-01-01T00:00:05.483017",
            "workflow_id": "one",
            "input_data": {},
            "node_configs": {},
            "node_execution_times": {"a": 4, "elsewhere": -1},
        },
        {
            "request_id": "r0",
            "timestamp": "2025-01-01T00:00:00",
            "workflow_id": "flow",
            "metadata": {"priority": 1},
            "node_execution_times": {"a": 1.5, "b": 2, "c": 0.0},
        },
    ],
}


def json_file(content: object, name: str = "x.json", indent: int | str | None = 1) -> Document:
    return Document(name, json.dumps(content, indent=indent).encode())


def load(config: Json = CONFIG, requests: Json = REQUESTS, gpus: int = 4) -> Problem:
    return problem_of(json_file(config, "config.json"), json_file(requests, "requests.json"), gpus)


def changed(content: Json, path: tuple[str | int, ...], value: object) -> Json:
    """A copy with another value at a path; without the value where it is None."""
    new = copy.deepcopy(content)
    holder: Any = new
    for key in path[:-1]:
        holder = holder[key]
    if value is None:
        del holder[path[-1]]
    else:
        holder[path[-1]] = value
    return new


def same(one: Problem, other: Problem) -> bool:
    columns = ("arrivals", "first", "model", "seconds", "pred_first", "preds", "succ_first", "succs", "release")
    return (one.models, one.requests, one.nodes) == (other.models, other.requests, other.nodes) and all(
        np.array_equal(getattr(one, column), getattr(other, column)) for column in columns
    )


def test_a_problem_is_what_the_files_say() -> None:
    problem = load()
    assert problem.models == (Model("small", 1, 8.0, 2.5, "Small"), Model("wide", 2, 20.5, 9.0))
    assert problem.requests == ("r0", "r1")  # by time
    assert problem.arrivals.tolist() == [0.0, 5.483017]
    assert problem.nodes == ("a", "b", "c", "a")
    assert problem.model.tolist() == [0, 1, 0, 1]
    assert problem.seconds.tolist() == [1.5, 2.0, 0.0, 4.0]
    assert [problem.preds_of(t).tolist() for t in range(4)] == [[], [0], [0, 1], []]
    assert (problem.succ_first.tolist(), problem.succs.tolist()) == ([0, 2, 3, 3, 3], [1, 2, 2])
    assert problem.warnings == ()
    assert problem.task_of("r1/a") == 3
    assert problem.name_of(1) == "r0/b"


def test_a_task_is_found_whatever_slashes_its_ids_have() -> None:
    nodes = [{"id": "a", "model": "small"}, {"id": "b/a", "model": "small"}]
    config = changed(CONFIG, ("workflows", "one", "nodes"), nodes)
    times = {"a": 1.0, "b/a": 2.0}
    requests = {
        "requests": [
            {"request_id": name, "timestamp": "2026-01-01", "workflow_id": "one", "node_execution_times": times}
            for name in ("r", "r/b", "r/c")
        ]
    }
    problem = load(config, requests)
    named = {name: problem.task_of(name) for name in ("r/a", "r/b/b/a", "r/c/a", "r/c/b/a")}
    assert named == {"r/a": 0, "r/b/b/a": 3, "r/c/a": 4, "r/c/b/a": 5}
    assert problem.task_of("r/b/a") == 2  # the longest request, where two are meant
    with pytest.raises(ProblemError, match=r"request r/c has no node 'd'"):
        problem.task_of("r/c/d")


@pytest.mark.parametrize("indent", [None, 1, "\t"])
def test_json_yaml_and_gzip_say_the_same(tmp_path: Path, indent: int | str | None) -> None:
    written = {
        "json": {name: json.dumps(c, indent=indent) for name, c in (("config", CONFIG), ("requests", REQUESTS))},
        "yaml": {name: yaml.safe_dump(c) for name, c in (("config", CONFIG), ("requests", REQUESTS))},
    }
    read = []
    for end, texts in written.items():
        for packed in (False, True):
            files = {}
            for name, text in texts.items():
                path = tmp_path / f"{name}.{end}{'.gz' if packed else ''}"
                path.write_bytes(gzip.compress(text.encode()) if packed else text.encode())
                files[name] = read_file(path)
            read.append(problem_of(files["config"], files["requests"], 4))
    # Flow style, as in JSON, in a file that is not called so; and a file whose name says nothing.
    flow = yaml.safe_dump(CONFIG, default_flow_style=True).encode()
    read.append(problem_of(Document("c.yaml", flow), json_file(REQUESTS, "r"), 4))
    assert all(same(read[0], other) for other in read[1:])


def test_yaml_reads_times_and_ids_that_are_not_quoted() -> None:
    config = b"models: {1: {memory_gb: 1, load_time_seconds: 1}}\nworkflows: {7: {nodes: [{id: 3, model: 1}]}}"
    requests = b"""
requests:
- {request_id: 10, timestamp: 2025-01-01, workflow_id: 7, node_execution_times: {3: 2}}
- {request_id: 11, timestamp: 2025-01-01T00:00:01.5, workflow_id: 7, node_execution_times: {3: 2}}
- {request_id: 12, timestamp: '2025-01-01', workflow_id: '7', node_execution_times: {'3': 2.5}}
"""
    problem = problem_of(Document("c.yaml", config), Document("r.yaml", requests), 1)
    assert problem.requests == ("10", "12", "11")
    assert problem.arrivals.tolist() == [0.0, 0.0, 1.5]
    assert problem.seconds.tolist() == [2.0, 2.5, 2.0]


@pytest.mark.parametrize(
    ("stamp", "seconds"),
    [
        ("2025-01-01T00:00:01", 1.0),
        ("2025-01-01T00:00:01Z", 1.0),
        ("2025-01-01T02:00:01+02:00", 1.0),
        ("2025-01-01 00:00:00.000001", 0.000001),
        ("2025-01-02", 86400.0),
    ],
)
def test_a_time_without_a_zone_is_utc(stamp: str, seconds: float) -> None:
    problem = load(requests=changed(REQUESTS, ("requests", 0, "timestamp"), stamp))
    assert problem.arrivals.tolist() == [0.0, seconds]


def test_an_edge_to_a_missing_node_is_ignored_with_a_warning() -> None:
    edges = [{"from": "a", "to": "b"}, {"from": "b", "to": "nowhere"}, {"from": "elsewhere", "to": "c"}]
    problem = load(changed(CONFIG, ("workflows", "flow", "edges"), edges))
    assert [problem.preds_of(t).tolist() for t in range(4)] == [[], [0], [], []]
    assert problem.warnings == (
        "config.json: workflows.flow.edges[1]: ignored, the workflow has no node 'nowhere'",
        "config.json: workflows.flow.edges[2]: ignored, the workflow has no node 'elsewhere'",
    )


def test_an_edge_twice_counts_once() -> None:
    edges = [{"from": "a", "to": "b"}] * 3
    assert load(changed(CONFIG, ("workflows", "flow", "edges"), edges)).preds.tolist() == [0]


def test_no_edges_no_requests_and_no_nodes_are_fine() -> None:
    assert load(changed(CONFIG, ("workflows", "flow", "edges"), None)).preds.tolist() == []
    assert load(requests={"requests": []}).tasks == 0
    empty = load(changed(CONFIG, ("workflows", "flow"), {"nodes": []}))
    assert empty.requests == ("r0", "r1")
    assert empty.tasks == 1


# Mistakes: where they are, and what is said of them

MISTAKES: list[tuple[str, tuple[str | int, ...], object, str]] = [
    ("config", ("models",), None, "is missing"),
    ("config", ("models",), [1], "[1] is not a mapping"),
    ("config", ("models", "small"), 3, "is not a mapping"),
    ("config", ("models", "small", "memory_gb"), None, "is missing"),
    ("config", ("models", "small", "memory_gb"), -2, "-2 is no number from 0 up"),
    ("config", ("models", "wide", "load_time_seconds"), "9", "'9' is no number from 0 up"),
    ("config", ("models", "wide", "load_time_seconds"), float("nan"), "nan is no number from 0 up"),
    ("config", ("models", "wide", "load_time_seconds"), 10**400, " is no number from 0 up"),
    ("config", ("models", "wide", "load_time_seconds"), 1.5e9, "1500000000.0 is more than 1e+09"),
    ("config", ("models", "small", "memory_gb"), 1e300, "1e+300 is more than 1e+09"),
    ("config", ("models", "wide", "gpus_required"), 10**30, f"{10**30} is beyond 1e+09"),
    ("config", ("models", "wide", "load_time_seconds"), True, "True is no number from 0 up"),
    ("config", ("models", "wide", "gpus_required"), 0, "0 is below 1"),
    ("config", ("models", "wide", "gpus_required"), 1.5, "1.5 is not a whole number"),
    ("config", ("models", "wide", "gpus_required"), 5, "5 GPUs for a model that requests need, and there are 4"),
    ("config", ("models", "wide", "name"), [], "[] is not text"),
    ("config", ("models", "wide", "sleep_seconds"), "x", "'x' is no number from 0 up"),
    ("config", ("workflows",), None, "is missing"),
    ("config", ("workflows", "one", "nodes"), None, "is missing"),
    ("config", ("workflows", "flow", "nodes", 2, "model"), "big", "there is no model 'big'; known: small, wide"),
    ("config", ("workflows", "flow", "nodes", 2, "id"), "a", "node a is there twice"),
    ("config", ("workflows", "flow", "nodes", 1, "id"), None, "is missing"),
    ("config", ("workflows", "flow", "edges"), {"a": "b"}, "{'a': 'b'} is not a list"),
    ("config", ("workflows", "flow", "edges", 1, "to"), None, "is missing"),
    ("requests", ("requests",), None, "is missing"),
    ("requests", ("requests", 1, "request_id"), "r1", "request r1 is there twice"),
    ("requests", ("requests", 1, "request_id"), None, "is missing"),
    ("requests", ("requests", 1, "workflow_id"), "two", "there is no workflow 'two'; known: flow, one"),
    ("requests", ("requests", 1, "timestamp"), "yesterday", "'yesterday' is no ISO 8601 time"),
    ("requests", ("requests", 1, "timestamp"), 12, "12 is no ISO 8601 time"),
    ("requests", ("requests", 1, "timestamp"), None, "is missing"),
    ("requests", ("requests", 1, "node_execution_times"), None, "is missing"),
    ("requests", ("requests", 1, "node_execution_times", "b"), None, "is missing"),
    ("requests", ("requests", 1, "node_execution_times", "b"), -1.0, "-1.0 is no number from 0 up"),
    ("requests", ("requests", 1, "node_execution_times", "b"), 1e18, "1e+18 is more than 1e+09"),
    ("requests", ("requests", 1, "priority"), -(10**30), f"-{10**30} is beyond -1e+09"),
    ("requests", ("requests", 1, "node_execution_times", "b"), "2", "'2' is no number from 0 up"),
]


def line_in(text: str, path: tuple[str | int, ...]) -> int:
    """The line of a value, or of what is around it if it is missing: by PyYAML's tree of nodes."""
    node = yaml.compose(text, Loader=yaml.SafeLoader)
    for key in path:
        if isinstance(node, yaml.MappingNode):
            found = next((v for k, v in node.value if k.value == str(key)), None)
        else:
            assert isinstance(node, yaml.SequenceNode)
            found = node.value[int(key)] if int(key) < len(node.value) else None
        if found is None:
            break
        node = found
    assert node is not None
    return int(node.start_mark.line) + 1


@pytest.mark.parametrize("style", ["pretty", "compact", "yaml"])
@pytest.mark.parametrize(("which", "path", "value", "message"), MISTAKES, ids=[f"{m[1]}={m[2]!r:.9}" for m in MISTAKES])
def test_a_mistake_is_told_with_file_place_and_line(
    which: str, path: tuple[str | int, ...], value: object, message: str, style: str
) -> None:
    content = changed(CONFIG if which == "config" else REQUESTS, path, value)
    name = f"{which}.{'yaml' if style == 'yaml' else 'json'}"
    text = {
        "pretty": lambda: json.dumps(content, indent=2),
        "compact": lambda: json.dumps(content),
        "yaml": lambda: yaml.safe_dump(content, sort_keys=False),
    }[style]()
    bad, good = Document(name, text.encode()), json_file(REQUESTS if which == "config" else CONFIG)
    with pytest.raises(FormatError) as caught:
        problem_of(bad if which == "config" else good, good if which == "config" else bad, 4)
    error = caught.value
    shown = "".join(f"[{k}]" if isinstance(k, int) else f".{k}" for k in path).lstrip(".")
    assert str(error).startswith(f"{name}:{error.line}: {shown}: ")
    assert str(error).endswith(message)
    assert error.line == (1 if style == "compact" else line_in(text, path))


def test_times_that_are_too_far_apart_are_named() -> None:
    content = changed(REQUESTS, ("requests", 0, "timestamp"), "0001-01-01T00:00:00")
    text = json.dumps(content, indent=1)
    told = rf"^r\.json:{line_in(text, ('requests',))}: requests: more than 1e\+09 s lie between .* at 0001-01-01"
    with pytest.raises(FormatError, match=told):
        problem_of(json_file(CONFIG), Document("r.json", text.encode()), 4)


def test_a_number_of_thousands_of_digits_is_refused() -> None:
    with pytest.raises(FormatError, match=r"^c\.json: is no JSON: "):
        Document("c.json", b'{"models": ' + b"9" * 5000 + b"}")


def test_the_line_is_the_one_in_the_editor() -> None:
    text = '{\n  "models": {\n    "m": {\n      "memory_gb": 1,\n      "load_time_seconds": -4\n    }\n  }\n}\n'
    with pytest.raises(FormatError, match=r"^c\.json:5: models\.m\.load_time_seconds: -4 is no number from 0 up$"):
        problem_of(Document("c.json", text.encode()), json_file(REQUESTS), 4)
    text = "# mine\nmodels:\n  m:\n    memory_gb: 1\n    load_time_seconds: 1\nworkflows:\n  f:\n    nodes:\n    - {id: x, model: y}\n"
    with pytest.raises(FormatError, match=r"^c\.yaml:9: workflows\.f\.nodes\[0\]\.model: there is no model 'y'"):
        problem_of(Document("c.yaml", text.encode()), json_file(REQUESTS), 4)


def test_a_cycle_is_shown_as_one() -> None:
    edges = [{"from": "a", "to": "b"}, {"from": "b", "to": "c"}, {"from": "c", "to": "a"}]
    with pytest.raises(FormatError, match=r"config\.json:\d+: workflows\.flow\.edges: is a cycle: ") as caught:
        load(changed(CONFIG, ("workflows", "flow", "edges"), edges))
    shown = str(caught.value).partition("is a cycle: ")[2].split(" -> ")
    assert len(shown) == 4
    assert shown[0] == shown[-1]
    assert all((one, next_) in {("a", "b"), ("b", "c"), ("c", "a")} for one, next_ in pairwise(shown))
    with pytest.raises(FormatError, match="is a cycle: b -> b"):
        load(changed(CONFIG, ("workflows", "flow", "edges"), [{"from": "b", "to": "b"}]))


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("c.json", b'{"models": {},\n "workflows" {}}', r"^c\.json:2: is no JSON: "),
        ("c.json.gz", gzip.compress(b'{"models": \n'), r"^c\.json\.gz:2: is no JSON: "),
        ("c.yaml", b"models:\n  a: [1\nworkflows: {}\n", r"^c\.yaml:3: is no YAML: "),
        ("c.yaml.gz", b"\x1f\x8b\x08nonsense", r"^c\.yaml\.gz: cannot be unpacked: "),
        ("c.yaml.gz", gzip.compress(b"models: {}")[:-6], r"^c\.yaml\.gz: cannot be unpacked: "),
        ("c.json", b"\xff\xfe\x00", r"^c\.json: is no text: "),
        ("c.yaml", b"", r"^c\.yaml: models: is missing"),
        ("c.yaml", b"[1, 2]", r"^c\.yaml:1: models: is missing"),
    ],
)
def test_what_is_no_such_file_is_told(name: str, data: bytes, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        problem_of(Document(name, data), json_file(REQUESTS), 4)


# Problems that are built by hand


@pytest.mark.parametrize(
    ("message", "models", "requests"),
    [
        ("request r is there twice", [Model("m")], [Request("r", 0.0, (Node("a", 0),), [1.0])] * 2),
        ("two nodes of one name", [Model("m")], [Request("r", 0.0, (Node("a", 0), Node("a", 0)), [1.0, 1.0])]),
        ("2 nodes and 1 execution times", [Model("m")], [Request("r", 0.0, (Node("a", 0), Node("b", 0)), [1.0])]),
        ("wait for each other: a -> a", [Model("m")], [Request("r", 0.0, (Node("a", 0, (0,)),), [1.0])]),
        ("needs 3 GPUs and there are 2", [Model("m", 3)], [Request("r", 0.0, (Node("a", 0),), [1.0])]),
        ("0 GPUs; at least 1", [Model("m", 0)], []),
        ("memory and times are finite", [Model("m", 1, float("nan"))], []),
        ("execution times are finite", [Model("m")], [Request("r", 0.0, (Node("a", 0),), [-1.0])]),
        ("order of arrival", [Model("m")], [Request("r", 1.0, (), []), Request("s", 0.5, (), [])]),
        ("order of arrival", [Model("m")], [Request("r", float("nan"), (), [])]),
    ],
)
def test_a_problem_that_cannot_be_is_refused(message: str, models: list[Model], requests: list[Request]) -> None:
    with pytest.raises(ProblemError, match=message):
        build(models, 2, requests)


def test_a_model_that_no_one_uses_may_be_too_wide() -> None:
    assert build([Model("m", 8)], 2, []).tasks == 0


def test_a_cluster_is_what_the_config_says_of_it() -> None:
    cluster: Json = {
        "gpu_memory_gb": 80,
        "shared": True,
        "host_memory_gb": 512,
        "gpus": [{"memory_gb": 24, "speed": 0.5, "free_at_seconds": 3}, {}, {"rack": 7}],
        "placements": [{"model": "small", "gpus": [2]}, {"model": "wide", "gpus": [3, 1]}],
        "racks": 2,
    }
    requests = copy.deepcopy(REQUESTS)
    requests["requests"][0] |= {"priority": 2, "deadline_seconds": 60}
    problem = problem_of(json_file(CONFIG | {"cluster": cluster}), json_file(requests), 4)
    assert problem.gpus == (Gpu(24.0, 0.5, 3.0), Gpu(80.0), Gpu(80.0), Gpu(80.0))
    assert problem.shared and problem.host_memory_gb == 512
    assert problem.placements == (Placement(0, (2,)), Placement(1, (1, 3)))
    assert problem.priority is not None and problem.priority.tolist() == [0, 0, 0, 2]
    assert problem.deadline is not None and problem.deadline.tolist() == [np.inf] * 3 + [65.483017]
    # With fewer GPUs, what is beyond them is ignored, and said.
    fewer = problem_of(json_file(CONFIG | {"cluster": cluster}), json_file(requests), 3)
    assert fewer.gpus == problem.gpus[:3] and fewer.placements == problem.placements[:1]
    assert fewer.warnings == ("x.json: placement 1 of wide is ignored: GPU 3 is none of 3",)
    plain = problem_of(json_file(CONFIG), json_file(REQUESTS), 3)
    assert plain.gpus == (Gpu(),) * 3 and not (plain.placements or plain.shared or plain.host_memory_gb)


@pytest.mark.parametrize(
    ("cluster", "message"),
    [
        ({"shared": "yes"}, "cluster.shared: 'yes' is not true or false"),
        ({"host_memory_gb": -1}, "cluster.host_memory_gb: -1 is no number from 0 up"),
        ({"gpus": [{"speed": 0}]}, "cluster.gpus[0].speed: 0 is below 0.001"),
        ({"placements": [{"model": "huge", "gpus": [0]}]}, "there is no model 'huge'; known: small, wide"),
        ({"placements": [{"model": "small", "gpus": [-1]}]}, "[-1] is no list of GPU numbers"),
        ({"placements": [{"model": "wide", "gpus": [0]}]}, "model wide takes 2 GPUs and is on [0] at t = 0"),
        ({"gpu_memory_gb": 16}, "model wide needs 2 GPUs of 20.5 GB; fewer have that much memory"),
    ],
)
def test_a_cluster_that_cannot_be_is_told(cluster: Json, message: str) -> None:
    with pytest.raises(FormatError) as caught:
        problem_of(json_file(CONFIG | {"cluster": cluster}), json_file(REQUESTS), 2)
    assert message in str(caught.value)


def test_columns_cannot_be_written() -> None:
    problem = load()
    with pytest.raises(ValueError, match="read-only"):
        problem.seconds[0] = 7.0


def test_a_recipe_gives_the_same_instance_and_another_seed_another() -> None:
    assert same(generate(Recipe(seed=3)), generate(Recipe(seed=3)))
    assert not same(generate(Recipe(seed=3)), generate(Recipe(seed=4)))
    with pytest.raises(ProblemError, match="gpus is 0"):
        generate(Recipe(gpus=0))


# Plans


def plan_of(problem: Problem, rng: Random) -> Plan:
    runs = {f"{r.request_id}/{r.node_id}": r for r in naive(problem, rng, online=False)}
    chosen = [runs[problem.name_of(t)] for t in range(problem.tasks)]
    return from_columns(
        len(problem.gpus),
        [r.start for r in chosen],
        [r.end for r in chosen],
        [r.switch_seconds for r in chosen],
        [r.gpus for r in chosen],
    )


@given(problems(), st.randoms(use_true_random=False))
@settings(max_examples=50, deadline=None)
def test_a_plan_comes_back_as_it_was_written(problem: Problem, rng: Random) -> None:
    plan = plan_of(problem, rng)
    document = Document("plan.json", "".join(plan_lines(problem, plan)).encode())
    gpus, executions = executions_of(document)
    assert gpus == len(problem.gpus)
    assert executions == list(plan.executions(problem))  # to the last bit
    assert sorted(executions) == sorted(naive_again(problem, plan))
    jsonschema.validate(document.content, schema("plan"))


def naive_again(problem: Problem, plan: Plan) -> list[tuple[object, ...]]:
    return [
        (
            problem.requests[problem.request_of(t)],
            problem.nodes[t],
            problem.models[int(problem.model[t])].id,
            plan.sets[int(plan.where[t])],
            float(plan.start[t]),
            float(plan.end[t]),
            float(plan.switch_s[t]),
        )
        for t in range(problem.tasks)
    ]


PLAN: Json = {
    "gpus": 2,
    "executions": [
        {"request_id": "r", "node_id": "a", "model": "m", "gpus": [0], "start": 1, "end": 2.5, "switch_seconds": 1.0},
        {"request_id": "r", "node_id": "b", "model": "m", "gpus": [1, 0], "start": 3, "end": 4, "switch_seconds": 0},
    ],
}
PLAN_MISTAKES: list[tuple[tuple[str | int, ...], object, str]] = [
    (("gpus",), None, r"gpus: is missing"),
    (("gpus",), "2", r"gpus: '2' is not a whole number"),
    (("executions",), {}, r"executions: {} is not a list"),
    (("executions", 1), 3, r"executions\[1\]\.request_id: is missing"),
    (("executions", 1, "model"), None, r"executions\[1\]\.model: is missing"),
    (("executions", 1, "node_id"), [], r"executions\[1\]\.node_id: \[\] is not text"),
    (("executions", 1, "gpus"), 0, r"executions\[1\]\.gpus: 0 is not a list"),
    (("executions", 1, "gpus"), ["0"], r"executions\[1\]\.gpus: \['0'\] is no list of GPU numbers"),
    (("executions", 1, "gpus"), [True], r"executions\[1\]\.gpus: \[True\] is no list of GPU numbers"),
    (("executions", 1, "start"), None, r"executions\[1\]\.start: is missing"),
    (("executions", 1, "end"), "4", r"executions\[1\]\.end: '4' is no time"),
    (("executions", 1, "switch_seconds"), False, r"executions\[1\]\.switch_seconds: False is no time"),
]


@pytest.mark.parametrize(("path", "value", "message"), PLAN_MISTAKES)
def test_a_mistake_in_a_plan_is_told(path: tuple[str | int, ...], value: object, message: str) -> None:
    bad = changed(PLAN, path, value)
    text = json.dumps(bad, indent=1)
    with pytest.raises(FormatError, match=rf"^plan\.json:{line_in(text, path)}: {message}$"):
        executions_of(Document("plan.json", text.encode()))


def test_times_that_are_not_finite_are_no_times() -> None:
    for number in ("NaN", "Infinity", "1e999", "9" * 400):
        text = json.dumps(PLAN).replace("2.5", number)
        with pytest.raises(FormatError, match=r"executions\[0\]\.end: .* is no time"):
            executions_of(Document("plan.json", text.encode()))


# The published schemas say the same


def schema(name: str) -> Json:
    found: Json = json.loads((SCHEMAS / f"{name}.schema.json").read_text())
    return found


def fits(name: str, content: object) -> bool:
    return bool(jsonschema.Draft202012Validator(schema(name)).is_valid(content))


def accepted(which: str, content: Json) -> bool:
    try:
        if which == "plan":
            executions_of(json_file(content))
        else:
            load(content if which == "config" else CONFIG, content if which == "requests" else REQUESTS)
    except FormatError:
        return False
    return True


DOCUMENTS = {"config": CONFIG, "requests": REQUESTS, "plan": PLAN}
# What no schema can say: what refers to something else, and times by the names of a workflow's nodes.
BEYOND = ("there is no", "twice", "GPUs for a model")


@pytest.mark.parametrize("which", sorted(DOCUMENTS))
def test_the_schemas_are_schemas_and_take_what_is_right(which: str) -> None:
    jsonschema.Draft202012Validator.check_schema(schema(which))
    assert fits(which, DOCUMENTS[which])


@pytest.mark.parametrize(("which", "path", "value", "message"), MISTAKES, ids=[f"{m[1]}={m[2]!r:.9}" for m in MISTAKES])
def test_the_schemas_refuse_what_is_refused(
    which: str, path: tuple[str | int, ...], value: object, message: str
) -> None:
    beyond = any(words in message for words in BEYOND) or "node_execution_times" in path[:-1]
    number = value != value  # NaN: JSON has no such number
    assert fits(which, changed(DOCUMENTS[which], path, value)) == (beyond or number)


@pytest.mark.parametrize(("path", "value", "message"), PLAN_MISTAKES)
def test_the_plan_schema_refuses_what_is_refused(path: tuple[str | int, ...], value: object, message: str) -> None:
    assert not fits("plan", changed(PLAN, path, value)), message


def leaves(content: object, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    inner: list[tuple[str | int, Any]] = []
    if isinstance(content, dict):
        inner = list(content.items())
    elif isinstance(content, list):
        inner = list(enumerate(content))
    return [p for key, value in inner for p in [(*path, key), *leaves(value, (*path, key))]]


@given(st.sampled_from(sorted(DOCUMENTS)), st.data())
@settings(max_examples=200, deadline=None)
def test_the_schemas_take_whatever_is_taken(which: str, data: st.DataObject) -> None:
    content = DOCUMENTS[which]
    path = data.draw(st.sampled_from(leaves(content)))
    value: object = data.draw(st.sampled_from([None, 0, 1, 2.0, 2.5, -1, "a", "small", "7", [], {}, True, [1]]))
    if (new := changed(content, path, value)) and accepted(which, new):
        assert fits(which, new)
