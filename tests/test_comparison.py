"""Comparisons: a change is called one, and noise is not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gswarm.profiler import comparison, history
from gswarm.profiler.comparison import Recorded, block_length, standard_error, t_quantile
from gswarm.profiler.series import Floats
from gswarm.profiler.types import Change, Comparison, Verdict
from tests.support.scripted import Script, gpu, service, task

G0 = "GPU-n1-0"


def wander(generator: np.random.Generator, count: int, memory: float) -> Floats:
    """A stationary series in which each value keeps so much of the one before (AR(1)), of variance 1."""
    shocks = generator.normal(size=count) * np.sqrt(1 - memory**2)
    values = np.empty(count)
    values[0] = generator.normal()
    for place in range(1, count):
        values[place] = memory * values[place - 1] + shocks[place]
    return values


def recorded(directory: Path, values: Floats, *, name: str, more: Callable[[Script], None] | None = None) -> Recorded:
    """A device's utilisation as a recording, one sample a second."""
    script = Script(directory / name, name)
    script.state(0, gpu(0), everything=True)
    schema = script.schema(0, [G0], ["gpu_util_percent", "power_mw"])
    for second, value in enumerate(np.clip(values, 0, 100)):
        known = {} if np.isnan(value) else {"gpu_util_percent": value, "power_mw": int(200_000 + 1000 * value)}
        script.tick(second, schema, [known])
    if more is not None:
        more(script)
    with script.open() as found:
        return Recorded(found.series(), history.read(found))


def row(found: Comparison, metric: str, subject: str = "n1:gpu0") -> Change:
    return next(c for c in found.changes if (c.subject, c.metric) == (subject, metric))


def test_a_recording_compared_with_itself_shows_no_change(tmp_path: Path) -> None:
    values = 50 + 20 * wander(np.random.default_rng(1), 600, 0.9)
    one = recorded(tmp_path, values, name="a")
    found = comparison.compare(one, one)
    assert found.changes and {c.verdict for c in found.changes} == {Verdict.SAME}
    assert all(c.difference == 0 and c.low is not None and c.low <= 0 <= (c.high or 0) for c in found.changes)


def test_a_shift_is_found_with_its_direction_and_size(tmp_path: Path) -> None:
    generator = np.random.default_rng(2)
    a = recorded(tmp_path, 40 + 5 * wander(generator, 600, 0.9), name="a")
    b = recorded(tmp_path, 60 + 5 * wander(generator, 600, 0.9), name="b")
    found = comparison.compare(a, b)
    util = row(found, "gpu_util_percent")
    assert util.verdict is Verdict.MORE and util.low is not None and util.high is not None
    assert 0 < util.low < 20 < util.high < 30
    assert row(found, "power_mw").verdict is Verdict.MORE and row(found, "idle_percent").verdict is Verdict.SAME
    back = row(comparison.compare(b, a), "gpu_util_percent")
    assert back.verdict is Verdict.LESS and back.difference == -(util.difference or 0)
    text = "\n".join(found.lines())
    assert "changed" in text and "gpu_util_percent" in text and all(len(line) <= 80 for line in found.lines())


def test_the_same_seed_gives_the_same_intervals_and_another_nearly_so(tmp_path: Path) -> None:
    generator = np.random.default_rng(3)
    a = recorded(tmp_path, 40 + 5 * wander(generator, 300, 0.8), name="a")
    b = recorded(tmp_path, 42 + 5 * wander(generator, 300, 0.8), name="b")
    first, again, other = (comparison.compare(a, b, seed=seed) for seed in (7, 7, 8))
    assert first.changes == again.changes
    left, right = row(first, "gpu_util_percent"), row(other, "gpu_util_percent")
    assert left.low == pytest.approx(right.low, abs=1)
    values, weights = wander(np.random.default_rng(9), 300, 0.5), np.ones(300)
    drawn = {standard_error(values, weights, 5, np.random.default_rng(seed)) for seed in (7, 7, 8)}
    assert len(drawn) == 2


