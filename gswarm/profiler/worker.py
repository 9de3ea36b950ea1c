"""The agent's sampling loop: one thread a device, a deadline for each, ticks in the host's phase slot."""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from gswarm.profiler.devices import SampledDevice
from gswarm.profiler.metrics import METRICS, Absent, Reading, columns
from gswarm.profiler.packing import pack
from gswarm.v1 import agent_pb2, cluster_pb2, profiler_pb2

if TYPE_CHECKING:
    from gswarm.client.agent import Agent

DEADLINE_S = 2.0
RETRY_S = (5.0, 60.0)
FASTEST_S = 0.1


@dataclass(eq=False)
class _Sampler:
    """Reads one device in a daemon thread of its own; a read that hangs is abandoned with its thread."""

    device: SampledDevice
    requests: queue.SimpleQueue[asyncio.Future[Reading]] = field(default_factory=queue.SimpleQueue)
    thread: threading.Thread | None = None
    since: float = 0.0
    """When it stopped answering, monotonic; 0: it answers."""
    retry_at: float = 0.0
    pause: float = RETRY_S[0]

    def ask(self, loop: asyncio.AbstractEventLoop) -> asyncio.Future[Reading]:
        """Start a read."""
        if self.thread is None:
            self.requests = queue.SimpleQueue()
            # A ThreadPoolExecutor would hold the interpreter's exit for a hung driver call.
            self.thread = threading.Thread(
                target=_serve, args=(self.device, self.requests, loop), name=f"sample-{self.device.id}", daemon=True
            )
            self.thread.start()
        future: asyncio.Future[Reading] = loop.create_future()
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
    device: SampledDevice, requests: queue.SimpleQueue[asyncio.Future[Reading]], loop: asyncio.AbstractEventLoop
) -> None:
    while True:
        future = requests.get()
        try:
            reading = device.read()
        except Exception as error:  # a driver may raise anything; the device is then NA with that reason
            reading = {metric.name: Absent(f"failed: {error}") for metric in METRICS}
        if loop.is_closed():
            return
        loop.call_soon_threadsafe(_resolve, future, reading)


def _resolve(future: asyncio.Future[Reading], reading: Reading) -> None:
    if not future.done():
        future.set_result(reading)


class ProfilerWorker:
    """Samples every device at the fastest interval anyone wants, and reports devices that are lost or back."""

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        self.interval_s = 1.0
        self._phase_s = 0.0
        self._samplers = [_Sampler(device) for device in agent.devices]
        self._phases = self._as_told()
        self._seq = 0
        self._changed = asyncio.Event()

    def desired(self, state: agent_pb2.DesiredState) -> None:
        """Take over the wanted interval."""
        wanted = max(FASTEST_S, state.sample_interval_s or 1.0)
        if wanted != self.interval_s:
            self.interval_s = wanted
            self._changed.set()

    def welcomed(self, welcome: agent_pb2.Welcome) -> None:
        """Take over the phase slot: ticks of many nodes arrive together, which costs the host half."""
        self._phase_s = welcome.phase_ms / 1000
        # The host has just heard what each device says of itself, which is nothing of one that does not answer.
        self._phases = self._as_told()

    async def run(self) -> None:
        """Sample until cancelled."""
        self.agent.link.schema(
            profiler_pb2.MetricSchema(
                node=self.agent.name, id=1, columns=columns(), device_ids=[s.device.id for s in self._samplers]
            )
        )
        while True:
            now = time.time()
            due = (now - self._phase_s) // self.interval_s * self.interval_s + self.interval_s + self._phase_s
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
        asked: list[asyncio.Future[Reading] | None] = [
            sampler.ask(loop) if not sampler.since or now >= sampler.retry_at else None for sampler in self._samplers
        ]
        stamp = time.time_ns() // 1000
        pending = [future for future in asked if future is not None]
        if pending:
            await asyncio.wait(pending, timeout=min(DEADLINE_S, max(0.5, self.interval_s)))
        readings: list[Reading] = []
        for sampler, future in zip(self._samplers, asked, strict=True):
            if future is not None and future.done():
                sampler.answered()
                readings.append(future.result())
                continue
            if future is not None:
                future.cancel()
                sampler.abandon(time.monotonic())
            reason = f"timed out: no answer for {time.monotonic() - sampler.since:.0f} s"
            readings.append({metric.name: Absent(reason) for metric in METRICS})
        self._seq += 1
        self.agent.link.sample(pack(readings, seq=self._seq, time_unix_us=stamp, schema_id=1))
        self._report_devices()

    def _as_told(self) -> dict[str, tuple[int, str]]:
        told = [sampler.device.describe() for sampler in self._samplers]
        return {device.id: (int(device.phase), device.detail) for device in told}

    def _report_devices(self) -> None:
        devices: list[cluster_pb2.Device] = []
        for sampler in self._samplers:
            device = sampler.device.describe()
            if sampler.since:
                device.phase, device.detail = cluster_pb2.DEVICE_PHASE_LOST, "the driver does not answer"
            devices.append(device)
        phases = {device.id: (int(device.phase), device.detail) for device in devices}
        if phases != self._phases:
            self.agent.link.report(devices=agent_pb2.DevicesReport(devices=devices))
        self._phases = phases
