"""The NVIDIA GPUs of this machine, found without waiting for a driver that hangs; who hears of their XIDs."""

from __future__ import annotations

import atexit
import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gswarm.profiler.gpu import Gpu, Mute

log = logging.getLogger("gswarm.agent")
DISCOVERY_S = 10.0
"""A driver that does not say in this time what there is counts as hung."""
TOPOLOGY_S = 5.0
XidListener = Callable[["Gpu", int], None]
"""Called in a thread of NVML's events."""


def discover(node: str, extra: Sequence[str] = (), on_xid: XidListener | None = None) -> list[Gpu | Mute]:
    """The GPUs of this machine; none without a driver. MIG instances stand for their GPU.

    `extra` names properties of nvitop's Device to sample as well. Blocks at most twice DISCOVERY_S and TOPOLOGY_S,
    whatever the driver does.
    """
    from nvitop import Device, libnvml

    from gswarm.profiler.gpu import Gpu, Mute
    from gswarm.profiler.xids import WHOLE_GPU, Xids

    # Told in our words; nvitop writes a red FATAL ERROR on every machine that simply has no GPU.
    logging.getLogger(libnvml.LOGGER.name).setLevel(logging.CRITICAL + 1)
    found: list[Gpu | Mute] = []

    def heard(uuid: str, instance: int, number: int) -> None:
        for gpu in found:
            if not isinstance(gpu, Gpu) or gpu.physical_id != uuid:
                continue
            # What concerns a whole GPU in MIG mode concerns every instance of it.
            if gpu.gpu_instance is None or instance in (gpu.gpu_instance, WHOLE_GPU):
                gpu.hear_xid(number)
                if on_xid is not None:
                    on_xid(gpu, number)

    xids = Xids(heard) if on_xid is not None else None

    def leaves(index: int) -> list[Any]:
        device = Device(index)
        if device.handle is None:
            raise libnvml.NVMLError_GpuIsLost
        return [Gpu(node, index, leaf, extra, xids) for leaf in device.to_leaf_devices()]

    counted, told = _Answer(_count).wait(time.monotonic() + DISCOVERY_S)
    # At its exit nvitop waits two minutes for a call that hangs, to shut NVML down; the system does that as well.
    if wait_at_exit := getattr(libnvml, "_atexit_shutdown", None):
        atexit.unregister(wait_at_exit)
    if counted is None:
        log.log(logging.INFO if "not found" in told.lower() else logging.WARNING, "no NVIDIA GPUs: %s", told)
        return []
    answers = [_Answer(partial(leaves, index)) for index in range(counted)]
    until = time.monotonic() + DISCOVERY_S
    for answer in answers:
        gpus, told = answer.wait(until)
        if gpus is None:
            log.warning("GPU %d: %s", len(found), told)
            gpus = [Mute(node, len(found), told)]
        for gpu in gpus:
            gpu.index = len(found)
            found.append(gpu)
    _ask_topology([gpu for gpu in found if isinstance(gpu, Gpu)])
    return found


def _count() -> int:
    from nvitop import libnvml

    # Initialises NVML on the way.
    return int(libnvml.nvmlQuery("nvmlDeviceGetCount", ignore_errors=False))


def _ask_topology(gpus: Sequence[Gpu]) -> None:
    """How they reach each other; nothing of one that does not answer in time."""
    from gswarm.profiler import topology

    until = time.monotonic() + TOPOLOGY_S
    asked = [_Answer(partial(topology.Links, gpu.physical)) for gpu in gpus]
    links = [answer.wait(until)[0] for answer in asked]
    handles = [gpu.physical if known is not None else None for gpu, known in zip(gpus, links, strict=True)]

    def surroundings(place: int) -> Any:
        gpu = gpus[place]
        ways = topology.paths(place, handles, links)
        for way in ways:
            way.index = gpus[way.index].index
        return ways, topology.cpu_affinity(gpu.physical), topology.numa_node(gpu.physical)

    answers = [_Answer(partial(surroundings, i)) if handle is not None else None for i, handle in enumerate(handles)]
    for gpu, answer in zip(gpus, answers, strict=True):
        told = answer.wait(until)[0] if answer is not None else None
        if told is not None:
            gpu.paths, gpu.cpu_affinity, gpu.numa_node = told


class _Answer:
    """What a driver call gives, from a daemon thread of its own that is left behind if the call hangs."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self._call = call
        self._told: queue.SimpleQueue[tuple[Any, str]] = queue.SimpleQueue()
        threading.Thread(target=self._run, name="nvml-discovery", daemon=True).start()

    def _run(self) -> None:
        try:
            self._told.put((self._call(), ""))
        except Exception as error:  # a driver may raise anything
            self._told.put((None, str(error)))

    def wait(self, until: float) -> tuple[Any, str]:
        """Its result, or None and why there is none."""
        try:
            return self._told.get(timeout=max(0.0, until - time.monotonic()))
        except queue.Empty:
            return None, f"the driver did not answer in {DISCOVERY_S:.0f} s"
