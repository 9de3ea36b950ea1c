"""Alert rules: what config.yaml may say, and what rules on metrics make of packed samples."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gswarm import config
from gswarm.alert.rules import DEFAULTS, Rule, Selector, When, check_metrics, in_force
from gswarm.alert.thresholds import Thresholds
from gswarm.alert.turns import Change, Turn, words
from gswarm.errors import InvalidError
from gswarm.profiler.metrics import METRICS, Absent, Reading
from gswarm.profiler.packing import Packer
from gswarm.v1 import cluster_pb2, profiler_pb2

DEVICES = ("GPU-a", "GPU-b")
GIB = 2**30


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """config.yaml of a directory that the settings are read from."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "none"))
    monkeypatch.delenv("GSWARM_CONFIG", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "config.yaml"


def test_a_rule_says_all_it_can(written: Path) -> None:
    written.write_text("""
alerts:
  - name: hot
    metric: temperature_c
    above: 85
    clear: 80
    for: 2m
    on: {node: [n1, "rack-*"], model: "NVIDIA H100*"}
    severity: error
  - {name: slow, metric: gpu_util_percent, below: 5, on: "gpu0"}
  - {name: ecc, metric: energy_mj, rises: true, hold: 1h}
  - {name: oops, event: task.failed}
  - {name: gone, state: node.unreachable, for: 90, on: {node: n1}}
  - {name: device-lost, enabled: false}
""")
    hot, slow, ecc, oops, gone, off = config.load().alerts
    assert (hot.when, hot.of, hot.limit, hot.clear, hot.for_s) == (When.ABOVE, "temperature_c", 85, 80, 120)
    assert hot.on == Selector(node=("n1", "rack-*"), model=("NVIDIA H100*",)) and hot.severity.value == "error"
    assert hot.origins["metric"] == "config.yaml:4"
    assert (slow.when, slow.limit, slow.clear) == (When.BELOW, 5, 5.25), "five percent of hysteresis by default"
    assert slow.on == Selector(device=("gpu0",))
    assert (ecc.when, ecc.hold_s, oops.of, gone.for_s) == (When.RISES, 3600, "task.failed", 90)
    assert not off.is_on and off.of == "device.lost"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("alerts: 3", r"config.yaml:1: alerts is a list"),
        ("alerts:\n  - 3", r"config.yaml:2: an alert is written as keys and values"),
        ("alerts:\n  - {metric: power_mw, above: 1}", r"config.yaml:2: an alert needs a name"),
        ("alerts:\n  - name: a/b\n    metric: power_mw\n    above: 1", r"config.yaml:2: 'a/b' cannot be the name"),
        ("alerts:\n  - name: a\n    metric: power_mw\n    abvoe: 1", r"config.yaml:4: unknown key 'abvoe'.*above"),
        ("alerts:\n  - name: a\n    metric: power_mw\n    above: hot", r"config.yaml:4: above is 'hot'"),
        ("alerts:\n  - name: a\n    metric: power_mw\n    above: .nan", r"config.yaml:4: above is nan"),
        ("alerts:\n  - name: a\n    metric: power_mw\n    above: true", r"config.yaml:4: above is True"),
        ("alerts:\n  - name: a\n    metric: power_mw", r"config.yaml:3: metric needs one of above, below and rises"),
        ("alerts:\n  - {name: a, metric: power_mw, above: 1, below: 0}", r"needs one of above, below"),
        ("alerts:\n  - name: a\n    above: 1", r"config.yaml:2: one of metric, event and state"),
        ("alerts:\n  - {name: a, metric: power_mw, above: 1, state: device.lost}", r"metric and state is given"),
        (
            "alerts:\n  - name: a\n    metric: power_mw\n    above: 5\n    clear: 6",
            r"config.yaml:5: clear is 6, on the wrong",
        ),
        ("alerts:\n  - name: a\n    metric: power_mw\n    above: 5\n    for: soon", r"config.yaml:5: for is 'soon'"),
        ("alerts:\n  - name: a\n    metric: power_mw\n    above: 5\n    for: 2d", r"config.yaml:5: for is '2d'"),
        (
            "alerts:\n  - name: a\n    metric: power_mw\n    above: 5\n    on: {gpu: 1}",
            r"config.yaml:5: on has an unknown",
        ),
        ("alerts:\n  - name: a\n    metric: power_mw\n    above: 5\n    on: {node: []}", r"config.yaml:5: on has \[\]"),
        ("alerts:\n  - name: a\n    state: device.list", r"config.yaml:3: state is 'device.list'.*device.lost"),
        ("alerts:\n  - name: a\n    state: node.stale\n    on: gpu0", r"config.yaml:4: on names devices"),
        ("alerts:\n  - name: a\n    event: alert.firing", r"config.yaml:3: event is 'alert.firing'"),
        ("alerts:\n  - name: a\n    event: x\n    clear: 3", r"config.yaml:4: clear says nothing"),
        ("alerts:\n  - name: a\n    event: x\n    severity: loud", r"config.yaml:4: severity is 'loud'.*error"),
        ("alerts:\n  - name: device-lots\n    enabled: false", r"config.yaml:2: name is 'device-lots'.*device-lost"),
        ("alerts:\n  - {name: a, event: x}\n  - {name: a, event: y}", r"config.yaml:3: there are two alerts named a"),
        ("alerting:\n  timeout_s: 0", r"alerting.timeout_s is 0"),
    ],
)
def test_what_cannot_be_is_refused_with_its_place(written: Path, text: str, message: str) -> None:
    written.write_text(text + "\n")
    with pytest.raises(InvalidError, match=message):
        config.load()


