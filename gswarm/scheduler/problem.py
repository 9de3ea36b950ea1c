"""A scheduling problem as immutable data: models, GPUs, requests and their tasks, in columns.

A task is one node of one request. Tasks are numbered 0..n-1, those of a request one after another; columns are numpy
arrays over these numbers, read-only. Times are seconds since t = 0, memory is in GB. What is optional is for the live
queue: the default is the simple model, identical GPUs that start empty and hold one model each.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
BYTES_PER_GB = 1e9
UNLOAD_GB_PER_S = 16.0
"""How fast a GPU gives up the memory of what it holds."""
MOST = 1e9
"""Seconds or GB that a file may say of one thing: beyond a few times that, floats are not exact to a microsecond."""
SLACK_GB = 1e-6
"""What sums of memory may be off by."""


class ProblemError(ValueError):
    """A problem that cannot be: says what and where."""


@dataclass(frozen=True, slots=True)
class Model:
    """A model as scheduling sees it. `sleep_s` and `wake_s` are None where it cannot be put into host memory."""

    id: str
    width: int = 1
    """GPUs that one placement takes."""
    memory_gb: float = 0.0
    """Memory it takes on each GPU of a placement."""
    load_s: float = 0.0
    name: str = ""
    sleep_s: float | None = None
    wake_s: float | None = None

    @property
    def can_sleep(self) -> bool:
        """Whether it can be put into host memory and brought back."""
        return self.sleep_s is not None and self.wake_s is not None


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU. `memory_gb` None: room for any one model. A task takes its seconds divided by the slowest GPU's speed."""

    memory_gb: float | None = None
    speed: float = 1.0
    free_at: float = 0.0


@dataclass(frozen=True, slots=True)
class Placement:
    """A model loaded on a set of GPUs (numbers, sorted)."""

    model: int
    gpus: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Running:
    """A task that runs already: it keeps its GPUs until `end`, and its placement is there."""

    task: int
    gpus: tuple[int, ...]
    end: float


@dataclass(frozen=True, slots=True)
class Problem:
    """See the module's docstring. Made by `build`, which checks it."""

    models: tuple[Model, ...]
    gpus: tuple[Gpu, ...]
    requests: tuple[str, ...]
    arrivals: Floats
    """Per request."""
    first: Ints
    """Tasks of request r are first[r] .. first[r + 1] - 1."""
    nodes: tuple[str, ...]
    """Node id per task."""
    model: Ints
    """Number of its model, per task."""
    seconds: Floats
    """Execution time per task, at speed 1."""
    pred_first: Ints
    preds: Ints
    """Predecessors of task t are preds[pred_first[t] : pred_first[t + 1]]."""
    succ_first: Ints
    succs: Ints
    release: Floats
    """Per task: its request's arrival, or later."""
    priority: Ints | None = None
    """Per task; more matters more. None: all the same."""
    deadline: Floats | None = None
    """Per task; infinite where there is none."""
    placements: tuple[Placement, ...] = ()
    """What is loaded at t = 0."""
    running: tuple[Running, ...] = ()
    shared: bool = False
    """Several models on one GPU while its memory lasts."""
    host_memory_gb: float = 0.0
    """For models that sleep; 0: none do."""
    warnings: tuple[str, ...] = field(default=(), compare=False)

    @property
    def tasks(self) -> int:
        """How many there are."""
        return len(self.nodes)

    def request_of(self, task: int) -> int:
        """The number of a task's request."""
        return int(np.searchsorted(self.first, task, side="right")) - 1

    def request_column(self) -> Ints:
        """The number of its request, per task."""
        return np.repeat(np.arange(len(self.requests)), np.diff(self.first))

    def name_of(self, task: int) -> str:
        """ "request/node"."""
        return f"{self.requests[self.request_of(task)]}/{self.nodes[task]}"

    def task_of(self, name: str) -> int:
        """The number of "request/node". Raises ProblemError."""
        if "/" not in name:
            raise ProblemError(f"there is no task {name!r}; a task is named REQUEST/NODE")
        wrong, numbers = "", _numbers(self.requests)
        # Ids may have slashes in them: the longest request that has such a node is meant.
        for at in [n for n in range(len(name) - 1, -1, -1) if name[n] == "/"]:
            request, node = name[:at], name[at + 1 :]
            if (number := numbers.get(request)) is None:
                continue
            low, high = int(self.first[number]), int(self.first[number + 1])
            if node in self.nodes[low:high]:
                return self.nodes.index(node, low, high)
            wrong = wrong or f"request {request} has no node {node!r}: {', '.join(self.nodes[low:high])}"
        request = name.rpartition("/")[0]
        raise ProblemError(wrong or f"there is no request {request!r}; a task is named REQUEST/NODE")

    def preds_of(self, task: int) -> Ints:
        """The tasks that must end before this one starts."""
        return self.preds[self.pred_first[task] : self.pred_first[task + 1]]

    def offline(self) -> Problem:
        """The same, with everything submitted at t = 0."""
        return replace(self, arrivals=_column(np.zeros(len(self.requests))), release=_column(np.zeros(self.tasks)))


