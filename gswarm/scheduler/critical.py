"""Longest paths through a problem's graphs: how early a task can start, and how much must follow it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from gswarm.scheduler.problem import Floats, Ints, Problem


def levels(problem: Problem) -> list[Ints]:
    """Tasks by depth: all predecessors of a task are in earlier levels. O(tasks + edges)."""
    missing = np.diff(problem.pred_first)
    frontier = np.flatnonzero(missing == 0)
    found = []
    while len(frontier):
        found.append(frontier)
        succs = _gather(problem.succ_first, problem.succs, frontier)
        if not len(succs):
            break
        np.subtract.at(missing, succs, 1)
        ready = np.unique(succs)
        frontier = ready[missing[ready] == 0]
    return found


def _gather(first: Ints, flat: Ints, rows: Ints) -> Ints:
    """The entries of several rows of a compressed sparse matrix, one row after another."""
    counts = first[rows + 1] - first[rows]
    ends = np.cumsum(counts)
    total = int(ends[-1]) if len(ends) else 0
    return flat[np.repeat(first[rows] - (ends - counts), counts) + np.arange(total)]


def _backwards(problem: Problem, order: list[Ints]) -> Iterator[tuple[Ints, Ints, Ints]]:
    """The levels that have predecessors, the last first: tasks, how many each has, and those of one task after another."""
    for tasks in reversed(order):
        counts = problem.pred_first[tasks + 1] - problem.pred_first[tasks]
        preds = _gather(problem.pred_first, problem.preds, tasks)
        if len(preds):
            yield tasks, counts, preds


def heads(problem: Problem, base: Floats, seconds: Floats, order: list[Ints]) -> Floats:
    """Earliest start of each task when it may not start before `base` and its predecessors take `seconds`."""
    head = base.astype(np.float64, copy=True)
    for tasks in order:
        counts = problem.succ_first[tasks + 1] - problem.succ_first[tasks]
        succs = _gather(problem.succ_first, problem.succs, tasks)
        if len(succs):
            np.maximum.at(head, succs, np.repeat(head[tasks] + seconds[tasks], counts))
    return head


def tails(problem: Problem, seconds: Floats, order: list[Ints], switch: Floats | None = None) -> Floats:
    """Seconds that must pass after the end of each task: the longest path of what depends on it.

    `switch` is what going on with another model takes, by that model.
    """
    tail = np.zeros(problem.tasks)
    for tasks, counts, preds in _backwards(problem, order):
        follows = np.repeat(tail[tasks] + seconds[tasks], counts)
        if switch is not None:
            model = np.repeat(problem.model[tasks], counts)
            follows += np.where(model == problem.model[preds], 0.0, switch[model])
        np.maximum.at(tail, preds, follows)
    return tail


def marks(problem: Problem, mark: Ints, order: list[Ints]) -> Ints:
    """The marks, bit by bit, of all that depends on each task."""
    found = np.zeros(problem.tasks, dtype=np.int64)
    for tasks, counts, preds in _backwards(problem, order):
        np.bitwise_or.at(found, preds, np.repeat(found[tasks] | mark[tasks], counts))
    return found


def shares(problem: Problem, seconds: Floats, order: list[Ints]) -> Floats:
    """Seconds of each task with its share of what follows: what waits for several tasks counts in equal parts for each."""
    share = seconds.astype(np.float64, copy=True)
    for tasks, counts, preds in _backwards(problem, order):
        np.add.at(share, preds, np.repeat(share[tasks] / np.maximum(counts, 1), counts))
    return share


def latest_ends(problem: Problem) -> Floats:
    """When each task has to end so that it and all that depends on it can be in time; infinite without deadlines."""
    due = np.full(problem.tasks, np.inf) if problem.deadline is None else problem.deadline.astype(np.float64, copy=True)
    for tasks, counts, preds in _backwards(problem, levels(problem)):
        np.minimum.at(due, preds, np.repeat(due[tasks] - problem.seconds[tasks], counts))
    return due