def test_an_unknown_metric_is_refused_with_its_line_and_the_near_ones(written: Path) -> None:
    written.write_text("alerts:\n  - name: a\n    metric: temprature_c\n    above: 1\n")
    rules = config.load().alerts
    with pytest.raises(InvalidError, match=r"config.yaml:3: .*'temprature_c'.*temperature_c"):
        check_metrics(rules, {"temperature_c": False, "power_mw": False})
    with pytest.raises(InvalidError, match="no counter"):
        check_metrics([Rule("a", When.RISES, "power_mw")], {"power_mw": False})


def test_default_rules_are_there_until_replaced_or_switched_off() -> None:
    mine = Rule("node-stale", When.STATE, "node.stale", for_s=300)
    assert in_force((), defaults=True) == DEFAULTS
    assert in_force((), defaults=False) == ()
    assert {rule.name: rule for rule in in_force((mine,), defaults=True)}["node-stale"] is mine
    off = Rule("xid", When.EVENT, "device.xid", is_on=False)
    assert "xid" not in {rule.name for rule in in_force((off,), defaults=True)}


@pytest.mark.parametrize(
    ("on", "takes"),
    [
        (Selector(), True),
        (Selector(device=("n1:gpu0",)), True),
        (Selector(device=("gpu0",)), True),
        (Selector(device=("GPU-a",)), True),
        (Selector(device=("gpu1", "n1:*")), True),
        (Selector(device=("gpu1",)), False),
        (Selector(node=("n*",), model=("*H100*",)), True),
        (Selector(node=("n*",), model=("*A100*",)), False),
        (Selector(node=("m*",)), False),
    ],
)
def test_which_devices_a_rule_is_for(on: Selector, takes: bool) -> None:
    assert on.takes(alias="n1:gpu0", device_id="GPU-a", node="n1", model="NVIDIA H100 80GB HBM3") is takes