@functools.lru_cache(maxsize=4)
def _numbers(names: tuple[str, ...]) -> dict[str, int]:
    return {name: number for number, name in enumerate(names)}


def _column(values: Any, dtype: Any = np.float64) -> Any:
    column = np.ascontiguousarray(values, dtype=dtype)
    column.flags.writeable = False
    return column


@dataclass(frozen=True, slots=True)
class Node:
    """A node of a workflow: its model's number, and the positions of the nodes it waits for."""

    id: str
    model: int
    needs: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Request:
    """A request to `build` from: the nodes of its workflow, and how long each takes."""

    id: str
    arrival: float
    nodes: Sequence[Node]
    seconds: Sequence[float]
    release: Sequence[float] = ()
    priority: int = 0
    deadline: float = float("inf")


def build(models: Sequence[Model], gpus: int | Sequence[Gpu], requests: Iterable[Request], **optional: Any) -> Problem:
    """A problem from requests in order of arrival. `optional` are the remaining fields of `Problem`.

    Raises ProblemError for a width that no set of GPUs has, for a number that is negative or not finite, for a doubled
    request or node, for times that are not one a node, and for a cycle, which it shows.
    """
    machines = tuple(Gpu() for _ in range(gpus)) if isinstance(gpus, int) else tuple(gpus)
    if not machines:
        raise ProblemError("there are no GPUs")
    _refuse_odd(models, machines)
    names: list[str] = []
    node_ids: list[str] = []
    arrivals: list[float] = []
    seconds: list[float] = []
    release: list[float] = []
    deadline: list[float] = []
    first = [0]
    model: list[int] = []
    priority: list[int] = []
    pred_counts: list[int] = []
    preds: list[int] = []
    checked: dict[int, tuple[Sequence[Node], list[int], list[int], list[int], list[str]]] = {}
    for request in requests:
        base = len(node_ids)
        known = checked.get(id(request.nodes))
        if known is None:
            _refuse_cycle(request)
            if len({n.id for n in request.nodes}) < len(request.nodes):
                raise ProblemError(f"request {request.id} has two nodes of one name")
            counts = [len(n.needs) for n in request.nodes]
            flat = [need for n in request.nodes for need in n.needs]
            # The sequence is kept too, so that its id stays its own.
            known = (request.nodes, counts, flat, [n.model for n in request.nodes], [n.id for n in request.nodes])
            checked[id(request.nodes)] = known
        _, counts, flat, node_models, ids = known
        if len(request.seconds) != len(ids) or (request.release and len(request.release) != len(ids)):
            raise ProblemError(f"request {request.id} has {len(ids)} nodes and {len(request.seconds)} execution times")
        names.append(request.id)
        arrivals.append(request.arrival)
        node_ids += ids
        model += node_models
        seconds += request.seconds
        release += request.release or [request.arrival] * len(ids)
        priority += [request.priority] * len(ids)
        deadline += [request.deadline] * len(ids)
        pred_counts += counts
        preds += [base + need for need in flat]
        first.append(len(node_ids))
    if len(set(names)) != len(names):
        doubled = Counter(names).most_common(1)[0][0]
        raise ProblemError(f"request {doubled} is there twice")
    if arrivals and not (np.isfinite(arrivals).all() and min(arrivals) >= 0 and (np.diff(arrivals) >= 0).all()):
        raise ProblemError("requests are in order of arrival, from 0 on")
    _refuse_misfits([models[number] for number in sorted(set(model))], machines)
    times = np.asarray(seconds, dtype=np.float64)
    if len(times) and not (np.isfinite(times).all() and (times >= 0).all()):
        worst = int(np.flatnonzero(~(np.isfinite(times) & (times >= 0)))[0])
        raise ProblemError(f"node {node_ids[worst]}: execution times are finite and not negative")
    pred_first = np.concatenate(([0], np.cumsum(pred_counts, dtype=np.int64)))
    flat_preds = np.asarray(preds, dtype=np.int64)
    succ_first, succs = _successors(pred_first, flat_preds, len(node_ids))
    _refuse_crowd(models, machines, optional.get("placements", ()), optional.get("shared", False))
    if any(priority):
        optional.setdefault("priority", _column(priority, np.int64))
    if any(np.isfinite(deadline)):
        optional.setdefault("deadline", _column(deadline))
    return Problem(
        models=tuple(models),
        gpus=machines,
        requests=tuple(names),
        arrivals=_column(arrivals),
        first=_column(first, np.int64),
        nodes=tuple(node_ids),
        model=_column(model, np.int64),
        seconds=_column(times),
        pred_first=_column(pred_first, np.int64),
        preds=_column(flat_preds, np.int64),
        succ_first=_column(succ_first, np.int64),
        succs=_column(succs, np.int64),
        release=_column(np.maximum(release, np.repeat(arrivals, np.diff(first))) if release else []),
        **optional,
    )


