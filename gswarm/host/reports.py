"""What agents report, applied once and in order by the rooms that it concerns; what cannot be applied is put on record."""

from __future__ import annotations

import logging
from collections.abc import Callable

from gswarm.errors import ExhaustedError, GswarmError, UnreachableError
from gswarm.host.connection import Connection
from gswarm.host.membership import concerns, fenced, put_devices, put_processes, store_seq, stored_seq
from gswarm.host.store import Store
from gswarm.host.transaction import Transaction
from gswarm.kinds import BY_KIND
from gswarm.v1 import agent_pb2, common_pb2
from gswarm.v1.cluster_pb2 import Node

log = logging.getLogger("gswarm.host")
ReportHandler = Callable[[Transaction, str, agent_pb2.Report], None]
ProgressHandler = Callable[[Transaction, str, agent_pb2.Progress], None]


class Reports:
    """The lane of what happened. Rooms register handlers for their part."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._handlers: dict[str, ReportHandler] = {}
        self._progress: list[ProgressHandler] = []
        self.handle("devices", _devices)
        self.handle("event", _event)
        self.handle_progress(_processes)

    def handle(self, slot: str, handler: ReportHandler) -> None:
        """Apply reports with this body; runs in the transaction that stores their sequence number."""
        if slot in self._handlers:
            raise ValueError(f"reports of {slot} have a handler")
        self._handlers[slot] = handler

    def handle_progress(self, handler: ProgressHandler) -> None:
        """See every progress message; runs in a transaction that is not written to disk."""
        self._progress.append(handler)

    async def progress(self, connection: Connection, told: agent_pb2.Progress) -> None:
        """Hand a progress message to all who see them."""

        def operation(tx: Transaction) -> None:
            if not fenced(tx, connection):
                for handler in self._progress:
                    handler(tx, connection.node, told)

        await self._store.apply(operation, actor=f"node:{connection.node}", durable=False)

    async def apply(self, connection: Connection, group: list[agent_pb2.Report]) -> None:
        """Apply them in one transaction, then acknowledge. Raises UnreachableError or ExhaustedError when the host
        cannot take anything now: the agent keeps them and tells again.
        """
        try:
            seq = await self._apply(connection, self.operation(connection, group))
        except (UnreachableError, ExhaustedError):
            raise
        except Exception:
            # One bad report must not block those behind it for ever: find it, and put it on record instead.
            for report in group:
                seq = await self._apply_or_record(connection, report)
        connection.send(agent_pb2.AttachResponse(ack=agent_pb2.Ack(report_seq=seq)))

    async def _apply(self, connection: Connection, operation: Callable[[Transaction], int]) -> int:
        return await self._store.apply(operation, actor=f"node:{connection.node}", method="report")

    async def _apply_or_record(self, connection: Connection, report: agent_pb2.Report) -> int:
        try:
            return await self._apply(connection, self.operation(connection, [report]))
        except (UnreachableError, ExhaustedError):
            raise
        except Exception as error:
            slot = report.WhichOneof("body") or "empty"
            log.exception("a %s report of node %s cannot be applied", slot, connection.node)
            why = str(error) if isinstance(error, GswarmError) else f"{type(error).__name__}, see gswarm logs host"

            def record(tx: Transaction) -> int:
                if not fenced(tx, connection) and report.seq > stored_seq(tx, connection.node, connection.outbox):
                    text = f"a {slot} report of {connection.node} was not applied: {why}"
                    node = tx.get(Node, connection.node)
                    tx.event("report.refused", text, subject=node, severity=common_pb2.SEVERITY_ERROR)
                    store_seq(tx, connection, report.seq)
                return stored_seq(tx, connection.node, connection.outbox)

            return await self._apply(connection, record)

    def operation(self, connection: Connection, group: list[agent_pb2.Report]) -> Callable[[Transaction], int]:
        """Applies what of these is new and concerns the node; gives the last report that is applied then."""

        def operation(tx: Transaction) -> int:
            last = stored_seq(tx, connection.node, connection.outbox)
            if fenced(tx, connection):
                return last
            for report in group:
                if report.seq <= last:
                    continue  # told again after a cut
                last = report.seq
                slot = report.WhichOneof("body") or ""
                if not concerns(tx, connection.node, report):
                    continue
                if handler := self._handlers.get(slot):
                    handler(tx, connection.node, report)
                else:
                    log.warning("node %s reported %r, which this host does not know", connection.node, slot)
            store_seq(tx, connection, last)
            return last

        return operation


def _devices(tx: Transaction, node: str, report: agent_pb2.Report) -> None:
    put_devices(tx, node, list(report.devices.devices))


def _processes(tx: Transaction, node: str, progress: agent_pb2.Progress) -> None:
    for told in progress.processes:
        put_processes(tx, node, told)


def _event(tx: Transaction, node: str, report: agent_pb2.Report) -> None:
    told = report.event
    subject = None
    if (info := BY_KIND.get(told.subject_kind)) and info.key_field and told.subject:
        subject = info.message(**{info.key_field: told.subject})
    tx.event(told.type, told.message, subject=subject, severity=told.severity or common_pb2.SEVERITY_INFO)
