"""The agent's sampling loop: one thread a device, a deadline for each, ticks in the host's phase slot."""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from gswarm.profiler.adaptive import Schedule
from gswarm.profiler.cpu import Cpu
from gswarm.profiler.devices import SampledDevice
from gswarm.profiler.metrics import Absent, Group, Reading
from gswarm.profiler.packing import Packer
from gswarm.v1 import agent_pb2, cluster_pb2, common_pb2, profiler_pb2

if TYPE_CHECKING:
    from gswarm.client.agent import Agent
    from gswarm.profiler.gpu import Gpu

Told = Reading | Absent
DEADLINE_S = 2.0
RETRY_S = (5.0, 60.0)
FASTEST_S = 0.1
USAGE_S = 15.0
"""How often it is told what the processes on a device use."""
XID_PAUSE_S = 10.0
HUNG = "the driver does not answer"
_GROUPS = {
    profiler_pb2.SAMPLING_GROUP_PCIE: Group.PCIE,
    profiler_pb2.SAMPLING_GROUP_NVLINK: Group.NVLINK,
}


@dataclass(eq=False)
class _Sampler:
    """Reads one device in a daemon thread of its own; a read that hangs is abandoned with its thread."""

    device: SampledDevice
    requests: queue.SimpleQueue[asyncio.Future[Told]] = field(default_factory=queue.SimpleQueue)
    thread: threading.Thread | None = None
    since: float = 0.0
    """When it stopped answering, monotonic; 0: it answers."""
    retry_at: float = 0.0
    pause: float = RETRY_S[0]

    def ask(self, loop: asyncio.AbstractEventLoop) -> asyncio.Future[Told]:
        """Start a read."""
        if self.thread is None:
            self.requests = queue.SimpleQueue()
            # A ThreadPoolExecutor would hold the interpreter's exit for a hung driver call.
            self.thread = threading.Thread(
                target=_serve, args=(self.device, self.requests, loop), name=f"sample-{self.device.id}", daemon=True
            )
            self.thread.start()
        future: asyncio.Future[Told] = loop.create_future()
        self.requests.put(future)
        return future

    def abandon(self, now: float) -> None:
        """The read did not come back: leave the thread, try a new one later."""
        self.since = self.since or now
        self.thread = None
        self.retry_at = now + self.pause
        self.pause = min(self.pause * 2, RETRY_S[1])

    def answered(self) -> None:
        """It is back."""
        self.since, self.pause = 0.0, RETRY_S[0]


def _serve(
    device: SampledDevice, requests: queue.SimpleQueue[asyncio.Future[Told]], loop: asyncio.AbstractEventLoop
) -> None:
    while True:
        future = requests.get()
        try:
            reading = device.read()
        except Exception as error:  # a driver may raise anything; the device is then NA with that reason
            reading = Absent(f"failed: {error}")
        if loop.is_closed():
            return
        loop.call_soon_threadsafe(_resolve, future, reading)


def _resolve(future: asyncio.Future[Told], reading: Told) -> None:
    if not future.done():
        future.set_result(reading)