@pytest.mark.parametrize(("count", "memory"), [(400, 0.0), (200, 0.5), (400, 0.9), (60, 0.97), (200, 0.97)])
def test_noise_is_called_a_change_no_oftener_than_promised(count: int, memory: float) -> None:
    """Pairs of series that differ by chance alone; drawing samples one by one would call most of the last a change."""
    generator, false, tries = np.random.default_rng(4), 0, 200
    for _ in range(tries):
        first, second = ((wander(generator, count, memory), np.ones(count)) for _ in range(2))
        pair = comparison._pair("d", "device", "m", "", first, second)
        false += comparison._change(pair, 0.95, generator).verdict in (Verdict.MORE, Verdict.LESS)
    # A twentieth is promised; 17 or more of 200 would come by chance less than once in 40 such tests.
    assert false <= 16


@pytest.mark.parametrize("length", [5, 30])
def test_bursts_that_come_by_chance_are_no_change_either(length: int) -> None:
    """Busy or idle, each for a while: what devices really do, and nothing like a normal distribution."""
    generator, false, tries = np.random.default_rng(5), 0, 150

    def bursts() -> Floats:
        turns = np.cumsum(generator.random(400) < 1 / length) + generator.integers(2)
        return np.asarray((turns % 2) * 100.0, np.float64)

    for _ in range(tries):
        pair = comparison._pair("d", "device", "m", "", *((bursts(), np.ones(400)) for _ in range(2)))  # type: ignore[arg-type]
        false += comparison._change(pair, 0.95, generator).verdict in (Verdict.MORE, Verdict.LESS)
    assert false <= 13


def test_blocks_are_as_long_as_samples_hang_together() -> None:
    generator = np.random.default_rng(5)
    lengths = [block_length(wander(generator, 2000, memory)) for memory in (0.0, 0.5, 0.9, 0.97)]
    assert lengths[0] <= 5 and lengths == sorted(lengths) and lengths[2] >= 15
    assert block_length(np.full(100, 3.0)) == 1 and block_length(np.zeros(0)) == 1


def test_the_standard_error_is_that_of_a_dependent_series() -> None:
    """Of the mean of n values that keep a share r of the one before: sqrt((1 + r) / (1 - r) / n), for large n."""
    generator = np.random.default_rng(6)
    found = []
    for _ in range(20):
        values = wander(generator, 2000, 0.8)
        found.append(standard_error(values, np.ones(2000), block_length(values), generator))
    assert np.mean(found) == pytest.approx(np.sqrt(9 / 2000), rel=0.2)


@pytest.mark.parametrize(
    ("share", "freedom", "value"),
    [
        (0.975, 4, 2.776),
        (0.975, 10, 2.228),
        (0.975, 30, 2.042),
        (0.995, 10, 3.169),
        (0.9995, 10, 4.587),
        (0.9995, 3, 12.924),
        (0.9995, 2, 31.599),
        (0.975, 1, 4.303),
    ],
)
def test_quantiles_of_t_are_those_of_the_tables(share: float, freedom: float, value: float) -> None:
    assert t_quantile(share, freedom) == pytest.approx(value, rel=0.001)


@given(st.lists(st.floats(-2e19, 2e19), max_size=80), st.integers(0, 5))
def test_any_series_has_blocks_and_an_error(values: list[float], seed: int) -> None:
    array = np.array(values, np.float64)
    length = block_length(array)
    assert 1 <= length <= max(1, len(values))
    error = standard_error(array, np.ones(len(array)), length, np.random.default_rng(seed))
    assert error >= 0 and np.isfinite(error)
    told = comparison.spread(array, np.ones(len(array)), np.random.default_rng(seed))
    assert told.error >= 0 and np.isfinite(told.error) and told.pieces <= max(3.0, 1.5 * len(values))