def _refuse_odd(models: Iterable[Model], machines: Iterable[Gpu]) -> None:
    for m in models:
        if not all(np.isfinite(v) and v >= 0 for v in (m.memory_gb, m.load_s, m.sleep_s or 0, m.wake_s or 0)):
            raise ProblemError(f"model {m.id}: memory and times are finite and not negative")
        if m.width < 1:
            raise ProblemError(f"model {m.id}: {m.width} GPUs; at least 1")
    if not all(g.speed > 0 and g.free_at >= 0 for g in machines):
        raise ProblemError("a GPU's speed is above 0, and it is not free before t = 0")


def _refuse_misfits(models: Iterable[Model], machines: Sequence[Gpu]) -> None:
    """Models of tasks that no set of the GPUs takes."""
    for m in models:
        if m.width > len(machines):
            raise ProblemError(f"model {m.id} needs {m.width} GPUs and there are {len(machines)}")
        if sum(g.memory_gb is None or g.memory_gb >= m.memory_gb for g in machines) < m.width:
            raise ProblemError(f"model {m.id} needs {m.width} GPUs of {m.memory_gb:g} GB; fewer have that much memory")


def _successors(pred_first: Ints, preds: Ints, tasks: int) -> tuple[Ints, Ints]:
    waiting = np.repeat(np.arange(tasks), np.diff(pred_first))
    order = np.argsort(preds, kind="stable")
    counts = np.bincount(preds, minlength=tasks) if tasks else np.zeros(0, dtype=np.int64)
    return np.concatenate(([0], np.cumsum(counts))), waiting[order]


def _refuse_crowd(models: Sequence[Model], gpus: Sequence[Gpu], placements: Sequence[Placement], shared: bool) -> None:
    """Placements at t = 0 that cannot be there, at all or together."""
    held: dict[int, list[str]] = {}
    taken: dict[int, float] = {}
    for placed in placements:
        m = models[placed.model]
        if len(set(placed.gpus)) != m.width or len(placed.gpus) != m.width:
            raise ProblemError(f"model {m.id} takes {m.width} GPUs and is on {list(placed.gpus)} at t = 0")
        for g in placed.gpus:
            held.setdefault(g, []).append(m.id)
            taken[g] = taken.get(g, 0.0) + m.memory_gb
            room = gpus[g].memory_gb
            if len(held[g]) > 1 and (not shared or room is None):
                raise ProblemError(f"GPU {g} holds {' and '.join(held[g])} at t = 0, and there is room for one model")
            if room is not None and taken[g] > room + SLACK_GB:
                raise ProblemError(f"GPU {g} would hold {taken[g]:g} GB at t = 0 and has {room:g} GB")


def _refuse_cycle(request: Request) -> None:
    cycle = find_cycle([n.needs for n in request.nodes])
    if cycle:
        shown = " -> ".join(request.nodes[n].id for n in cycle)
        raise ProblemError(f"the nodes of request {request.id} wait for each other: {shown}")


def find_cycle(needs: Sequence[Sequence[int]]) -> list[int]:
    """Positions along a cycle, its first one repeated at the end and each the predecessor of the next; else empty."""
    state = [0] * len(needs)
    for root in range(len(needs)):
        path: list[int] = []
        stack: list[Iterator[int]] = []
        if state[root] == 0:
            state[root] = 1
            path.append(root)
            stack.append(iter(needs[root]))
        while stack:
            for need in stack[-1]:
                if state[need] == 1:
                    return [*path[path.index(need) :], need][::-1]
                if state[need] == 0:
                    state[need] = 1
                    path.append(need)
                    stack.append(iter(needs[need]))
                    break
            else:
                stack.pop()
                state[path.pop()] = 2
    return []