class ProfilerWorker:
    """Samples every device at the fastest interval anyone wants, and reports devices that are lost or back."""

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        self.schedule = Schedule()
        self._samplers = [_Sampler(device) for device in agent.devices]
        gpus = [row for row, device in enumerate(agent.devices) if not isinstance(device, Cpu)]
        self._counting = gpus or range(len(agent.devices))
        """Whose values set the pace: a machine's processor is never quite still, and counts only where there is no GPU."""
        self._packer = Packer(agent.name, [device.id for device in agent.devices], agent.metrics)
        self._states: list[str] = []
        self._processes: dict[str, tuple[Sequence[cluster_pb2.DeviceProcess], float]] = {}
        """Device id to what was told last, and when."""
        self._xids: dict[tuple[str, int], float] = {}
        self._seq = 0
        self._changed = asyncio.Event()

    def desired(self, state: agent_pb2.DesiredState) -> None:
        """Take over the wanted interval, and which slow metrics to sample."""
        groups = frozenset(_GROUPS[number] for number in state.sampling if number in _GROUPS)
        for device in self.agent.devices:
            device.sampling = groups
        before = self.schedule.regular_s, self.schedule.pace
        if state.HasField("adaptive"):
            asked = state.adaptive
            self.schedule.regular_s = asked.regular_s and max(FASTEST_S, asked.regular_s)
            self.schedule.adapt(max(FASTEST_S, asked.fastest_s), max(FASTEST_S, asked.slowest_s))
        else:
            self.schedule.regular_s = max(FASTEST_S, state.sample_interval_s or 1.0)
            self.schedule.adapt(0, 0)
        if before != (self.schedule.regular_s, self.schedule.pace):
            self._changed.set()

    def welcomed(self, welcome: agent_pb2.Welcome) -> None:
        """Take over the phase slot: ticks of many nodes arrive together, which costs the host half."""
        self.schedule.phase_s = welcome.phase_ms / 1000
        # The host has just heard what each device says of itself, which is nothing of one that does not answer.
        self._states = [sampler.device.lost for sampler in self._samplers]
        self._processes = {device.id: (device.processes, time.monotonic()) for device in self.agent.devices}
        self._packer.remind()

    async def run(self) -> None:
        """Sample until cancelled."""
        while True:
            now = time.time()
            due = self.schedule.due(now)
            try:
                async with asyncio.timeout(max(0.0, due - now)):
                    await self._changed.wait()
                self._changed.clear()
                continue
            except TimeoutError:
                pass
            await self._tick()

    async def _tick(self) -> None:
        loop, now = asyncio.get_running_loop(), time.monotonic()
        asked: list[asyncio.Future[Told] | None] = [
            sampler.ask(loop) if not sampler.since or now >= sampler.retry_at else None for sampler in self._samplers
        ]
        stamp = time.time_ns() // 1000
        self.schedule.sampled_at = stamp / 1e6
        pending = [future for future in asked if future is not None]
        if pending:
            await asyncio.wait(pending, timeout=min(DEADLINE_S, max(0.5, self.schedule.shortest_s)))
        readings: list[Told] = []
        for sampler, future in zip(self._samplers, asked, strict=True):
            if future is not None and future.done():
                sampler.answered()
                readings.append(future.result())
                continue
            if future is not None:
                future.cancel()
                sampler.abandon(time.monotonic())
            readings.append(Absent(f"timed out: no answer for {time.monotonic() - sampler.since:.0f} s"))
        if self.schedule.pace is not None:
            self.schedule.pace.observe([readings[row] for row in self._counting])
        self._seq += 1
        if self._packer.admit(readings):
            self.agent.link.schema(self._packer.schema)
        self.agent.link.sample(self._packer.pack(readings, seq=self._seq, time_unix_us=stamp))
        self._report_devices()
        self._tell_processes()

    def _report_devices(self) -> None:
        states = [HUNG if sampler.since else sampler.device.lost for sampler in self._samplers]
        if states == self._states:
            return
        self._states = states
        devices = [sampler.device.describe() for sampler in self._samplers]
        for device, state in zip(devices, states, strict=True):
            if state:
                device.phase, device.detail = cluster_pb2.DEVICE_PHASE_LOST, state
        self.agent.link.report(devices=agent_pb2.DevicesReport(devices=devices))

    def _tell_processes(self) -> None:
        """At once when one comes or goes; what those that stay use, now and then."""
        now = time.monotonic()
        for device in self.agent.devices:
            found = device.processes
            told, told_at = self._processes.get(device.id, ((), 0.0))
            if found is told or found == told:
                continue
            if now - told_at >= USAGE_S or [p.pid for p in found] != [p.pid for p in told]:
                self.agent.link.progress_processes(agent_pb2.DeviceProcesses(device_id=device.id, processes=found))
                self._processes[device.id] = (found, now)

    def xid(self, gpu: Gpu, number: int) -> None:
        """A GPU reported an XID: an event, kept until the host has it; one that comes in floods is told now and then."""
        from gswarm.profiler.xids import BY_PROGRAM, MEANINGS

        now = time.monotonic()
        if now - self._xids.get((gpu.id, number), -XID_PAUSE_S) < XID_PAUSE_S:
            return
        self._xids[gpu.id, number] = now
        severity = common_pb2.SEVERITY_WARNING if number in BY_PROGRAM else common_pb2.SEVERITY_ERROR
        self.agent.link.report(
            event=agent_pb2.NodeEvent(
                type="device.xid",
                severity=severity,
                subject_kind=common_pb2.KIND_DEVICE,
                subject=gpu.id,
                message=f"{gpu.node}:gpu{gpu.index}: XID {number}: {MEANINGS.get(number, 'see the XID list of NVIDIA')}",
            )
        )
