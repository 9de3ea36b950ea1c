"""Delivery: each sink has a durable outbox in the store, in order, tried again with growing pauses, bounded."""

from __future__ import annotations

import asyncio
import logging
import random
from collections import deque
from collections.abc import Mapping

from gswarm.alert.sinks import DeliveryError, Sink
from gswarm.errors import ExhaustedError
from gswarm.host.store import Store
from gswarm.host.transaction import Transaction
from gswarm.v1 import common_pb2

log = logging.getLogger("gswarm.host")
LIMIT = 1_000
"""Undelivered alerts kept a sink; the oldest go first."""
PAUSE_S = (1.0, 300.0)
_PREFIX = "alert.outbox."


def post(tx: Transaction, sink: str, body: bytes) -> str:
    """Put an alert into a sink's outbox, in the transaction that changes the alert; its key."""
    key = f"{_PREFIX}{sink}.{tx.next_id('alert.outbox'):012d}"
    tx.put_value(key, body)
    return key


class Courier:
    """Empties one sink's outbox. What was not confirmed before the host ended is sent again after it starts."""

    def __init__(self, store: Store, sink: Sink, *, attempts: int, pause_s: tuple[float, float] = PAUSE_S) -> None:
        self.sink = sink
        self._store, self._attempts, self._pause_s = store, attempts, pause_s
        self._waiting: deque[tuple[str, bytes]] = deque()
        self._wake = asyncio.Event()

    def take(self, posted: Mapping[str, bytes]) -> None:
        """Deliver these too, by key; they are in the store already."""
        self._waiting.extend(posted.items())
        self._wake.set()

    async def run(self) -> None:
        """Deliver until cancelled."""
        prefix = f"{_PREFIX}{self.sink.name}."
        left = await self._store.apply(lambda tx: list(tx.list_values(prefix)), actor="host", durable=False)
        known = {key for key, _ in self._waiting}
        self._waiting.extendleft(reversed([item for item in left if item[0] not in known]))
        while True:
            await self._drop_oldest()
            if not self._waiting:
                self._wake.clear()
                await self._wake.wait()
                continue
            key, body = self._waiting.popleft()
            problem = await self._deliver(body)
            await self._done([key], problem and f"an alert was not delivered: {problem}")

    async def _deliver(self, body: bytes) -> str:
        """What prevented it after all attempts; empty when it arrived."""
        pause, longest = self._pause_s
        for attempt in range(1, self._attempts + 1):
            try:
                await self.sink.send(body)
                return ""
            except DeliveryError as error:
                problem = error.what
                if error.is_final or attempt == self._attempts:
                    break
                log.info("alert delivery: %s; trying again", problem)
            await asyncio.sleep(pause * random.uniform(0.8, 1.2))
            pause = min(pause * 2, longest)
        return problem

    async def _drop_oldest(self) -> None:
        if len(self._waiting) <= LIMIT:
            return
        dropped = [self._waiting.popleft()[0] for _ in range(len(self._waiting) - LIMIT)]
        await self._done(dropped, f"{len(dropped)} alerts were not delivered: more than {LIMIT} waited")

    async def _done(self, keys: list[str], problem: str) -> None:
        def operation(tx: Transaction) -> None:
            for key in keys:
                tx.put_value(key, None)
            if problem:
                severity = common_pb2.SEVERITY_WARNING
                tx.event("alert.undelivered", f"{self.sink.name}: {problem}", severity=severity)

        while True:
            try:
                return await self._store.apply(operation, actor="host", method="alert-delivered")
            except ExhaustedError:
                # Told already: it must not be told again only because the disk is full.
                await asyncio.sleep(self._pause_s[1])
