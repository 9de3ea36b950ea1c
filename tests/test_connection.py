"""One attached agent's connection: order, back-pressure, how it ends, and that nothing of it stays behind."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine

import pytest

from gswarm.errors import ExhaustedError
from gswarm.host import connection as module
from gswarm.host.connection import Connection
from gswarm.v1 import agent_pb2


class Stream:
    """What an agent is sent and has had applied, while its gates are open."""

    def __init__(self) -> None:
        self.sent: list[int] = []
        self.applied: list[int] = []
        self.reads, self.applies = asyncio.Event(), asyncio.Event()
        self.fails: BaseException | None = None

    async def write(self, message: agent_pb2.AttachResponse) -> None:
        await self.reads.wait()
        if self.fails is not None:
            raise self.fails
        self.sent.append(message.ack.report_seq)

    async def apply(self, _: Connection, reports: list[agent_pb2.Report]) -> None:
        await self.applies.wait()
        if self.fails is not None:
            raise self.fails
        self.applied += [report.seq for report in reports]

    def connection(self) -> Connection:
        return Connection("n1", "one", "box", self.write, self.apply)


def ack(seq: int) -> agent_pb2.AttachResponse:
    return agent_pb2.AttachResponse(ack=agent_pb2.Ack(report_seq=seq))


def report(seq: int) -> agent_pb2.Report:
    return agent_pb2.Report(seq=seq)


async def hold(connection: Connection, reading: Coroutine[None, None, None]) -> None:
    async with connection:
        await reading


async def for_ever() -> None:
    await asyncio.Event().wait()


def others() -> int:
    return len(asyncio.all_tasks()) - 1


async def until(holds: Callable[[], bool]) -> None:
    """Let the loop go round until it is so; nothing here waits for a clock."""
    for _ in range(1_000):
        if holds():
            return
        await asyncio.sleep(0)
    raise AssertionError("it never came to that")


async def test_all_is_sent_and_applied_in_order_and_an_agent_with_nothing_to_do_has_no_task_of_its_own() -> None:
    stream = Stream()
    connection = stream.connection()
    stream.reads.set()
    stream.applies.set()

    async def reading() -> None:
        for first in (0, 10):
            for seq in range(first, first + 10):
                assert connection.send(ack(seq))
                await connection.report(report(seq))
            await until(lambda: not others())

    await hold(connection, reading())
    assert stream.sent == stream.applied == list(range(20))


async def test_an_agent_that_reads_nothing_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "OUTBOX_LIMIT", 10)
    stream = Stream()
    connection = stream.connection()

    async def reading() -> None:
        await until(lambda: not connection.send(ack(1)))
        await for_ever()

    await hold(connection, reading())
    assert not connection.send(ack(2)), "and is told nothing more"
    assert not others() and not stream.sent


async def test_reports_wait_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "OUTBOX_LIMIT", 10)
    stream = Stream()
    told = 0

    async def attach() -> None:
        connection = stream.connection()

        async def reading() -> None:
            nonlocal told
            for seq in range(100):
                await connection.report(report(seq))
                told += 1
            await until(lambda: len(stream.applied) == 100)

        await hold(connection, reading())

    held = asyncio.create_task(attach())
    with pytest.raises(AssertionError):
        await until(lambda: told >= 10)
    stream.applies.set()
    await held
    assert stream.applied == list(range(100))


async def test_the_agent_is_heard_again_after_each_group_that_is_applied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "OUTBOX_LIMIT", 10)
    monkeypatch.setattr(module, "GROUP", 4)
    stream = Stream()
    told = 0

    async def apply(_: Connection, reports: list[agent_pb2.Report]) -> None:
        await stream.applies.wait()
        stream.applies.clear()
        stream.applied += [report.seq for report in reports]

    async def attach() -> None:
        async def reading() -> None:
            nonlocal told
            for seq in range(30):
                await connection.report(report(seq))
                told += 1

        connection = Connection("n1", "one", "box", stream.write, apply)
        await hold(connection, reading())

    held = asyncio.create_task(attach())
    await until(lambda: told == 9)  # the tenth waits
    for groups in (1, 2, 3):
        stream.applies.set()
        await until(lambda groups=groups: told == 9 + 4 * groups)  # type: ignore[misc]
        assert stream.applied == list(range(4 * groups)), "one group made room"
    held.cancel()
    with pytest.raises(asyncio.CancelledError):
        await held
    assert not others()


async def test_what_keeps_reports_from_being_applied_ends_the_stream_and_is_told() -> None:
    stream = Stream()
    connection = stream.connection()
    stream.fails = ExhaustedError("the disk is full")
    stream.applies.set()
    await connection.report(report(1))
    with pytest.raises(ExhaustedError, match="full"):
        await hold(connection, for_ever())
    assert not others()


async def test_an_agent_that_has_gone_is_no_error() -> None:
    stream = Stream()
    connection = stream.connection()
    stream.fails = RuntimeError("the stream is done")
    stream.reads.set()
    connection.send(ack(1))
    await hold(connection, for_ever())
    assert not others()


async def test_cancelled_from_outside_it_leaves_nothing_behind() -> None:
    stream = Stream()

    async def attach() -> None:
        connection = stream.connection()
        connection.send(ack(1))
        await connection.report(report(1))
        await hold(connection, for_ever())

    task = asyncio.create_task(attach())
    await until(lambda: others() == 3)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not others()


async def test_a_cut_and_a_cancellation_at_once_are_a_cancellation() -> None:
    connection = Stream().connection()
    task = asyncio.current_task()
    assert task is not None

    async def reading() -> None:
        connection.cut()
        assert task is not None
        task.cancel()
        await for_ever()

    with pytest.raises(asyncio.CancelledError):
        await hold(connection, reading())
    task.uncancel()
