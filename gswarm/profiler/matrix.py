"""The ways between the GPUs of each node, from its devices, as `nvidia-smi topo -m` words them. Pure and light to import."""

from __future__ import annotations

from collections.abc import Iterable

from gswarm.cluster.types import Device, DeviceKind, DevicePath, PathKind
from gswarm.profiler.types import NodeTopology, Topology, TopologyRow

SELF = "X"
UNKNOWN = "?"
MEANINGS = {
    "NV#": "so many NVLinks, straight or through NVSwitch",
    "PIX": "at most one PCIe switch",
    "PXB": "several PCIe switches, no host bridge",
    "PHB": "a PCIe host bridge",
    "NODE": "host bridges of one NUMA node",
    "SYS": "between NUMA nodes",
}


def word(path: DevicePath) -> str:
    """`NV18`, `PIX`, `SYS` ..."""
    match path.kind:
        case PathKind.NVLINK:
            return f"NV{path.nvlinks}"
        case PathKind.UNKNOWN:
            return UNKNOWN
        case PathKind.INTERNAL:
            return "BOARD"
    return str(path.kind.value).upper()


def topology(devices: Iterable[Device]) -> Topology:
    """One matrix a node that has GPUs, in the order of their names."""
    by_node: dict[str, list[Device]] = {}
    for device in devices:
        if device.kind is not DeviceKind.CPU:
            by_node.setdefault(device.node, []).append(device)
    return Topology(tuple(_of_node(node, by_node[node]) for node in sorted(by_node)))


def _of_node(node: str, devices: list[Device]) -> NodeTopology:
    devices = sorted(devices, key=lambda device: device.index)
    return NodeTopology(node, tuple(_row(device, devices) for device in devices))


def _row(device: Device, devices: list[Device]) -> TopologyRow:
    ways = {path.index: word(path) for path in device.paths}
    return TopologyRow(
        device=device.alias.partition(":")[2],
        to=tuple(SELF if other is device else ways.get(other.index, UNKNOWN) for other in devices),
        cpu_affinity=device.cpu_affinity,
        numa_node=device.numa_node,
        simulated=device.kind is DeviceKind.SIMULATED,
    )
