"""How the GPUs of a machine reach each other, and which CPUs are near: asked of NVML once, when the agent starts."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from nvitop import libnvml

from gswarm.v1 import cluster_pb2
from gswarm.v1.cluster_pb2 import DevicePath

MAX_LINKS = 36
"""NVML_NVLINK_MAX_LINKS."""
_SWITCH = 2
"""NVML_NVLINK_DEVICE_TYPE_SWITCH."""
_KINDS = {
    0: cluster_pb2.PATH_KIND_INTERNAL,
    10: cluster_pb2.PATH_KIND_PIX,
    20: cluster_pb2.PATH_KIND_PXB,
    30: cluster_pb2.PATH_KIND_PHB,
    40: cluster_pb2.PATH_KIND_NODE,
    50: cluster_pb2.PATH_KIND_SYS,
}
"""By nvmlGpuTopologyLevel_t."""
_WORD = 64


class Links:
    """What the NVLinks of one GPU lead to: other GPUs by PCI bus id, and how many to NVSwitches."""

    def __init__(self, handle: Any) -> None:
        self.bus_id = _bus_id(libnvml.nvmlDeviceGetPciInfo(handle))
        self.to_bus: dict[str, int] = {}
        self.to_switches = 0
        for link in range(MAX_LINKS):
            try:
                if not libnvml.nvmlDeviceGetNvLinkState(handle, link):
                    continue
                if _leads_to_switch(handle, link):
                    self.to_switches += 1
                    continue
                bus_id = _bus_id(libnvml.nvmlDeviceGetNvLinkRemotePciInfo(handle, link))
            except libnvml.NVMLError:
                continue  # there is no such link, or it is down
            self.to_bus[bus_id] = self.to_bus.get(bus_id, 0) + 1

    def to(self, other: Links) -> int:
        """NVLinks that join the two: straight ones, or as many as both have to the switches between."""
        return self.to_bus.get(other.bus_id, 0) or min(self.to_switches, other.to_switches)


def paths(index: int, handles: Sequence[Any], links: Sequence[Links | None]) -> list[DevicePath]:
    """The ways from one GPU to each of the others; `index` is its place in `handles`, whose places they are numbered by."""
    mine = links[index]
    found = []
    for other, handle in enumerate(handles):
        theirs = links[other]
        if other == index or handle is None:
            continue
        nvlinks, kind = 0, cluster_pb2.PATH_KIND_INTERNAL
        if mine is None or theirs is None or mine.bus_id != theirs.bus_id:  # else two MIG instances of one GPU
            nvlinks = mine.to(theirs) if mine is not None and theirs is not None else 0
            kind = cluster_pb2.PATH_KIND_NVLINK if nvlinks else _pcie(handles[index], handle)
        found.append(DevicePath(index=other, kind=kind, nvlinks=nvlinks))
    return found


def cpu_affinity(handle: Any) -> str:
    """CPUs near to a GPU as `0-31,64-95`; empty when NVML does not tell."""
    words = ((os.cpu_count() or 1) + _WORD - 1) // _WORD
    try:
        return ranges(_bits(libnvml.nvmlDeviceGetCpuAffinity(handle, words)))
    except libnvml.NVMLError:
        return ""


def numa_node(handle: Any) -> int | None:
    """The NUMA node whose memory is nearest; None when NVML does not tell, or it is not one."""
    try:
        nodes = _bits(libnvml.nvmlDeviceGetMemoryAffinity(handle, 1, 0))
    except libnvml.NVMLError:
        return None
    return nodes[0] if len(nodes) == 1 else None


def ranges(numbers: Sequence[int]) -> str:
    """Ascending numbers as `0-3,8`."""
    spans: list[tuple[int, int]] = []
    for number in numbers:
        if spans and spans[-1][1] == number - 1:
            spans[-1] = (spans[-1][0], number)
        else:
            spans.append((number, number))
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in spans)


def _bits(words: Sequence[int]) -> list[int]:
    return [i * _WORD + bit for i, word in enumerate(words) for bit in range(_WORD) if word >> bit & 1]


def _pcie(one: Any, other: Any) -> cluster_pb2.PathKind.ValueType:
    try:
        level = libnvml.nvmlDeviceGetTopologyCommonAncestor(one, other)
    except libnvml.NVMLError:
        return cluster_pb2.PATH_KIND_UNKNOWN
    return _KINDS.get(level, cluster_pb2.PATH_KIND_UNKNOWN)


def _leads_to_switch(handle: Any, link: int) -> bool:
    try:
        return bool(libnvml.nvmlDeviceGetNvLinkRemoteDeviceType(handle, link) == _SWITCH)
    except libnvml.NVMLError:
        return False  # drivers before 465 do not tell; their switches have bus ids of their own


def _bus_id(pci: Any) -> str:
    raw = pci.busId
    return (raw.decode() if isinstance(raw, bytes) else str(raw)).lower()
