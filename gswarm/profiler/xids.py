"""XID errors: one event set that a thread of its own waits on; what comes is an event, and the device's `xid_last`."""

from __future__ import annotations

import ctypes
import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from nvitop import libnvml

from gswarm.profiler.metrics import UNSUPPORTED, Absent, Cadence, Group, Reading
from gswarm.profiler.nvml_sources import NEVER

log = logging.getLogger("gswarm.agent")
WAIT_MS = 5_000
PAUSE_S = 5.0
_XID = libnvml.nvmlEventTypeXidCriticalError
WHOLE_GPU = 2**32 - 1
"""What NVML gives for a GPU instance that an event has not."""
_NONE = Absent("none since the agent started")
# NVIDIA, "XID Errors" (docs.nvidia.com/deploy/xid-errors): those met most.
MEANINGS = {
    8: "GPU stopped processing",
    13: "graphics engine exception",
    31: "GPU memory page fault",
    32: "invalid or corrupted push buffer",
    38: "driver firmware error",
    43: "GPU stopped processing",
    44: "graphics engine fault",
    45: "preemptive cleanup, a previous error ended it",
    48: "double-bit ECC error",
    61: "internal micro-controller breakpoint",
    62: "internal micro-controller halt",
    63: "ECC page retirement or row remapping recorded",
    64: "ECC page retirement or row remapping failed",
    68: "NVDEC exception",
    69: "graphics engine class error",
    74: "NVLink error",
    79: "GPU has fallen off the bus",
    92: "high single-bit ECC error rate",
    94: "contained ECC error",
    95: "uncontained ECC error",
    109: "context switch timeout",
    119: "GSP RPC timeout",
    120: "GSP error",
    121: "C2C link error",
    140: "unrecovered ECC error",
}
BY_PROGRAM = frozenset({8, 13, 31, 32, 43, 44, 45, 68, 69})
"""Those that a program's own fault brings about as well."""


class Xids:
    """The event set of a node's GPUs. `told` is called in its thread with a device's NVML UUID, GPU instance and the XID."""

    def __init__(self, told: Callable[[str, int, int], None]) -> None:
        self._told = told
        self._set: Any = None
        self._is_heard = False
        self._lock = threading.Lock()
        self._uuids: dict[int | None, str] = {}
        """By handle: a GPU that has fallen off the bus, which is an XID, does not tell its UUID any more."""

    def register(self, handle: Any, uuid: str) -> None:
        """Hear of this device too; starts the thread with the first. Raises NVMLError where there are no events."""
        if self._set is None:
            made = libnvml.nvmlEventSetCreate()  # not under the lock: a driver that hangs here holds up no other device
            with self._lock:
                self._set = self._set or made
        libnvml.nvmlDeviceRegisterEvents(handle, _XID, self._set)
        with self._lock:
            self._uuids[_address(handle)] = uuid
            if not self._is_heard:
                self._is_heard = True
                threading.Thread(target=self._wait, name="nvml-xids", daemon=True).start()

    def _wait(self) -> None:
        while True:
            try:
                event = libnvml.nvmlEventSetWait_v2(self._set, WAIT_MS)
                uuid = self._uuids.get(_address(event.device)) or libnvml.nvmlDeviceGetUUID(event.device)
                self._told(uuid, event.gpuInstanceId, event.eventData)
            except libnvml.NVMLError_Timeout:
                continue
            except libnvml.NVMLError as error:
                log.warning("XIDs cannot be waited for: %s", error)
                time.sleep(PAUSE_S)


def _address(handle: Any) -> int | None:
    return ctypes.cast(handle, ctypes.c_void_p).value


class LastXid:
    """A device's source of `xid_last`; registers it in its own thread, so that a driver that hangs holds up no other."""

    metrics: tuple[str, ...] = ("xid_last",)
    cadence = Cadence.TICK
    group: Group | None = None

    def __init__(self, handle: Any, uuid: str, xids: Xids) -> None:
        """Handle and UUID are those of the whole GPU, for a MIG device too."""
        self._handle, self._uuid, self._xids = handle, uuid, xids
        self._is_registered = False
        self.last: int | None = None

    def read(self, into: Reading) -> bool:
        """The last number heard of."""
        if not self._is_registered:
            try:
                self._xids.register(self._handle, self._uuid)
            except NEVER:
                into["xid_last"] = UNSUPPORTED
                return False
            except libnvml.NVMLError as error:
                into["xid_last"] = Absent(str(error))
                return True
            self._is_registered = True
        into["xid_last"] = _NONE if self.last is None else self.last
        return True