class Stream:
    """Ticks of node n1 with two devices, in sample time; keeps what the rules made of them."""

    def __init__(self, *rules: Rule) -> None:
        known = {
            device: cluster_pb2.Device(id=device, alias=f"n1:gpu{i}", node="n1", name="NVIDIA H100")
            for i, device in enumerate(DEVICES)
        }
        self.thresholds = Thresholds(rules, known.get, lambda node, schema_id: self.packer.schema)
        self.packer = Packer("n1", DEVICES)
        self.packer.admit([dict.fromkeys((m.name for m in METRICS), 0)])
        self.seq = 0

    def tick(self, at_s: float, *readings: Reading) -> list[Change]:
        self.seq += 1
        rows = [*readings, *({} for _ in range(len(DEVICES) - len(readings)))]
        tick = self.packer.pack(rows, seq=self.seq, time_unix_us=round(at_s * 1e6))
        tick.node = "n1"
        return self.thresholds.look(tick)

    def turns(self, at_s: float, *readings: Reading) -> list[tuple[str, str, str]]:
        return [(c.rule.name, c.subject, c.turn.value) for c in self.tick(at_s, *readings)]


def hot(value: float) -> Reading:
    return {"temperature_c": value}


def test_it_fires_after_for_by_sample_time_and_clears_below_the_level() -> None:
    stream = Stream(Rule("hot", When.ABOVE, "temperature_c", 85, 80, for_s=10))
    assert stream.turns(100, hot(90)) == [] and stream.turns(109.9, hot(90)) == []
    (fired,) = stream.tick(110, hot(91))
    assert (fired.turn, fired.subject, fired.value) == (Turn.FIRED, "GPU-a", 91)
    assert fired.since is not None and (fired.since.timestamp(), fired.at.timestamp()) == (100, 110)
    assert words(fired, "n1:gpu0") == "n1:gpu0: temperature_c 91, above 85 for 10s"
    assert stream.turns(111, hot(84)) == [], "below the limit is not below the level to clear at"
    assert stream.turns(112, hot(95)) == [], "it fires already"
    assert stream.turns(113, hot(80)) == [("hot", "GPU-a", "resolved")]
    assert stream.turns(114, hot(80)) == []


def test_a_dip_or_a_gap_starts_the_wait_again() -> None:
    stream = Stream(Rule("hot", When.ABOVE, "temperature_c", 85, 80, for_s=10))
    stream.tick(0, hot(90))
    stream.tick(9, hot(85))
    assert stream.turns(10, hot(90)) == [] and stream.turns(19, hot(90)) == []
    assert stream.turns(400, hot(90)) == [], "nothing is known of the time between"
    assert stream.turns(410, hot(90)) == [("hot", "GPU-a", "firing")]


def test_a_clock_that_is_set_back_does_not_fire_early_or_never() -> None:
    stream = Stream(Rule("hot", When.ABOVE, "temperature_c", 85, 80, for_s=10))
    stream.tick(1000, hot(90))
    assert stream.turns(500, hot(90)) == [] and stream.turns(509, hot(90)) == []
    assert stream.turns(510, hot(90)) == [("hot", "GPU-a", "firing")]


def test_below_has_the_same_manners() -> None:
    stream = Stream(Rule("cold", When.BELOW, "power_mw", 1000, 2000))
    assert stream.turns(0, {"power_mw": 1000}) == []
    assert stream.turns(1, {"power_mw": 999}) == [("cold", "GPU-a", "firing")]
    assert stream.turns(2, {"power_mw": 1999}) == []
    assert stream.turns(3, {"power_mw": 2000}) == [("cold", "GPU-a", "resolved")]


@pytest.mark.parametrize("metric", ["temperature_c", "power_mw", "memory_used_bytes"])
@pytest.mark.parametrize("when", [When.ABOVE, When.BELOW])
def test_what_is_absent_neither_fires_nor_resolves(metric: str, when: When) -> None:
    high, low = 70 * GIB if metric.endswith("bytes") else 90, 1
    limit = 10 * GIB if metric.endswith("bytes") else 50
    stream = Stream(Rule("r", when, metric, limit, limit))
    firing, well = (high, low) if when is When.ABOVE else (low, high)
    nothing: Reading = {metric: Absent("timed out")}
    assert stream.turns(0, nothing, nothing) == []
    assert stream.turns(1, {metric: firing}, nothing) == [("r", "GPU-a", "firing")]
    assert stream.turns(2, nothing, nothing) == []
    assert stream.turns(3, {metric: well}, nothing) == [("r", "GPU-a", "resolved")]


