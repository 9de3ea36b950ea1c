"""Tasks that the host carries out itself (downloads, services, transfers): begun, waited for, ended."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from gswarm.data.service import transfer
from gswarm.errors import GswarmError
from gswarm.model import operations
from gswarm.queue import parameters, transitions
from gswarm.queue.transitions import DONE, READY, RUNNING
from gswarm.v1 import data_pb2, models_pb2, queue_pb2
from gswarm.v1.data_pb2 import Chunk
from gswarm.v1.models_pb2 import Placement, Service
from gswarm.v1.queue_pb2 import Task

if TYPE_CHECKING:
    from gswarm.host.state import State
    from gswarm.host.store import Store
    from gswarm.host.transaction import Transaction

log = logging.getLogger("gswarm.host")
Params = Mapping[str, Any]
Made = dict[str, Any]
"""What a task has made: its output, by which its end is seen and which its dependents may refer to."""


class Outcome(NamedTuple):
    """How a task has come to its end."""

    done: bool
    why: str
    """Why it is not done; may be empty."""


WELL = Outcome(True, "")


class HostTasks:
    """Those that are ready or under way."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._tasks: dict[str, Task] = {}

    def __bool__(self) -> bool:
        """Whether there are any."""
        return bool(self._tasks)

    def learn(self, task: Task) -> None:
        """A task is ready or running."""
        self._tasks[task.id] = task

    def forget(self, task_id: str) -> None:
        """A task is neither any longer, or is about to be learnt anew."""
        self._tasks.pop(task_id, None)

    async def advance(self) -> None:
        """Begin what is ready, end what has come to its end."""
        for task in list(self._tasks.values()):
            if task.phase == READY:
                await self._begin(task)
            elif task.phase == RUNNING and (outcome := _outcome(self._store.state, task)) is not None:
                await self._store.insist(partial(_end, task_id=task.id, outcome=outcome), method="task")

    async def _begin(self, task: Task) -> None:
        try:
            await self._store.insist(partial(_begin, task_id=task.id), actor=task.actor, method="task")
        except GswarmError:
            raise
        except Exception:  # our own mistake costs this task, not the queue
            log.exception("task %s could not be carried out", task.id)
            why = "the host failed to do this; see gswarm logs host"
            await self._store.insist(partial(_give_up, task_id=task.id, why=why), method="task")


def _begin(tx: Transaction, task_id: str) -> None:
    task = tx.edit(Task, task_id)
    if task is None or task.phase != READY:
        return
    transitions.lease(tx, task, node="", service="", device_ids=())
    try:
        resolved = transitions.resolved(tx, task)
        params = resolved if isinstance(resolved, dict) else {}
        parameters.check(task.type, params if "model" in params or not task.model else {**params, "model": task.model})
        task.output_json = json.dumps(_WORK[task.type].begin(tx, task, params))
        tx.put(task)
    except GswarmError as error:
        transitions.attempt_failed(tx, task, str(error))


def _give_up(tx: Transaction, task_id: str, why: str) -> None:
    task = tx.edit(Task, task_id)
    if task is not None and task.phase == READY:
        transitions.lease(tx, task, node="", service="", device_ids=())
        transitions.attempt_failed(tx, task, why)


def _end(tx: Transaction, task_id: str, outcome: Outcome) -> None:
    task = tx.edit(Task, task_id)
    if task is None or task.phase != RUNNING:
        return
    if outcome.done:
        transitions.finish(tx, task, DONE, "")
    else:
        transitions.attempt_failed(tx, task, outcome.why)


def _outcome(state: State, task: Task) -> Outcome | None:
    """None while it is under way."""
    if task.timeout_s and (datetime.now(UTC) - task.started_at.ToDatetime(UTC)).total_seconds() > task.timeout_s:
        return Outcome(False, f"not done after {task.timeout_s:g} s")
    if (work := _WORK.get(task.type)) is None:
        return Outcome(False, "this host does not do tasks of its type")
    return work.outcome(state, json.loads(task.output_json or "{}"))


# What each type does, and when it has come to its end


class _Work(NamedTuple):
    begin: Callable[[Transaction, Task, Params], Made]
    outcome: Callable[[State, Made], Outcome | None]


def _download(tx: Transaction, task: Task, params: Params) -> Made:
    nodes = [params["node"]] if "node" in params else []
    asked = models_pb2.DownloadRequest(name=params["name"], source=params["source"], nodes=nodes)
    response = operations.download(asked)(tx)
    return {"model": response.model.name, "placements": [p.id for p in response.placements]}


def _downloaded(state: State, made: Made) -> Outcome | None:
    placements = [state.get(Placement, key) for key in made.get("placements", [])]
    for placement in placements:
        if placement is None or placement.phase == models_pb2.PLACEMENT_PHASE_FAILED:
            return Outcome(False, placement.detail if placement else "it was deleted meanwhile")
    return WELL if all(p is not None and p.phase == models_pb2.PLACEMENT_PHASE_STORED for p in placements) else None


def _serve(tx: Transaction, task: Task, params: Params) -> Made:
    device = params.get("device", [])
    request = models_pb2.ServeRequest(
        model=task.model,
        devices=[device] if isinstance(device, str) else device,
        port=params.get("port", 0),
        backend=params.get("backend", ""),
        name=params.get("service", ""),
    )
    return {"service": operations.serve(request)(tx).service.name}


def _served(state: State, made: Made) -> Outcome | None:
    service = state.get(Service, made.get("service", ""))
    if service is None or service.stop or service.phase == models_pb2.SERVICE_PHASE_FAILED:
        why = service.detail if service and service.detail else "the service was stopped meanwhile"
        return Outcome(False, why)
    return WELL if service.phase == models_pb2.SERVICE_PHASE_READY else None


def _stop(tx: Transaction, task: Task, params: Params) -> Made:
    return {"service": operations.stop_service(params["service"])(tx).service.name}


def _stopped(state: State, made: Made) -> Outcome | None:
    service = state.get(Service, made.get("service", ""))
    return WELL if service is None or service.phase == models_pb2.SERVICE_PHASE_STOPPED else None


def _transfer(tx: Transaction, task: Task, params: Params) -> Made:
    transfer(params["chunk"], params["node"])(tx)
    return {"chunk": params["chunk"], "node": params["node"]}


def _transferred(state: State, made: Made) -> Outcome | None:
    chunk = state.get(Chunk, made.get("chunk", ""))
    place = next((p for p in chunk.locations if p.node == made.get("node")), None) if chunk else None
    if place is None or place.phase == data_pb2.LOCATION_PHASE_FAILED:
        return Outcome(False, place.detail if place else "the chunk was deleted meanwhile")
    return WELL if place.phase == data_pb2.LOCATION_PHASE_PRESENT else None


_WORK: Mapping[int, _Work] = {
    queue_pb2.TASK_TYPE_DOWNLOAD: _Work(_download, _downloaded),
    queue_pb2.TASK_TYPE_SERVE: _Work(_serve, _served),
    queue_pb2.TASK_TYPE_STOP: _Work(_stop, _stopped),
    queue_pb2.TASK_TYPE_DATA_TRANSFER: _Work(_transfer, _transferred),
}
