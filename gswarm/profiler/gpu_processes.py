"""What runs on a GPU: process ids and memory from NVML, share of its SMs, and whose program it is from the system."""

from __future__ import annotations

import functools
import os
from pathlib import PurePath
from typing import Any

import psutil
from nvitop import libnvml

from gswarm.profiler.metrics import UNSUPPORTED, Absent, Cadence, Group, Reading, Value
from gswarm.profiler.nvml_sources import NEVER
from gswarm.v1.cluster_pb2 import DeviceProcess

_FUNCTIONS = ("nvmlDeviceGetComputeRunningProcesses", "nvmlDeviceGetGraphicsRunningProcesses")
COMMAND_LIMIT = 60


class Processes:
    """Processes of one device. `found` is what ran on it at the last read, by process id."""

    metrics: tuple[str, ...] = ("process_count", "foreign_memory_bytes")
    cadence = Cadence.SLOW
    group: Group | None = None

    def __init__(self, handle: Any) -> None:
        self._handle = handle
        self._since_us = 0
        self._tells_shares = True
        self.found: tuple[DeviceProcess, ...] = ()

    def read(self, into: Reading) -> bool:
        """Ask who is there; a driver that may not tell is no reason to say that no one is."""
        used: dict[int, int | None] = {}
        try:
            for function in _FUNCTIONS:
                for process in getattr(libnvml, function)(self._handle):
                    used[process.pid] = process.usedGpuMemory
        except libnvml.NVMLError as error:
            never = isinstance(error, NEVER)
            into.update(dict.fromkeys(self.metrics, UNSUPPORTED if never else Absent(str(error))))
            self.found = ()
            return not never
        shares = self._shares() if used else {}
        self.found = tuple(self._process(pid, used[pid], shares) for pid in sorted(used))
        into["process_count"] = len(used)
        into["foreign_memory_bytes"] = self._foreign()
        return True

    def _process(self, pid: int, used: int | None, shares: dict[int, int] | None) -> DeviceProcess:
        user, command, ours = _identity(pid, _start_of(pid))
        process = DeviceProcess(pid=pid, user=user, command=command, ours=ours)
        if isinstance(used, int):
            process.memory_bytes = used
        if shares is not None:
            # NVML lists those that used the SMs at all.
            process.sm_percent = shares.get(pid, 0)
        return process

    def _shares(self) -> dict[int, int] | None:
        """Process id to per cent of the time since the last read; None where NVML does not tell."""
        if not self._tells_shares:
            return None
        try:
            samples = libnvml.nvmlDeviceGetProcessUtilization(self._handle, self._since_us)
        except NEVER:
            self._tells_shares = False
            return None
        except libnvml.NVMLError_NotFound:
            return {}
        except libnvml.NVMLError:
            return None
        newest = sorted(samples, key=lambda sample: sample.timeStamp)
        if newest:
            self._since_us = newest[-1].timeStamp
        return {sample.pid: sample.smUtil for sample in newest if sample.smUtil <= 100}

    def _foreign(self) -> Value:
        foreign = 0
        for process in self.found:
            if process.ours:
                continue
            if not process.HasField("memory_bytes"):
                return Absent("not told for every process")
            foreign += process.memory_bytes
        return foreign


def _start_of(pid: int) -> float:
    """When a process started: with its id this says which it is. 0 when it is out of sight, in another container."""
    try:
        return psutil.Process(pid).create_time()
    except psutil.Error:
        return 0.0


@functools.lru_cache(maxsize=4096)
def _identity(pid: int, started: float) -> tuple[str, str, bool]:
    """User, program and whether gswarm started it; what may not be seen stays empty."""
    user = command = ""
    ours = pid == os.getpid()
    if not started:
        return user, command, ours
    try:
        process = psutil.Process(pid)
        command = process.name()
        user = process.username()
        command = _shown(process.cmdline()) or command
        ours = ours or "GSWARM_SERVICE" in process.environ()
    except (psutil.Error, OSError, KeyError):
        pass
    return user, command, ours


def _shown(words: list[str]) -> str:
    """Program and script, or module; their arguments may hold secrets and stay where they are."""
    if not words:
        return ""
    shown = PurePath(words[0]).name
    rest = words[1:]
    if "-m" in rest[:3] and (at := rest.index("-m")) + 1 < len(rest):
        shown += f" -m {rest[at + 1]}"
    elif rest and not rest[0].startswith("-") and "python" in shown:
        shown += f" {PurePath(rest[0]).name}"
    return shown[:COMMAND_LIMIT]
