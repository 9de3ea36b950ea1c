"""What agents change in the store by being there or not: nodes, their devices, the numbers of their reports."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping
from datetime import timedelta

from gswarm import __version__
from gswarm.errors import RefusedError
from gswarm.host.clocks import Offset
from gswarm.host.connection import Connection
from gswarm.host.transaction import Transaction
from gswarm.v1 import agent_pb2, cluster_pb2, common_pb2
from gswarm.v1.cluster_pb2 import Device, Node
from gswarm.v1.models_pb2 import Placement, Service

SILENT_BEATS = 3
FINE_US = 5_000
HelloHandler = Callable[[Transaction, str, agent_pb2.Hello], None]


def join(hello: agent_pb2.Hello, detail: str, handlers: Iterable[HelloHandler]) -> Callable[[Transaction], int]:
    """The node is here; gives the last report of its outbox that was applied."""

    def operation(tx: Transaction) -> int:
        name = hello.node.name
        node = Node()
        node.CopyFrom(hello.node)
        known = tx.get(Node, name)
        node.phase, node.detail = cluster_pb2.NODE_PHASE_READY, detail
        if known is not None and known.HasField("clock_offset_us"):
            node.clock_offset_us, node.clock_error_us = known.clock_offset_us, known.clock_error_us
        if known is not None and known.HasField("joined_at"):
            node.joined_at.CopyFrom(known.joined_at)
        else:
            node.joined_at.FromDatetime(tx.now)
        node.ClearField("sampling")
        if known is not None:
            node.sampling.extend(known.sampling)
        node.last_seen.FromDatetime(tx.now)
        tx.put(node)
        put_devices(tx, name, list(hello.devices))
        if known is None or known.phase != cluster_pb2.NODE_PHASE_READY or known.incarnation != node.incarnation:
            what = "joined" if known is None else "is back"
            tx.event("node.ready", f"{name} {what} with {len(hello.devices)} devices", subject=node)
        if detail and (known is None or known.detail != detail):
            tx.event("node.skew", f"{name}: {detail}", subject=node, severity=common_pb2.SEVERITY_WARNING)
        for handler in handlers:
            handler(tx, name, hello)
        return stored_seq(tx, name, hello.outbox)

    return operation


def stored_seq(tx: Transaction, node: str, outbox: str) -> int:
    """The last report of an outbox that was applied; 0 for another outbox."""
    known, _, seq = (tx.get_value(f"reports:{node}") or b"").decode().rpartition(" ")
    return int(seq) if known == outbox and seq else 0


def store_seq(tx: Transaction, connection: Connection, seq: int) -> None:
    """Remember it, in the transaction that applies the reports."""
    tx.put_value(f"reports:{connection.node}", f"{connection.outbox} {seq}".encode())


def fenced(tx: Transaction, connection: Connection) -> bool:
    """Whether another incarnation speaks for the node by now, or nothing does."""
    node = tx.get(Node, connection.node)
    return node is None or node.incarnation != connection.incarnation


def concerns(tx: Transaction, name: str, report: agent_pb2.Report) -> bool:
    """Whether a report is about something of this node as it is wanted now: not gone, not another's, not outdated."""
    known: Service | Placement | None
    match report.WhichOneof("body"):
        case "service":
            told: agent_pb2.ServiceReport | agent_pb2.PlacementReport = report.service
            known = tx.get(Service, report.service.name)
        case "placement":
            told, known = report.placement, tx.get(Placement, report.placement.id)
        case "location":
            return report.location.location.node == name
        case _:
            return True
    return known is not None and known.node == name and told.observed_generation >= known.observed_generation


