"""A problem as the two files it could have come from: config and requests. What `formats.problem_of` reads is equal to it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import pairwise

from gswarm.scheduler import clusters
from gswarm.scheduler.problem import Problem

EPOCH = datetime(2026, 1, 1, tzinfo=UTC)
"""The timestamp of t = 0."""
Shape = tuple[tuple[str, ...], tuple[int, ...], tuple[tuple[int, ...], ...]]
"""Node ids, their models, and the positions that each waits for."""


def config_lines(problem: Problem) -> Iterator[str]:
    """The config file, piece by piece."""
    models = {}
    for m in problem.models:
        models[m.id] = {
            "name": m.name,
            "memory_gb": m.memory_gb,
            "gpus_required": m.width,
            "load_time_seconds": m.load_s,
        }
        if m.sleep_s is not None and m.wake_s is not None:
            models[m.id] |= {"sleep_seconds": m.sleep_s, "wake_seconds": m.wake_s}
    ids = [m.id for m in problem.models]
    flows = {}
    for number, (nodes, chosen, needs) in enumerate(dict.fromkeys(_shapes(problem))):
        flows[_flow(number)] = {
            "name": _flow(number),
            "nodes": [
                {"id": node, "model": ids[model], "inputs": [], "outputs": []}
                for node, model in zip(nodes, chosen, strict=True)
            ],
            "edges": [
                {"from": nodes[need], "to": node} for node, waits in zip(nodes, needs, strict=True) for need in waits
            ],
        }
    placed = [{"model": ids[p.model], "gpus": list(p.gpus)} for p in problem.placements]
    cluster = clusters.content(problem.gpus, problem.shared, problem.host_memory_gb, placed)
    told = {"models": models, "workflows": flows} | ({"cluster": cluster} if cluster else {})
    yield json.dumps(told, indent=1) + "\n"


def request_lines(problem: Problem) -> Iterator[str]:
    """The requests file, piece by piece; times of arrival are kept to the microsecond."""
    numbers: dict[Shape, int] = {}
    first, seconds, arrivals = problem.first.tolist(), problem.seconds.tolist(), problem.arrivals.tolist()
    yield '{"requests": ['
    comma = "\n"
    for number, shape in enumerate(_shapes(problem)):
        nodes = shape[0]
        body: dict[str, object] = {
            "request_id": problem.requests[number],
            "timestamp": (EPOCH + timedelta(microseconds=round(arrivals[number] * 1e6))).isoformat(),
            "workflow_id": _flow(numbers.setdefault(shape, len(numbers))),
            "input_data": {},
            "node_configs": {},
            "node_execution_times": dict(zip(nodes, seconds[first[number] : first[number + 1]], strict=True)),
        }
        low, high = first[number], first[number + 1]
        if problem.priority is not None and low < high and (priority := int(problem.priority[low])):
            body["priority"] = priority
        if problem.deadline is not None and low < high and (deadline := float(problem.deadline[low])) < float("inf"):
            body["deadline_seconds"] = round(deadline - arrivals[number], 6)
        yield comma + json.dumps(body)
        comma = ",\n"
    yield "\n]}\n"


def _flow(number: int) -> str:
    return f"w{number + 1:02d}"


def _shapes(problem: Problem) -> Iterator[Shape]:
    """The workflow of each request: requests that are equal in it share one."""
    first, model = problem.first.tolist(), problem.model.tolist()
    pred_first, preds = problem.pred_first.tolist(), problem.preds.tolist()
    for low, high in pairwise(first):
        needs = tuple(tuple(p - low for p in preds[pred_first[t] : pred_first[t + 1]]) for t in range(low, high))
        yield problem.nodes[low:high], tuple(model[low:high]), needs
