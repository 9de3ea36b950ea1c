"""Traces: what the Trace Event Format asks for, and the recording in it."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gswarm.profiler import history, perfetto
from gswarm.profiler.history import History, Span, SpanKind
from tests.support.scripted import Script, gpu, lane, mark, service, task

G0, G1 = "GPU-n1-0", "SIM-n1-1"
WHEN = {"type": "number", "minimum": 0}
NUMBERED = {"type": "integer", "minimum": 0}


def phase(letter: str, required: list[str], **properties: Any) -> dict[str, Any]:
    """What the format says of one kind of event ("Trace Event Format", section "Event descriptions")."""
    known = {"ph": {"const": letter}, "name": {"type": "string", "minLength": 1}, "cat": {"type": "string"}}
    known |= {"ts": WHEN, "pid": NUMBERED, "tid": NUMBERED, "args": {"type": "object"}} | properties
    return {
        "type": "object",
        "properties": known,
        "required": ["ph", "name", "pid", *required],
        "additionalProperties": False,
    }


EVENTS = {
    "X": phase("X", ["ts", "dur", "tid"], dur=WHEN),
    "C": phase(
        "C", ["ts", "args"], args={"type": "object", "minProperties": 1, "additionalProperties": {"type": "number"}}
    ),
    "i": phase("i", ["ts", "tid", "s"], s={"enum": ["g", "p", "t"]}),
    "M": phase(
        "M",
        ["args"],
        name={"enum": ["process_name", "thread_name"]},
        args={"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]},
    ),
}
TRACE = {
    "type": "object",
    "properties": {
        "displayTimeUnit": {"enum": ["ms", "ns"]},
        "otherData": {"type": "object"},
        "traceEvents": {"type": "array", "items": {"type": "object", "properties": {"ph": {"enum": list(EVENTS)}}}},
    },
    "required": ["traceEvents"],
    "additionalProperties": False,
}


def traced(script: Script) -> dict[str, Any]:
    """The trace of a recording, checked against the format."""
    with script.open() as recording:
        text = "".join(perfetto.pieces(recording.series(), history.read(recording)))
    found: dict[str, Any] = json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    jsonschema.validate(found, TRACE)
    for event in found["traceEvents"]:
        jsonschema.validate(event, EVENTS[event["ph"]])
    nests(found["traceEvents"])
    return found


def nests(events: list[dict[str, Any]]) -> None:
    """Slices of one thread lie beside each other or inside; each thread and process has its name."""
    named = {(e["name"], e["pid"], e["tid"] if e["name"] == "thread_name" else 0) for e in events if e["ph"] == "M"}
    threads: dict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)
    for event in events:
        assert ("process_name", event["pid"], 0) in named
        if event["ph"] == "X":
            assert ("thread_name", event["pid"], event["tid"]) in named
            threads[event["pid"], event["tid"]].append((event["ts"], event["ts"] + event["dur"]))
    for slices in threads.values():
        open_: list[int] = []
        for start, end in sorted(slices, key=lambda s: (s[0], -s[1])):
            while open_ and open_[-1] <= start:
                open_.pop()
            assert not open_ or end <= open_[-1]
            open_.append(end)


def rich(directory: Path) -> Script:
    """A bit of everything."""
    script = Script(directory, name="rich")
    script.state(0, gpu(0), gpu(1, simulated=True), mark(1, 1, 'a "mark" </script>'), everything=True)
    schema = script.schema(0, [G0, G1], ["gpu_util_percent", "power_mw", "memory_used_bytes"])
    for second in range(20):
        row = {"gpu_util_percent": 10.0 if second < 10 else 90.0, "memory_used_bytes": 2**40}
        script.tick(second, schema, [row if second not in (5, 6) else {}, {"power_mw": 70_000 + second}])
    script.state(1, service("s", "loading", G0), lane(G0, 1, 2))
    script.state(3, service("s", "ready", G0))
    script.state(4, task(1, "running", device=G0, ready=1, started=4), task(2, "running", device=G0, started=4))
    script.state(7, task(1, "done", device=G0, ready=1, started=4, finished=7, tokens=9))
    script.state(2, mark(2, 2, "epoch 1", "begin"))
    script.state(6, mark(3, 6, "epoch 1", "end", cause="2"), mark(4, 6, "epoch 2", "begin"))
    script.state(9, task(3, "running", device=G0, started=9))
    return script


def of(trace: dict[str, Any], **wanted: object) -> list[dict[str, Any]]:
    return [e for e in trace["traceEvents"] if all(e.get(key) == value for key, value in wanted.items())]


def test_a_trace_is_as_the_format_wants_it_and_holds_the_recording(tmp_path: Path) -> None:
    found = traced(rich(tmp_path))
    assert found["otherData"]["recording"] == "rich" and found["otherData"]["started_at"].startswith("2026-11-24T12:00")
    util = [(e["ts"], e["args"]["gpu_util_percent"]) for e in of(found, ph="C", name="n1:gpu0 gpu_util_percent")]
    assert util == [(0, 10.0), (10_000_000, 90.0), (19_000_000, 90.0)]  # only changes, and the end
    memory = of(found, ph="C", name="n1:gpu0 memory_used_bytes")
    assert {e["args"]["memory_used_bytes"] for e in memory} == {2**40}
    assert len(of(found, ph="C", name="n1:gpu1 SIM power_mw")) == 20
    assert not of(found, ph="C", name="n1:gpu0 power_mw")  # NA throughout: no counter, and no 0
    (marked,) = of(found, ph="i")
    assert (marked["name"], marked["ts"], marked["s"]) == ('a "mark" </script>', 1_000_000, "g")
    loads = of(found, ph="X", name="s loading")
    assert [(e["ts"], e["dur"], e["args"]["model"]) for e in loads] == [(1_000_000, 2_000_000, "m")]
    (ran,) = of(found, ph="X", name="task 1")
    assert (ran["ts"], ran["dur"], ran["args"]["wait_s"], ran["args"]["tokens"]) == (4_000_000, 3_000_000, 3.0, 9)
    assert of(found, ph="X", name="task 2")[0]["tid"] != ran["tid"]  # at the same time: a row of its own
    assert of(found, ph="X", name="task 3")[0]["args"]["went_on"] is True
    epochs = [(e["name"], e["ts"], e["dur"], "went_on" in e["args"]) for e in of(found, ph="X", cat="mark")]
    assert epochs == [("epoch 1", 2_000_000, 4_000_000, False), ("epoch 2", 6_000_000, 13_000_000, True)]


def test_a_counter_that_is_not_known_says_so_beside_it(tmp_path: Path) -> None:
    found = traced(rich(tmp_path))
    gaps = of(found, ph="X", name="gpu_util_percent NA")
    assert [(e["ts"], e["dur"]) for e in gaps] == [(5_000_000, 2_000_000)]
    assert not of(found, ph="X", name="power_mw NA")


def test_a_recording_without_samples_is_a_trace_too(tmp_path: Path) -> None:
    script = Script(tmp_path, name="empty")
    script.state(0, everything=True)
    assert [e["ph"] for e in traced(script)["traceEvents"]] == ["M"]


SPANS = st.lists(st.tuples(st.integers(0, 1000), st.integers(0, 300)), max_size=40)


@given(SPANS)
def test_whatever_runs_at_once_nests_and_nothing_is_lost(spans: list[tuple[int, int]]) -> None:
    made = [Span(SpanKind.TASK, str(i), "done", at, at + long, ("d",), "n") for i, (at, long) in enumerate(spans)]
    past = History("x", 0, 2000, 1.0, {}, tuple(made), {}, (), (), (), ())
    found: list[dict[str, Any]] = [{"ph": "M", "name": "process_name", "pid": 1, "tid": 0}]
    found += perfetto._row(1, "d tasks", made, past, perfetto._Rows())
    nests(found)
    assert sorted(e["name"] for e in found if e["ph"] == "X") == sorted(f"task {s.name}" for s in made)
