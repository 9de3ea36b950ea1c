"""Who is next in a line of very many tasks, and how often each was passed over: as the plainest account of it says."""

from __future__ import annotations

import pickle
import random
from dataclasses import dataclass

import pytest

from gswarm.scheduler import strategy
from gswarm.scheduler.strategies import ranked, turns
from gswarm.scheduler.strategies.pieces import Line, Task
from gswarm.scheduler.strategies.ranked import Ranked
from gswarm.scheduler.strategies.turns import Turns


@pytest.mark.parametrize("few", [0, 3, 512])
@pytest.mark.parametrize("seed", range(20))
def test_the_least_entry_comes_first_whenever_it_came(seed: int, few: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranked, "FEW", few)
    rng = random.Random(seed)
    line: Ranked[str] = Ranked()
    plain: list[tuple[int, float, int, str]] = []
    now = 0.0
    for number in range(4000):
        now += rng.random()
        if rng.random() < (0.7 if number % 1500 < 900 else 0.3):
            # Most are the last of all, some belong far ahead, as a task does that follows one that was there long ago.
            late_s = rng.choice([0.0, 0.0, 1.0, 300.0])
            entry = (-rng.choice([2, 2, 2, 2, 3, 1]) if seed % 2 else -2, round(now - late_s), number, "task")
            line.push(entry)
            plain.append(entry)
        elif plain:
            least = min(plain)
            assert line.top() == least
            assert line.pop() == least
            plain.remove(least)
        if number == 2500 and seed % 3 == 0:
            line.clear()
            plain.clear()
        assert line.top() == min(plain, default=None)


@dataclass(eq=False)
class Job:
    number: int = -1
    passed: int = 0


@pytest.mark.parametrize("seed", range(8))
def test_passes_are_those_of_later_jobs_that_left_before(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "BLOCK", 4)
    monkeypatch.setattr(turns, "GROUP", 3)
    monkeypatch.setattr(turns, "KEPT", 12)
    rng = random.Random(seed)
    line: Turns[Job] = Turns()
    there: list[Job] = []
    for step in range(3000):
        if rng.random() < (0.7 if step % 400 < 200 else 0.3) or not there:
            job = Job()
            line.join(job)
            there.append(job)
        else:
            at = min(len(there) - 1, int(rng.expovariate(0.2)))
            left = there.pop(at)
            assert line.passed(left) == left.passed
            line.leave(left)
            for older in there[:at]:
                older.passed += 1
        assert line.oldest is (there[0] if there else None)
        assert line.most_passed == max((job.passed for job in there), default=0)


def test_a_copy_of_a_task_has_all_that_it_has() -> None:
    task = Task(strategy.Job("t", "m", strategy.Rank.HIGH, frozenset("a"), 1.0, 2.0, "r", 3.0), Line("m"), 4.0)
    task.since, task.missing, task.number, task.tail_s, task.server, task.is_root = 5.0, 6, 7, 8.0, "s", True
    copied = pickle.loads(pickle.dumps(task))
    assert copied.line.name == task.line.name
    for name in set(Task.__slots__) - {"line"}:
        assert getattr(copied, name) == getattr(task, name), name
