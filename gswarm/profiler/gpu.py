"""One NVIDIA GPU or MIG instance: what it is, and its sample; what it does not give is absent with a reason, never 0."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from nvitop import libnvml

from gswarm.profiler.extra_metrics import Extra
from gswarm.profiler.gpu_processes import Processes
from gswarm.profiler.metrics import OFF, SLOW_S, Absent, Cadence, Group, Reading
from gswarm.profiler.nvml_sources import Source, sources
from gswarm.profiler.xids import LastXid, Xids
from gswarm.v1 import cluster_pb2


class Gpu:
    """One device, identified by its NVML UUID. `read` and `describe` may be called in different threads."""

    simulated = False

    def __init__(self, node: str, index: int, device: Any, extra: Sequence[str] = (), xids: Xids | None = None) -> None:
        """`device` is nvitop's. Raises NVMLError when it does not even say which it is."""
        self.node, self.index, self.device = node, index, device
        self.handle = device.handle
        self.id = str(libnvml.nvmlDeviceGetUUID(self.handle))
        self.is_mig = self.id.startswith("MIG-")
        instance = (device.parent.handle, device.gpu_instance_id()) if self.is_mig else None
        self.gpu_instance = instance[1] if instance else None
        self.physical = instance[0] if instance else self.handle
        """Handle of the whole GPU."""
        self.physical_id = str(libnvml.nvmlDeviceGetUUID(self.physical))
        self.lost = ""
        self.paths: list[cluster_pb2.DevicePath] = []
        self.cpu_affinity = ""
        self.numa_node: int | None = None
        self.sampling: frozenset[Group] = frozenset()
        """Slow groups that are sampled; may be replaced at any time."""
        self._sampled: frozenset[Group] = frozenset()
        self._due: tuple[list[Source], list[Source]] | None = None
        self._name = str(device.name())
        version = device.driver_version()
        self._driver = "" if version == "N/A" else str(version)
        self._processes = Processes(self.handle)
        self._sources: list[Source] = [*sources(self.handle, instance), self._processes]
        self._xid = LastXid(self.physical, self.physical_id, xids) if xids is not None else None
        if self._xid is not None:
            self._sources.append(self._xid)
        if extra:
            self._sources.append(Extra(device, extra))
        self._reading: Reading = {}
        self._slow_at = 0.0
        self._memory = device.memory_total()
        self._limit = device.power_limit()

    def describe(self) -> cluster_pb2.Device:
        """What NVML said at start, and whether it still answers."""
        device = cluster_pb2.Device(
            id=self.id,
            alias=f"{self.node}:gpu{self.index}",
            node=self.node,
            index=self.index,
            kind=cluster_pb2.DEVICE_KIND_MIG if self.is_mig else cluster_pb2.DEVICE_KIND_GPU,
            name=self._name,
            phase=cluster_pb2.DEVICE_PHASE_LOST if self.lost else cluster_pb2.DEVICE_PHASE_READY,
            detail=self.lost,
            driver_version=self._driver,
            paths=self.paths,
            cpu_affinity=self.cpu_affinity,
            processes=self._processes.found,
        )
        if self.numa_node is not None:
            device.numa_node = self.numa_node
        if isinstance(self._memory, int):
            device.memory_bytes = self._memory
        if isinstance(self._limit, int):
            device.power_limit_mw = self._limit
        return device

    @property
    def processes(self) -> tuple[cluster_pb2.DeviceProcess, ...]:
        """What ran on it at the last slow read."""
        return self._processes.found

    def read(self) -> Reading | Absent:
        """One sample, what is not due from the last one. Raises nothing: a lost device gives a reason for everything."""
        now = time.monotonic()
        is_slow_due = now >= self._slow_at
        try:
            if is_slow_due:
                # So that a GPU that is lost is told from one that is mute, whatever either of them gives.
                libnvml.nvmlDeviceGetUUID(self.handle)
                self._slow_at = now + SLOW_S
            self._read_due(is_slow_due)
        except libnvml.NVMLError as error:
            self.lost, self._slow_at = str(error), 0.0
            return Absent(f"lost: {error}")
        self.lost = ""
        return dict(self._reading)

    def _read_due(self, is_slow_due: bool) -> None:
        if self._due is None or self.sampling != self._sampled:
            self._due = self._turn(self.sampling)
        for source in self._due[is_slow_due]:
            if not source.read(self._reading):
                self._sources.remove(source)
                self._due = None  # what is never asked again is left out from the next time on

    def _turn(self, sampling: frozenset[Group]) -> tuple[list[Source], list[Source]]:
        """Sources of each tick, and all that are on; what was sampled and is off is absent from now on."""
        for source in self._sources:
            if source.group is not None and source.group not in sampling:
                known = self._reading.keys() & source.metrics
                self._reading.update(dict.fromkeys(known, OFF[source.group]))
        self._sampled = sampling
        on = [source for source in self._sources if source.group is None or source.group in sampling]
        return [source for source in on if source.cadence is Cadence.TICK], on

    def hear_xid(self, number: int) -> None:
        """An XID of this device came (from the events' thread)."""
        if self._xid is not None:
            self._xid.last = number

    def free_bytes(self) -> int | None:
        """Free memory as NVML sees it, foreign processes included."""
        try:
            return int(libnvml.nvmlDeviceGetMemoryInfo(self.handle).free)
        except libnvml.NVMLError:
            return None


class Mute:
    """A GPU that is there but did not say which it is when the agent started: shown as lost until the next start."""

    simulated = False
    device = None
    processes: tuple[cluster_pb2.DeviceProcess, ...] = ()
    sampling: frozenset[Group] = frozenset()

    def __init__(self, node: str, index: int, reason: str) -> None:
        self.node, self.index, self.lost = node, index, reason
        self.id = f"GPU-unknown-{node}-{index}"

    def describe(self) -> cluster_pb2.Device:
        """A lost device."""
        return cluster_pb2.Device(
            id=self.id,
            alias=f"{self.node}:gpu{self.index}",
            node=self.node,
            index=self.index,
            kind=cluster_pb2.DEVICE_KIND_GPU,
            name="NVIDIA GPU",
            phase=cluster_pb2.DEVICE_PHASE_LOST,
            detail=f"{self.lost}; restart the agent when it answers again",
        )

    def read(self) -> Reading | Absent:
        """Nothing, with the reason."""
        return Absent(f"lost: {self.lost}")

    def free_bytes(self) -> int | None:
        """Not known."""
        return None