def test_absence_ends_a_wait() -> None:
    stream = Stream(Rule("hot", When.ABOVE, "temperature_c", 85, 80, for_s=2))
    stream.tick(0, hot(90))
    stream.tick(1, {"temperature_c": Absent("timed out")})
    assert stream.turns(2, hot(90)) == []


def test_several_rules_on_one_metric_and_only_the_devices_meant() -> None:
    stream = Stream(
        Rule("warm", When.ABOVE, "temperature_c", 70, 65),
        Rule("hot", When.ABOVE, "temperature_c", 85, 80, on=Selector(device=("gpu1",))),
    )
    assert stream.turns(0, hot(90), hot(75)) == [("warm", "GPU-a", "firing"), ("warm", "GPU-b", "firing")]
    assert stream.turns(1, hot(90), hot(90)) == [("hot", "GPU-b", "firing")]


def test_a_counter_that_rises_fires_counts_and_calms_down() -> None:
    stream = Stream(Rule("up", When.RISES, "energy_mj", hold_s=60))
    assert stream.turns(0, {"energy_mj": 7}) == [("up", "GPU-a", "counted")], "where it stood before is no rise"
    assert stream.turns(1, {"energy_mj": 7}) == []
    assert stream.turns(2, {"energy_mj": 8}) == [("up", "GPU-a", "firing")]
    assert stream.turns(3, {"energy_mj": Absent("lost")}) == []
    assert stream.turns(4, {"energy_mj": 9}) == [("up", "GPU-a", "again")]
    assert stream.turns(63, {"energy_mj": 9}) == []
    assert stream.turns(64, {"energy_mj": 9}) == [("up", "GPU-a", "resolved")]
    assert stream.turns(65, {"energy_mj": 0}) == [("up", "GPU-a", "counted")], "a reset is no rise"
    assert stream.turns(66, {"energy_mj": 1}) == [("up", "GPU-a", "firing")]


def test_what_rises_may_be_absent_in_any_type() -> None:
    stream = Stream(*(Rule(name, When.RISES, name) for name in ("temperature_c", "power_mw", "energy_mj")))
    assert stream.turns(0) == []
    assert {turn for _, _, turn in stream.turns(1, {"temperature_c": 1, "power_mw": 1, "energy_mj": 1})} == {"counted"}
    assert stream.turns(2) == []
    assert {turn for _, _, turn in stream.turns(3, {"temperature_c": 2, "power_mw": 2, "energy_mj": 2})} == {"firing"}


def test_ticks_that_fit_no_layout_are_left_alone() -> None:
    stream = Stream(Rule("hot", When.ABOVE, "temperature_c", 85, 80))
    torn = profiler_pb2.SampleTick(node="n1", seq=1, time_unix_us=2**62, schema_id=1, f32=b"\x00" * 7)
    assert stream.thresholds.look(torn) == []
    (fired,) = stream.tick(9e12, hot(90))
    assert fired.at.year <= 2100, "a peer's clock may say anything"


@given(st.lists(st.one_of(st.none(), st.integers(0, 20)), max_size=60), st.integers(0, 4))
def test_it_does_what_a_plain_reading_of_the_words_says(values: list[int | None], for_s: int) -> None:
    """Against a slow model: a rule above 10 that clears at 6."""
    stream = Stream(Rule("r", When.ABOVE, "temperature_c", 10, 6, for_s=for_s))
    firing, since, told = False, math.inf, []
    for second, value in enumerate(values):
        if firing:
            if value is not None and value <= 6:
                firing = False
                told.append((second, "resolved"))
            since = math.inf
        elif value is not None and value > 10:
            since = min(since, second)
            if second - since >= for_s:
                firing, since = True, math.inf
                told.append((second, "firing"))
        else:
            since = math.inf
    found = []
    for second, value in enumerate(values):
        reading: Reading = {"temperature_c": Absent("x") if value is None else value}
        found += [(second, turn) for _, _, turn in stream.turns(second, reading)]
    assert found == told
