"""The pace of adaptive sampling on made sequences: bounds, speeding up at once, slowing down by and by."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gswarm.profiler.adaptive import GIB, WATCHED, Pace, Schedule
from gswarm.profiler.metrics import UNSUPPORTED, Absent, Reading
from gswarm.profiler.series import Series


def reading(util: float = 0.0, power_mw: int = 70_000, memory: float = 0.0) -> Reading:
    return {"gpu_util_percent": util, "power_mw": power_mw, "memory_used_bytes": int(memory * GIB)}


def paces(pace: Pace, readings: list[Reading | Absent]) -> list[int]:
    """The steps after each sample of one device."""
    found = []
    for told in readings:
        pace.observe([told])
        found.append(pace.steps)
    return found


def still(pace: Pace, told: Reading | Absent) -> Pace:
    """A pace that has come to rest at a reading."""
    paces(pace, [told] * 40)
    assert pace.steps == pace.most
    return pace


def test_from_the_first_sample_on_it_slows_down_by_half() -> None:
    assert paces(Pace(0.2, 10), [reading()] * 14) == [1, 2, 3, 4, 6, 9, 13, 19, 28, 42, 50, 50, 50, 50]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (reading(), reading(util=6)),
        (reading(util=80), reading(util=60)),
        (reading(), reading(power_mw=81_000)),
        (reading(power_mw=600_000), reading(power_mw=530_000)),
        (reading(), reading(memory=0.3)),
        (reading(memory=60), reading(memory=56)),
        (reading(), Absent("lost")),
        (Absent("lost"), reading()),
        (reading(), {**reading(), "power_mw": UNSUPPORTED}),
    ],
)
def test_one_change_speeds_it_up_at_once(before: Reading, after: Reading) -> None:
    pace = still(Pace(0.2, 10), before)
    assert paces(pace, [after, after, after]) == [1, 2, 3]


@pytest.mark.parametrize(
    "noise",
    [
        [reading(util=0), reading(util=4)],
        [reading(util=80), reading(util=90)],
        [reading(power_mw=600_000), reading(power_mw=630_000)],
        [reading(memory=60), reading(memory=61)],
        [Absent("lost"), Absent("lost for longer")],
    ],
)
def test_what_is_small_beside_the_level_is_no_change(noise: list[Reading | Absent]) -> None:
    pace = still(Pace(0.2, 10), noise[0])
    assert set(paces(pace, noise * 10)) == {50}


def test_what_would_not_wake_it_keeps_it_awake() -> None:
    swing: list[Reading | Absent] = [reading(util=50), reading(util=57)]
    assert set(paces(still(Pace(0.2, 10), reading(util=50)), swing * 10)) == {50}
    awake = Pace(0.2, 10)
    paces(awake, [reading(util=0), reading(util=50)])
    assert set(paces(awake, list(reversed(swing)) * 10)) == {1}


def test_a_slow_drift_is_seen_once_it_has_led_somewhere() -> None:
    pace = still(Pace(1, 60), reading(power_mw=100_000))
    drift: list[Reading | Absent] = [reading(power_mw=100_000 + 4_000 * n) for n in range(40)]
    assert 1 in paces(pace, drift)


def test_each_device_has_levels_of_its_own() -> None:
    pace = Pace(0.2, 10)
    for _ in range(40):
        pace.observe([reading(util=100), reading(util=0)])
    assert pace.steps == 50
    pace.observe([reading(util=100), reading(util=30)])
    assert pace.steps == 1


VALUES = st.one_of(
    st.builds(Absent, st.just("lost")),
    st.fixed_dictionaries(
        {},
        optional={
            "gpu_util_percent": st.floats(0, 100),
            "power_mw": st.integers(0, 700_000),
            "memory_used_bytes": st.integers(0, 80 * GIB),
        },
    ),
)


@given(st.floats(0.1, 60), st.floats(1.001, 600), st.lists(st.tuples(VALUES, VALUES), max_size=60))
def test_it_stays_within_bounds_and_slows_down_only_gradually(
    fastest: float, ratio: float, samples: list[tuple[Reading | Absent, Reading | Absent]]
) -> None:
    slowest = fastest * ratio
    pace = Pace(fastest, slowest)
    before, known = pace.steps, None
    for sample in samples:
        pace.observe(sample)
        assert fastest <= pace.steps * fastest <= slowest * (1 + 1e-6)
        assert pace.steps == 1 or pace.steps == min(pace.most, before + max(1, before // 2))
        given_now = {
            (row, name)
            for row, told in enumerate(sample)
            if not isinstance(told, Absent)
            for name in WATCHED & told.keys()
        }
        assert known in (None, given_now) or pace.steps == 1, "what comes or goes is a change"
        before, known = pace.steps, given_now


@given(
    st.sampled_from([0.1, 0.2, 0.5, 1.0, 3.0]),
    st.sampled_from([1.5, 4, 10, 60]),
    st.sampled_from([0.0, 0.3, 1.0, 5.0]),
    st.floats(0, 0.09),
    st.lists(st.booleans(), min_size=1, max_size=80),
    st.floats(0, 0.02),
)
def test_samples_are_never_closer_or_further_than_asked(
    fastest: float, ratio: float, regular: float, phase: float, moves: list[bool], late: float
) -> None:
    """Also when timers fire late, and both kinds of session are there."""
    schedule = Schedule(regular_s=regular, phase_s=phase)
    schedule.adapt(fastest, fastest * ratio)
    pace, now, times = schedule.pace, 1_764_000_000.123, list[float]()
    assert pace is not None
    for number, moved in enumerate(moves):
        now = schedule.due(now)
        times.append(now)
        now += late
        schedule.sampled_at = now
        pace.observe([reading(util=100 * (number % 2) if moved else 0)])
    longest = min(fastest * ratio, regular or fastest * ratio)
    gaps = [after - before for before, after in itertools.pairwise(times)]
    assert all(gap <= longest + 1e-3 for gap in gaps)
    if not regular:
        assert all(gap >= fastest - 1e-3 for gap in gaps)
        steps = [gap / fastest for gap in gaps]
        assert all(abs(step - round(step)) < 1e-2 for step in steps), "all on one grid, that many nodes share"
    else:
        slots = {round((at - phase) / regular) for at in times if abs((at - phase) / regular % 1) < 1e-3}
        if slots:
            assert slots == set(range(min(slots), max(slots) + 1)), "a regular session misses none of its times"


@pytest.mark.parametrize("set_to", [-86_400, 86_400])
def test_a_clock_that_is_set_does_not_stop_it(set_to: float) -> None:
    schedule = Schedule(regular_s=0, sampled_at=1_764_000_000)
    schedule.adapt(0.2, 10)
    now = 1_764_000_000 + set_to
    assert now < schedule.due(now) <= now + 0.21


def test_a_timer_that_fires_early_makes_no_second_sample() -> None:
    schedule = Schedule(regular_s=1)
    schedule.adapt(0.2, 10)
    due = schedule.due(1_764_000_000.05)
    schedule.sampled_at = due - 0.001
    assert schedule.due(due - 0.001) == pytest.approx(due + 0.2)


def test_bounds_that_stay_keep_what_is_known() -> None:
    schedule = Schedule()
    schedule.adapt(0.2, 10)
    pace = schedule.pace
    schedule.adapt(0.2, 10)
    assert schedule.pace is pace
    schedule.adapt(0.1, 10)
    assert schedule.pace is not pace
    schedule.adapt(0, 0)
    assert schedule.pace is None and schedule.due(10.5) == 11


def test_a_pause_between_two_bursts_is_no_gap_but_a_cut_is() -> None:
    at_s = np.array([0, 0.2, 0.4, 9.4, 9.6, 9.8, 109.8, 110.0])
    one = Series("n1", "GPU-1", (at_s * 1e6).astype(np.int64), {})
    regular, adaptive = one.holds_s(0.2), one.holds_s(0.2, 10.0)
    assert regular[2] == pytest.approx(0.6)
    assert adaptive[2] == pytest.approx(9.0)
    assert adaptive[5] == pytest.approx(15.0), "a cut of 100 s stands for no more than a late sample"