def put_devices(tx: Transaction, node: str, devices: list[Device]) -> None:
    """These are the devices of a node, all of them."""
    told = {device.id: device for device in devices if device.node == node}
    for device in list(told.values()):
        before = tx.get(Device, device.id)
        owner = tx.get(Node, before.node) if before is not None and before.node != node else None
        if before is not None and owner is not None and owner.phase == cluster_pb2.NODE_PHASE_READY:
            # One device has one node: the one that had it first, while that is there.
            del told[device.id]
            text = f"{device.alias} is left out: {before.alias} is the same device"
            tx.event("device.claimed", text, subject=before, severity=common_pb2.SEVERITY_WARNING)
    for known in list(tx.list(Device)):
        if known.node == node and known.id not in told:
            tx.delete(Device, known.id)
    changed = []
    for device in told.values():
        before = tx.get(Device, device.id)
        if before is not None:
            device.changed_at.CopyFrom(before.changed_at)
        if before is None or device != before:
            device.changed_at.CopyFrom(tx.stamp)
            changed.append(device)
        if before is not None and before.phase != device.phase and device.phase == cluster_pb2.DEVICE_PHASE_LOST:
            text = f"{device.alias}: {device.detail}"
            tx.event("device.lost", text, subject=device, severity=common_pb2.SEVERITY_ERROR)
    # Copied together, and once they are complete, they take half the memory that they do one by one.
    for device in agent_pb2.DevicesReport(devices=changed).devices:
        tx.put(device)


def put_processes(tx: Transaction, node: str, told: agent_pb2.DeviceProcesses) -> None:
    """What runs on a device of this node now."""
    device = tx.edit(Device, told.device_id)
    if device is None or device.node != node:
        return
    # Merged, for a field of a message that was touched while empty costs that message memory as long as it is kept.
    device.ClearField("processes")
    device.MergeFrom(Device(processes=told.processes))
    tx.put(device)


def lost(name: str, silent_s: float) -> Callable[[Transaction], None]:
    """The node was silent for too long; its services keep their phase."""

    def operation(tx: Transaction) -> None:
        node = tx.edit(Node, name)
        if node is None or node.phase != cluster_pb2.NODE_PHASE_READY:
            return
        node.phase = cluster_pb2.NODE_PHASE_UNREACHABLE
        node.detail = f"silent for {SILENT_BEATS} heartbeats"
        node.last_seen.FromDatetime(tx.now - timedelta(seconds=silent_s))
        tx.put(node)
        tx.event("node.unreachable", f"{name} is silent", subject=node, severity=common_pb2.SEVERITY_ERROR)

    return operation


def clocks(offsets: Mapping[str, Offset]) -> Callable[[Transaction], None]:
    """What nodes' clocks differ by, where that is news."""

    def operation(tx: Transaction) -> None:
        for name, offset in offsets.items():
            node = tx.edit(Node, name)
            if node is not None and is_news(node, offset):
                node.clock_offset_us, node.clock_error_us = offset.us, offset.error_us
                tx.put(node)

    return operation


def is_news(node: Node, offset: Offset) -> bool:
    """Whether an offset says more than what is known: nothing was, it lies elsewhere, or it is four times as sure.

    Better than a few milliseconds no one needs: samples lie further apart.
    """
    if not node.HasField("clock_offset_us"):
        return True
    moved = abs(node.clock_offset_us - offset.us)
    surer = offset.error_us * 4 < node.clock_error_us and node.clock_error_us > FINE_US
    return moved > node.clock_error_us + offset.error_us or surer


def left(connection: Connection, reason: str) -> Callable[[Transaction], None]:
    """The agent said goodbye."""

    def operation(tx: Transaction) -> None:
        node = tx.edit(Node, connection.node)
        if node is None or fenced(tx, connection):
            return
        node.phase, node.detail = cluster_pb2.NODE_PHASE_LEFT, reason
        node.last_seen.FromDatetime(tx.now)
        tx.put(node)
        tx.event("node.left", f"{node.name} left: {reason or 'stopped'}", subject=node)

    return operation


def skew(version: str) -> str:
    """What to say of an agent's version; one minor older or newer is taken. Raises RefusedError beyond."""
    with contextlib.suppress(ValueError):
        ours, theirs = ([int(part) for part in text.split(".")[:2]] for text in (__version__, version))
        if ours == theirs:
            return ""
        if ours[0] == theirs[0] and abs(ours[1] - theirs[1]) <= 1:
            return f"runs gswarm {version}, the host {__version__}"
    raise RefusedError(
        f"an agent of gswarm {version or '?'} cannot attach to a host of {__version__}",
        next="upgrade the older of the two",
    )