def test_what_is_too_short_or_na_has_no_verdict(tmp_path: Path) -> None:
    long = recorded(tmp_path, np.full(200, 50.0), name="long")
    ramp = recorded(tmp_path, np.linspace(0, 100, 12), name="ramp")
    told = row(comparison.compare(long, ramp), "gpu_util_percent")
    assert (told.verdict, told.low, told.high) == (Verdict.UNKNOWN, None, None) and "too short" in told.detail
    assert told.a == 50 and told.b is not None
    climb = recorded(tmp_path, np.linspace(0, 100, 200), name="climb")  # many samples, but one story
    told = row(comparison.compare(long, climb), "gpu_util_percent")
    assert told.verdict is Verdict.UNKNOWN and "too short" in told.detail
    nothing = recorded(tmp_path, np.full(200, np.nan), name="nothing")
    gone = row(comparison.compare(long, nothing), "gpu_util_percent")
    assert (gone.verdict, gone.b, gone.detail) == (Verdict.UNKNOWN, None, "NA in the second")


def test_models_are_compared_by_their_runs_and_loads(tmp_path: Path) -> None:
    def runs(seconds: float) -> Callable[[Script], None]:
        def write(script: Script) -> None:
            generator = np.random.default_rng(int(seconds))
            script.state(1, service("s", "loading", G0))
            script.state(2, service("s", "ready", G0))
            for number in range(1, 31):
                start = 5.0 * number
                end = start + seconds + generator.uniform(0, 0.4)
                script.state(start, task(number, "running", device=G0, ready=start - 1, started=start))
                script.state(end, task(number, "done", device=G0, ready=start - 1, started=start, finished=end))

        return write

    a = recorded(tmp_path, np.full(200, 50.0), name="a", more=runs(1))
    b = recorded(tmp_path, np.full(200, 50.0), name="b", more=runs(3))
    found = comparison.compare(a, b)
    assert all(c.kind == "device" for c in comparison.compare(a, b, metrics=["power_mw"]).changes)
    ran = row(found, "run_s", "m")
    assert ran.kind == "model" and ran.verdict is Verdict.MORE and ran.difference == pytest.approx(2, abs=0.2)
    assert row(found, "wait_s", "m").verdict is Verdict.SAME
    assert row(found, "load_s", "m").verdict is Verdict.UNKNOWN  # one load says nothing of the next


def test_only_the_metrics_asked_for_are_compared(tmp_path: Path) -> None:
    one = recorded(tmp_path, np.full(100, 50.0), name="a")
    assert {c.metric for c in comparison.compare(one, one, metrics=["power_mw"]).changes} == {"power_mw"}


def test_recordings_with_nothing_in_common_say_so(tmp_path: Path) -> None:
    one = recorded(tmp_path, np.full(50, 50.0), name="a")
    script = Script(tmp_path / "b", "b")
    script.state(0, everything=True)
    with script.open() as found:
        other = Recorded(found.series(), history.read(found))
    told = comparison.compare(one, other)
    assert not told.changes and "no device and no model in common" in told.lines()[-1]


def test_devices_of_a_node_of_which_the_same_can_be_told_share_a_line(tmp_path: Path) -> None:
    def changed(subject: str, metric: str, detail: str = "") -> Change:
        verdict = Verdict.UNKNOWN if detail else Verdict.SAME
        kind = "device" if ":" in subject else "model"
        return Change(subject, kind, metric, "%", 1.0, 1.0, 0.0, None, None, verdict, detail)

    devices = [f"{node}:gpu{index} SIM" for node in ("n1", "n2") for index in range(8)]
    changes = [changed(device, metric) for device in devices for metric in ("gpu_util_percent", "power_mw")]
    changes += [changed(device, "temperature_c", "too short") for device in devices[:3]]
    changes += [changed("n1:cpu", "gpu_util_percent"), changed("chat", "run_s"), changed("code", "run_s")]
    said = Comparison("a", "b", 0.95, 1000, 0, tuple(changes)).lines()
    assert "gpu0-gpu7 of n1 SIM: gpu_util_percent, power_mw" in said
    assert "gpu0-gpu7 of n2 SIM: gpu_util_percent, power_mw" in said
    assert "gpu0-gpu2 of n1 SIM: temperature_c (too short)" in said
    assert {"n1:cpu: gpu_util_percent", "chat: run_s", "code: run_s"} <= set(said)
