"""A seeded fake swarm in memory, with the read API of a mirror: nodes, devices, lanes, models, chunks, tasks."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

from gswarm_tui.deeds import Deed, Field, FieldKind

from gswarm.cluster.types import Device, DeviceKind, DevicePhase, Event, Kind, Node, NodePhase, Severity
from gswarm.data.types import Chunk, ChunkType, Holder, Location, LocationPhase
from gswarm.model.types import Model, Placement, PlacementPhase, Service, ServicePhase
from gswarm.profiler.types import Session, SessionPhase
from gswarm.queue.types import Block, Lane, Plan, Priority, Task, TaskPhase, TaskType, Workflow

RowT = TypeVar("RowT")
NOON = datetime(2026, 7, 1, 12, 4, 45, tzinfo=UTC)
GIB = 2**30
NAMES = (
    ("llama-8b", 16, ServicePhase.READY),
    ("qwen-7b", 15, ServicePhase.READY),
    ("sdxl", 7, ServicePhase.LOADING),
    ("whisper", 3, ServicePhase.READY),
    ("gemma-27b", 52, ServicePhase.STOPPED),
    ("mixtral", 90, ServicePhase.FAILED),
    ("phi-4", 9, ServicePhase.READY),
    ("coder-14b", 28, ServicePhase.READY),
)
STORED = (("bge-m3", 2), ("mistral-7b", 14), ("llama-405b", 810), ("embed-x", 1), ("vit-h", 3))
KINDS = (("<f4", (512, 4096)), ("<f2", (8, 77, 768)), ("", ()), ("<f4", (4096,)), ("|u1", (1024, 1024, 3)))


class FakeMirror:
    """What a mirror offers to read; `put` and `sample` change it."""

    def __init__(self) -> None:
        self.tables: dict[type, dict[str, Any]] = {}
        self.updated = asyncio.Event()
        self.revision = 1
        self.age: float | None = 0.0
        self.link = "live"
        self.problem = ""
        self.samples: dict[str, dict[str, float]] = {}
        self.sampled_at: dict[str, float] = {}
        self.reasons: dict[str, dict[str, str]] = {}

    def rows(self, cls: type[RowT]) -> Mapping[str, RowT]:
        return self.tables.get(cls, {})

    def put(self, key: str, row: object) -> None:
        self.tables.setdefault(type(row), {})[key] = row

    def delete(self, cls: type, key: str) -> None:
        self.tables.get(cls, {}).pop(key, None)

    def publish(self) -> None:
        self.revision += 1
        self.updated, old = asyncio.Event(), self.updated
        old.set()


class FakeSwarm:
    """A swarm of `nodes` x `devices`, the same for the same seed."""

    def __init__(
        self, nodes: int = 4, devices: int = 8, *, seed: int = 7, now: datetime = NOON, tasks: int = 60
    ) -> None:
        self.random = random.Random(seed)
        self.now = now
        self.data = FakeMirror()
        self._make(nodes, devices, tasks)

    @asynccontextmanager
    async def mirror(self, **_: object) -> AsyncIterator[FakeMirror]:
        yield self.data

    def _make(self, nodes: int, devices: int, tasks: int) -> None:
        put, now, rand = self.data.put, self.now, self.random
        order = [name for name, _, _ in NAMES]
        every: list[Device] = []
        for n in range(1, nodes + 1):
            name = f"n{n}"
            put(
                name,
                Node(name, f"inc{n}", NodePhase.READY, "0.1.0", ("peer",), "127.0.0.1", 7000 + n, 64, 512 * GIB, now, now,
                     "", ("simulated", "transformers"), "Linux", True, 900 * GIB),
            )  # fmt: skip
            for d in range(devices):
                lost = n == 3 and d == 3
                device = Device(
                    id=f"SIM-{n}-{d}", alias=f"{name}:gpu{d}", node=name, index=d, kind=DeviceKind.GPU,
                    name="NVIDIA H100 80GB HBM3", memory_bytes=80 * GIB, power_limit_mw=700_000,
                    phase=DevicePhase.LOST if lost else DevicePhase.READY, detail="fell off the bus" if lost else "",
                    driver_version="570.86", changed_at=now - timedelta(seconds=41),
                )  # fmt: skip
                put(device.id, device)
                every.append(device)
        for i, (name, gib, phase) in enumerate(NAMES):
            put(name, Model(name, (), "v1", {"architecture": "decoder"}, now, False, gib * GIB))
            on = tuple(d.id for d in every[i :: len(NAMES)][:2]) if phase is not ServicePhase.STOPPED else ()
            put(
                name,
                Service(
                    name, name, "v1", "n1", on, "simulated", 9100 + i, phase,
                    {ServicePhase.READY: 1000, ServicePhase.LOADING: 540}.get(phase, 0), 1, 1,
                    detail="OOM" if phase is ServicePhase.FAILED else "", pid=4000 + i, max_in_flight=8,
                    tokens_per_s=rand.uniform(300, 1400) if phase is ServicePhase.READY else None,
                    memory_bytes=gib * GIB, created_at=now - timedelta(minutes=90 - i), changed_at=now, load_s=6.1,
                ),
            )  # fmt: skip
        for name, gib in STORED:
            put(name, Model(name, (), "v1", {}, now, False, gib * GIB))
            put(f"{name}@v1/n1", Placement(f"{name}@v1/n1", name, "v1", "n1", "file:///m", PlacementPhase.STORED))
        for i in range(40):
            dtype, shape = KINDS[i % len(KINDS)]
            key = f"{rand.getrandbits(64):016x}"
            made = now - timedelta(seconds=rand.choice((2, 4, 10, 40, 300, 3120, 7500)))
            holders = tuple(
                Holder(f"job-{j}", made, now + timedelta(minutes=5), "ops") for j in range(rand.choice((0, 1, 1, 2, 3)))
            )
            read = now if rand.random() < 0.6 else None
            kind = ChunkType.NUMPY if dtype else ChunkType.JSON
            put(
                key,
                Chunk(key, kind, dtype, shape, rand.choice((12_000, 640_000, 8_000_000, 96_000_000)), key, "", made, read,
                      holders, (Location(f"n{rand.randint(1, nodes)}", LocationPhase.PRESENT),), "ops"),
            )  # fmt: skip
        self._plan(every, order, tasks)
        for i in range(30):
            put(
                str(i + 1),
                Event(str(i + 1), now - timedelta(seconds=9 * (30 - i)), rand.choice(("task.done", "service.ready", "chunk.put")),
                      rand.choice((Severity.INFO, Severity.INFO, Severity.WARNING, Severity.ERROR)), "ops", "", Kind.TASK,
                      str(4500 + i), f"Task {4500 + i} is done."),
            )  # fmt: skip
        put(
            "run-42",
            Session("run-42", (), 1.0, SessionPhase.RECORDING, now - timedelta(minutes=9), None, 2160, 88, 3_400_000),
        )
        put(
            "run-41",
            Session("run-41", ("n1",), 1.0, SessionPhase.SEALED, now - timedelta(hours=3), now - timedelta(hours=2)),
        )
        self.sample()

    def _plan(self, every: list[Device], order: list[str], tasks: int) -> None:
        put, now, rand = self.data.put, self.now, self.random
        number = 4400
        for device in every:
            if device.phase is DevicePhase.LOST or rand.random() < 0.12:
                put(device.id, Lane(device.id, device.alias, ()))
                continue
            at = now - timedelta(seconds=rand.randint(0, 20))
            blocks: list[Block] = []
            model = rand.choice(order)
            while at < now + timedelta(minutes=14):
                load = 0.0
                if blocks and rand.random() < 0.5:
                    model = rand.choice(order)
                    load = rand.uniform(5, 25)
                    at += timedelta(seconds=load)
                count = rand.randint(1, 24)
                end = at + timedelta(seconds=rand.uniform(15, 140))
                ids: list[str] = []
                if len(blocks) < 2 and number < 4400 + tasks:
                    for j in range(min(2, count)):
                        number += 1
                        running = not blocks and j == 0
                        put(
                            str(number),
                            Task(
                                str(number), "w12", f"step-{j}", TaskType.INFERENCE, model, Priority.NORMAL,
                                TaskPhase.RUNNING if running else TaskPhase.READY, 1 if running else 0, 1,
                                node=device.node if running else "", device_ids=(device.id,) if running else (),
                                created_at=now - timedelta(seconds=rand.randint(3, 58)),
                                started_at=now - timedelta(seconds=5) if running else None, actor=rand.choice(("ops", "lab")),
                            ),
                        )  # fmt: skip
                        ids.append(str(number))
                blocks.append(
                    Block(model, tuple(ids), count, at, end, load, not blocks, 14, "same model, loaded already")
                )
                at = end
            put(device.id, Lane(device.id, device.alias, tuple(blocks)))
        for i in range(2):
            put(
                str(4675 + i),
                Task(str(4675 + i), "w13", "big", TaskType.INFERENCE, "llama-405b", Priority.HIGH, TaskPhase.READY,
                     detail="needs 140G", created_at=now - timedelta(seconds=20 + 20 * i), actor="lab"),
            )  # fmt: skip
        put("w12", Workflow("w12", "flow", tasks=40))
        put("plan", Plan(now, "batch", 6, 41, now + timedelta(minutes=4), 14, 48.0, 60.0, 96, 30, 2))

    def sample(self, *, jitter: float = 6.0) -> None:
        """New values for every device that answers."""
        rand = self.random
        for device in self.data.rows(Device).values():
            lane = self.data.rows(Lane).get(device.id)
            if device.phase is DevicePhase.LOST:
                continue
            before = self.data.samples.get(device.id)
            busy = bool(lane and lane.blocks)
            util = 0.0
            if busy:
                util = before["util_percent"] + rand.uniform(-jitter, jitter) if before else rand.uniform(20, 100)
                util = max(5.0, min(100.0, util))
            memory = before["memory_used_bytes"] if before else (rand.uniform(18, 70) * GIB if busy else 0.0)
            self.data.samples[device.id] = {
                "util_percent": util,
                "memory_used_bytes": memory,
                "power_mw": (71 + 5.6 * util) * 1000,
                "temperature_c": 31 + round(util * 0.4),
            }
            self.data.sampled_at[device.id] = self.now.timestamp()

    def step(self, seconds: float = 1.0) -> None:
        """Time passes: samples change, nothing else."""
        self.now += timedelta(seconds=seconds)
        self.sample()
        self.data.publish()

    def change(self, cls: type, key: str, **fields: object) -> None:
        """Replace fields of one object and publish."""
        self.data.put(key, replace(self.data.rows(cls)[key], **fields))
        self.data.publish()


async def _nothing(**_: object) -> None:
    return None


DEEDS = (
    Deed(
        "model serve", "s", "Serve a model.", "starts a backend",
        (
            Field("name", ref="model", is_required=True, doc="model to serve"),
            Field("device", ref="device", is_list=True, is_option=True, default=[], doc="where"),
            Field("port", FieldKind.INT, is_option=True, default=0, doc="port on the node; 0: any"),
            Field("backend", FieldKind.CHOICE, is_option=True, choices=("transformers", "vllm", "simulated")),
        ),
        _nothing,
    ),
    Deed(
        "model stop", "x", "Stop a service.", "ends a backend",
        (Field("service", ref="service", is_required=True),), _nothing, is_destructive=True,
    ),
    Deed(
        "model download", "d", "Download a model.", "fetches files to a node",
        (Field("name", is_required=True), Field("source", is_option=True, is_required=True, doc="file:// or https://")),
        _nothing,
    ),
    Deed("model info", "", "Show a model.", "", (Field("model", ref="model", is_required=True),), _nothing, is_read=True),
    Deed("queue submit", "n", "Submit a workflow.", "queues its tasks",
         (Field("path", FieldKind.PATH, is_required=True, doc="YAML or JSON file"),), _nothing),
    Deed("queue cancel", "c", "Cancel a task.", "ends it", (Field("task", ref="task", is_required=True),), _nothing,
         is_destructive=True),
    Deed("queue explain", "e", "Say why a task waits.", "", (Field("task", ref="task", is_required=True),), _nothing,
         is_read=True),
    Deed("profiler start", "", "Record.", "starts a recording",
         (Field("name", is_option=True, is_required=True), Field("nodes", ref="node", is_list=True, is_option=True, default=[])),
         _nothing),
    Deed("profiler stop", "", "Stop recording.", "seals it", (Field("name", ref="session", is_required=True),), _nothing),
)  # fmt: skip


class FakeFeed:
    """Gives the console snapshots of a fake swarm on a clock the test owns; keeps what was asked of it."""

    can_act = True
    player: Any = None

    def __init__(self, swarm: FakeSwarm, host: str = "127.0.0.1:8090") -> None:
        self.swarm, self.host = swarm, host
        self.show: Callable[[Any], None] | None = None
        self.performed: list[tuple[str, dict[str, Any]]] = []
        self.failure: Exception | None = None
        self.replay: Any = None

    def deeds(self) -> tuple[Deed, ...]:
        return DEEDS

    async def perform(self, deed: Deed, values: Mapping[str, Any]) -> Any:
        if self.failure is not None:
            raise self.failure
        self.performed.append((deed.name, dict(values)))
        return "done"

    async def run(self, show: Callable[[Any], None]) -> None:
        self.show = show
        self.push()
        await asyncio.Event().wait()

    def push(self) -> None:
        """Show the swarm as it is now."""
        from gswarm_tui.feed import capture

        assert self.show is not None
        self.show(capture(self.swarm.data, host=self.host, now=self.swarm.now, replay=self.replay))
