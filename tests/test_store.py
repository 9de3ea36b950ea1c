"""The store: what was acknowledged is there after any end of the host, in one order, once."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import sqlite3
import subprocess
import sys
import tempfile
import textwrap
import threading
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gswarm.errors import ExhaustedError, GswarmError, NotFoundError, RefusedError
from gswarm.host import database
from gswarm.host.state import Batch
from gswarm.host.store import Store
from gswarm.host.transaction import Operation, Transaction
from gswarm.v1 import cluster_pb2, common_pb2, models_pb2, queue_pb2


def node(name: str, cores: int = 0) -> cluster_pb2.Node:
    return cluster_pb2.Node(name=name, cpu_count=cores)


def put(*names: str, cores: int = 0) -> Operation[int]:
    def operation(tx: Transaction) -> int:
        for name in names:
            tx.put(node(name, cores))
        return tx.revision

    return operation


def remove(name: str) -> Operation[int]:
    def operation(tx: Transaction) -> int:
        tx.delete(cluster_pb2.Node, name)
        return tx.revision

    return operation


def nodes(store: Store) -> dict[str, int]:
    return {found.name: found.cpu_count for found in store.state.list(cluster_pb2.Node)}


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.sampled_from("abc"), st.integers(1, 9)),
        st.tuples(st.just("delete"), st.sampled_from("abc"), st.just(0)),
        st.tuples(st.just("value"), st.sampled_from("abc"), st.integers(0, 9)),  # 0 removes it
        st.tuples(st.just("count"), st.just("n"), st.just(0)),
        st.tuples(st.just("fail"), st.sampled_from("abc"), st.integers(1, 9)),
    ),
    max_size=12,
)


def step(verb: str, name: str, number: int) -> Operation[int]:
    """An operation of the kind named; `fail` changes everything, then raises."""

    def operation(tx: Transaction) -> int:
        if verb in ("put", "fail"):
            tx.put(node(name, number))
        if verb == "delete":
            tx.delete(cluster_pb2.Node, name)
        if verb in ("value", "fail"):
            tx.put_value(name, bytes([number]) if number else None)
        if verb in ("count", "fail"):
            number_now = tx.next_id("n")
            if verb == "count":
                return number_now
        if verb == "fail":
            raise RefusedError("no")
        return 0

    return operation


@settings(max_examples=60, deadline=None)
@given(groups=st.lists(STEPS, min_size=1, max_size=3))
def test_after_any_operations_in_any_groups_disk_and_memory_agree(groups: list[list[tuple[str, str, int]]]) -> None:
    """Each inner list is handed over at once, so that the writer commits some of it together."""
    objects: dict[str, int] = {}
    values: dict[str, int] = {}
    counted: list[int] = []
    for verb, name, number in (item for group in groups for item in group):
        if verb == "put":
            objects[name] = number
        elif verb == "delete":
            objects.pop(name, None)
        elif verb == "value":
            values.pop(name, None)
            if number:
                values[name] = number
        elif verb == "count":
            counted.append(len(counted) + 1)

    async def scenario(directory: Path) -> None:
        given_numbers = []
        async with Store(directory) as store:
            for group in groups:
                running = [store.apply(step(*item), actor="t") for item in group]
                results = await asyncio.gather(*running, return_exceptions=True)
                assert [isinstance(r, RefusedError) for r in results] == [verb == "fail" for verb, _, _ in group]
                given_numbers += [r for r, (verb, _, _) in zip(results, group, strict=True) if verb == "count"]
            assert given_numbers == counted
            assert nodes(store) == objects
        async with Store(directory) as store:
            assert nodes(store) == objects
            kept = await store.apply(lambda tx: dict(tx.list_values("")), actor="t", durable=False)
            assert {name: value[0] for name, value in kept.items()} == values
            assert await store.apply(step("count", "n", 0), actor="t") == len(counted) + 1

    with tempfile.TemporaryDirectory() as directory:
        asyncio.run(scenario(Path(directory)))


async def test_batches_come_whole_in_order_and_revisions_never_go_back(tmp_path: Path) -> None:
    seen: list[Batch] = []
    async with Store(tmp_path) as store:
        store.subscribe(seen.append)
        await asyncio.gather(*(store.apply(put(f"a{i}", f"b{i}"), actor="t") for i in range(50)))
    revisions = [batch.revision for batch in seen]
    assert revisions == sorted(set(revisions))
    assert [{change.key for change in batch.changes} for batch in seen] == [{f"a{i}", f"b{i}"} for i in range(50)]
    async with Store(tmp_path) as store:
        assert store.state.revision > revisions[-1], "a later start is later"


async def test_a_listener_sees_the_state_of_its_batch(tmp_path: Path) -> None:
    async with Store(tmp_path) as store:
        told: list[tuple[int, int]] = []
        store.subscribe(lambda batch: told.append((batch.revision, store.state.revision)))
        revisions = await asyncio.gather(*(store.apply(put("n", cores=i), actor="t") for i in range(20)))
        assert told == [(revision, revision) for revision in revisions]


async def test_an_operation_that_fails_leaves_nothing_and_the_writer_goes_on(tmp_path: Path) -> None:
    def broken(tx: Transaction) -> int:
        tx.put(node("half"))
        tx.event("node.joined", "half")
        return 1 // 0

    async with Store(tmp_path) as store:
        results = await asyncio.gather(
            store.apply(put("before"), actor="t"),
            store.apply(broken, actor="t"),
            store.apply(put("after"), actor="t"),
            return_exceptions=True,
        )
        assert isinstance(results[1], ZeroDivisionError)
        assert set(nodes(store)) == {"before", "after"}
        assert not list(store.state.list(common_pb2.Event))


def create(name: str) -> Operation[models_pb2.DeleteModelResponse]:
    """Something with a reply that fails when done twice."""

    def operation(tx: Transaction) -> models_pb2.DeleteModelResponse:
        if tx.get(cluster_pb2.Node, name):
            raise RefusedError("there is one")
        tx.put(node(name))
        return models_pb2.DeleteModelResponse(revision=tx.revision)

    return operation


async def ask(store: Store, name: str, request_id: str, actor: str = "t") -> int:
    request = models_pb2.DeleteModelRequest(name=name)
    meta = common_pb2.RequestMeta(request_id=request_id)
    reply = await store.apply(create(name), actor=actor, meta=meta, method="Models.Delete", request=request)
    return reply.revision


async def test_a_retry_is_answered_also_after_a_restart(tmp_path: Path) -> None:
    async with Store(tmp_path) as store:
        first, again = await asyncio.gather(ask(store, "n1", "r1"), ask(store, "n1", "r1"))
        assert first == again
    async with Store(tmp_path) as store:
        assert await ask(store, "n1", "r1") == first
        with pytest.raises(RefusedError, match="another request"):
            await ask(store, "n2", "r1")
        assert await ask(store, "n2", "r1", actor="someone else") > first, "ids of two callers do not meet"
        with pytest.raises(RefusedError, match="there is one"):
            await ask(store, "n1", "r2")


async def test_what_failed_can_be_tried_again_under_the_same_id(tmp_path: Path) -> None:
    async with Store(tmp_path) as store:
        await store.apply(put("n1"), actor="t")
        with pytest.raises(RefusedError, match="there is one"):
            await ask(store, "n1", "r1")
        await store.apply(remove("n1"), actor="t")
        assert await ask(store, "n1", "r1") == store.state.revision


async def test_a_command_that_had_nothing_to_do_still_has_its_revision(tmp_path: Path) -> None:
    async with Store(tmp_path) as store:
        told = await store.apply(remove("nobody"), actor="t")
        assert store.state.revision == told
        await store.apply(lambda tx: list(tx.list(cluster_pb2.Node)), actor="t", durable=False)
        assert store.state.revision == told, "a look is no revision"


async def test_a_dry_run_answers_and_changes_nothing(tmp_path: Path) -> None:
    async with Store(tmp_path) as store:
        before = store.state.revision
        meta = common_pb2.RequestMeta(request_id="r1", dry_run=True)
        request = models_pb2.DeleteModelRequest(name="n1")
        await store.apply(create("n1"), actor="t", meta=meta, method="Models.Delete", request=request)
        assert not nodes(store) and store.state.revision == before
        assert await ask(store, "n1", "r1") > before, "and its id is not used up"


async def test_a_decision_on_an_old_look_is_refused(tmp_path: Path) -> None:
    async with Store(tmp_path) as store:
        seen = await store.apply(put("n1"), actor="t")
        await store.apply(put("n2"), actor="t")
        meta = common_pb2.RequestMeta(expected_revision=seen)
        await store.apply(put("n1", cores=2), actor="t", meta=meta)  # n1 is as it was seen
        with pytest.raises(RefusedError, match="has changed since") as refused:
            await store.apply(put("n1", cores=3), actor="t", meta=meta)
        assert refused.value.field == "expected_revision" and nodes(store)["n1"] == 2


async def test_presence_is_published_in_order_and_not_written(tmp_path: Path) -> None:
    seen: list[Batch] = []
    async with Store(tmp_path) as store:
        await store.apply(put("n1", cores=1), actor="t")
        store.subscribe(seen.append)
        await asyncio.gather(
            store.apply(put("n1", cores=2), actor="t", durable=False), store.apply(put("n2"), actor="t")
        )
        assert nodes(store) == {"n1": 2, "n2": 0} and [len(batch.changes) for batch in seen] == [1, 1]
    async with Store(tmp_path) as store:
        assert nodes(store) == {"n1": 1, "n2": 0}


def tell(number: int) -> Operation[str]:
    return lambda tx: tx.event("test", f"no {number}")


async def test_archived_objects_leave_the_state_and_are_found_newest_first(tmp_path: Path) -> None:
    def tasks(numbers: range) -> Operation[None]:
        def operation(tx: Transaction) -> None:
            for number in numbers:
                tx.put(queue_pb2.Task(id=str(number), workflow_id="w1"))

        return operation

    def archive(numbers: range) -> Operation[None]:
        def operation(tx: Transaction) -> None:
            for number in numbers:
                tx.archive(queue_pb2.Task, str(number))

        return operation

    async with Store(tmp_path) as store:
        await store.apply(tasks(range(1, 31)), actor="t")
        await store.apply(archive(range(1, 21)), actor="t")
        assert store.state.count(queue_pb2.Task) == 10
    async with Store(tmp_path) as store:
        assert [t.id for t in store.state.list(queue_pb2.Task)] == [str(n) for n in range(21, 31)]
        assert [t.id for t in await store.archived(queue_pb2.Task, limit=2)] == ["20", "19"]
        assert [t.id for t in await store.archived(queue_pb2.Task, before=2)] == ["1"]


async def test_the_newest_events_are_watched_and_all_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gswarm.host.transaction.WATCHED_EVENTS", 10)
    for start in (1, 16):
        async with Store(tmp_path) as store:
            for number in range(start, start + 15):
                await store.apply(tell(number), actor="t")
            assert [e.message for e in store.state.list(common_pb2.Event)] == [
                f"no {n}" for n in range(start + 5, start + 15)
            ]
    async with Store(tmp_path) as store:
        assert [e.message for e in store.state.list(common_pb2.Event)] == [f"no {n}" for n in range(21, 31)]
        assert [e.message for e in await store.archived(common_pb2.Event, before=3)] == ["no 2", "no 1"]


def test_events_of_an_older_file_stay_where_they_can_be_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as old:
        old.setattr(database, "VERSION", 1)
        database.Database(tmp_path).close()
    event = common_pb2.Event(id="7", message="from before")
    with sqlite3.connect(tmp_path / "host.db") as db:
        db.execute("INSERT INTO objects VALUES (?, '7', 5, ?)", (common_pb2.KIND_EVENT, event.SerializeToString()))
    db.close()
    opened = database.Database(tmp_path)
    assert opened.archived(common_pb2.KIND_EVENT, 0, 9, "") == [event.SerializeToString()] and not [*opened.objects()]
    opened.close()


KILLED = """
import asyncio, sys
from pathlib import Path
from gswarm.host.store import Store
from gswarm.v1 import cluster_pb2

async def main():
    async with Store(Path(sys.argv[1])) as store:
        async def one(number):
            def operation(tx):
                tx.put(cluster_pb2.Node(name=f"n{number}"))
                tx.put(cluster_pb2.Node(name=f"m{number}"))
            await store.apply(operation, actor="t")
            print(number, flush=True)
        number = 0
        while True:
            await asyncio.gather(*(one(number + i) for i in range(20)))
            number += 20

asyncio.run(main())
"""


async def test_what_was_acknowledged_survives_kill_9(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    acknowledged = [int(process.stdout.readline()) for _ in range(50)]
    process.send_signal(signal.SIGKILL)
    acknowledged += [int(line) for line in process.stdout.read().splitlines()]
    process.wait(10)
    async with Store(tmp_path) as store:
        found = set(nodes(store))
    assert {f"n{n}" for n in acknowledged} <= found
    assert {name[1:] for name in found if name[0] == "n"} == {
        name[1:] for name in found if name[0] == "m"
    }, "whole or not"


def limited(directory: Path, code: str) -> subprocess.CompletedProcess[str]:
    """Python whose files may not grow past 512 KiB: the nearest to a full disk that needs no root."""

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (512 << 10, 512 << 10))

    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(directory)],
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        preexec_fn=limit, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


async def test_a_write_that_fails_is_told_to_all_it_concerns_and_the_state_stays(tmp_path: Path) -> None:
    done = limited(
        tmp_path,
        """
        import asyncio, sys
        from pathlib import Path
        from gswarm.errors import GswarmError
        from gswarm.host.store import Store
        from gswarm.v1 import cluster_pb2

        async def main():
            async with Store(Path(sys.argv[1])) as store:
                batches = []
                await store.apply(lambda tx: tx.put(cluster_pb2.Node(name="kept")), actor="t")
                store.subscribe(batches.append)
                def big(tx):
                    tx.put(cluster_pb2.Node(name="big", platform="x" * (2 << 20)))
                results = await asyncio.gather(
                    store.apply(big, actor="t"), store.apply(big, actor="t"), return_exceptions=True)
                assert all(isinstance(r, GswarmError) and "disk is full" in str(r) for r in results), results
                assert not batches
                assert [n.name for n in store.state.list(cluster_pb2.Node)] == ["kept"]
                await store.apply(lambda tx: tx.put(cluster_pb2.Node(name="after")), actor="t")

        asyncio.run(main())
        """,
    )
    assert done.returncode == 0, done.stderr
    async with Store(tmp_path) as store:
        assert set(nodes(store)) == {"kept", "after"}


async def test_a_full_disk_says_so_and_works_again_with_room(tmp_path: Path) -> None:
    """SQLite's own limit on pages gives the very error of a disk with no room."""
    async with Store(tmp_path) as store:
        await store.apply(put("kept"), actor="t")
        connection = store._writer.database._db
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
        connection.execute(f"PRAGMA max_page_count = {pages}")

        def big(tx: Transaction) -> None:
            tx.put(cluster_pb2.Node(name="big", platform="x" * (1 << 20)))

        with pytest.raises(ExhaustedError, match="disk is full"):
            await store.apply(big, actor="t")
        assert set(nodes(store)) == {"kept"}
        connection.execute("PRAGMA max_page_count = 1000000")
        await store.apply(big, actor="t")
        assert set(nodes(store)) == {"kept", "big"}


async def test_on_a_full_disk_what_needs_no_disk_goes_on_without_what_was_lost(tmp_path: Path) -> None:
    held, seen = threading.Event(), []

    def look(tx: Transaction) -> None:
        tx.put(node("shown"))
        seen.append(sorted(found.name for found in tx.list(cluster_pb2.Node)))

    async with Store(tmp_path) as store:
        await store.apply(put("kept"), actor="t")
        connection = store._writer.database._db
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
        connection.execute(f"PRAGMA max_page_count = {pages}")

        def big(tx: Transaction) -> None:
            tx.put(cluster_pb2.Node(name="big", platform="x" * (1 << 20)))

        first = asyncio.create_task(store.apply(lambda tx: held.wait(30), actor="t", durable=False))
        await asyncio.sleep(0)
        group = [
            asyncio.create_task(store.apply(big, actor="t")),
            asyncio.create_task(store.apply(look, actor="t", durable=False)),
        ]
        await asyncio.sleep(0)  # both wait behind the first, so that they are one group
        held.set()
        lost, shown = await asyncio.gather(*group, return_exceptions=True)
        assert await first and isinstance(lost, ExhaustedError) and shown is None
        assert seen == [["big", "kept", "shown"], ["kept", "shown"]], "it ran again on what is left"
        assert set(nodes(store)) == {"kept", "shown"}


async def test_replies_that_cannot_be_swept_are_swept_later_and_nobody_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gswarm.host.replies.SWEEP", 1)
    async with Store(tmp_path) as store:
        connection = store._writer.database._db
        connection.execute("INSERT INTO replies VALUES ('t', 'old', '', '', '', 0)")
        connection.execute(
            "CREATE TRIGGER full BEFORE DELETE ON replies BEGIN SELECT RAISE(ABORT, 'disk I/O error'); END"
        )
        async with asyncio.timeout(30):
            for name in ("n1", "n2", "n3"):
                await ask(store, name, f"of {name}")
        connection.execute("DROP TRIGGER full")
        assert store._writer.database.reply("t", "old") is not None
        await ask(store, "n4", "of n4")
        await store.apply(put("n5"), actor="t")
        assert store._writer.database.reply("t", "old") is None, "as soon as it can be"


async def test_a_group_that_cannot_be_written_for_any_reason_does_not_end_the_store(tmp_path: Path) -> None:
    async with Store(tmp_path) as store, asyncio.timeout(30):

        def odd(tx: Transaction) -> None:
            tx.put(node("lost"))
            tx.put_value("\ud800", b"no text that SQLite takes")

        with pytest.raises(GswarmError, match="could not store"):
            await store.apply(odd, actor="t")
        await store.apply(put("after"), actor="t")
        assert set(nodes(store)) == {"after"}
    async with Store(tmp_path) as store:
        assert set(nodes(store)) == {"after"}


async def test_a_second_host_on_the_same_state_is_refused(tmp_path: Path) -> None:
    async with Store(tmp_path):
        with pytest.raises(RefusedError, match="another host uses"):
            await Store(tmp_path).__aenter__()
    async with Store(tmp_path):
        pass


async def test_a_file_of_a_newer_version_is_refused_untouched(tmp_path: Path) -> None:
    async with Store(tmp_path) as store:
        await store.apply(put("n1"), actor="t")
    with sqlite3.connect(tmp_path / "host.db") as db:
        db.execute(f"PRAGMA user_version = {database.VERSION + 1}")
    db.close()
    with pytest.raises(RefusedError, match="newer gswarm"):
        await Store(tmp_path).__aenter__()
    with sqlite3.connect(tmp_path / "host.db") as db:
        db.execute(f"PRAGMA user_version = {database.VERSION}")
    db.close()
    async with Store(tmp_path) as store:
        assert set(nodes(store)) == {"n1"}


async def test_what_is_no_database_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "host.db").write_bytes(b"not a database, but somebody's " * 400)
    before = (tmp_path / "host.db").read_bytes()
    with pytest.raises(GswarmError, match="cannot be used"):
        await Store(tmp_path).__aenter__()
    assert (tmp_path / "host.db").read_bytes() == before


def test_a_migration_keeps_a_copy_of_what_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    database.Database(tmp_path).close()

    def extra(db: sqlite3.Connection) -> None:
        db.execute("CREATE TABLE extra (a)")

    old = database.VERSION
    monkeypatch.setattr(database, "VERSION", old + 1)
    monkeypatch.setattr(database, "MIGRATIONS", (*database.MIGRATIONS, extra))
    database.Database(tmp_path).close()
    with sqlite3.connect(tmp_path / "host.db") as db, sqlite3.connect(tmp_path / f"host.v{old}.bak") as backup:
        assert db.execute("PRAGMA user_version").fetchone() == (old + 1,)
        assert backup.execute("PRAGMA user_version").fetchone() == (old,)
    db.close()
    backup.close()


def test_a_migration_that_fails_leaves_the_file_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    database.Database(tmp_path).close()

    def broken(db: sqlite3.Connection) -> None:
        db.execute("CREATE TABLE extra (a)")
        db.execute("nonsense")

    with monkeypatch.context() as patch:
        patch.setattr(database, "VERSION", database.VERSION + 1)
        patch.setattr(database, "MIGRATIONS", (*database.MIGRATIONS, broken))
        with pytest.raises(GswarmError):
            database.Database(tmp_path)
    database.Database(tmp_path).close()
    with sqlite3.connect(tmp_path / "host.db") as db:
        assert not db.execute("SELECT 1 FROM sqlite_master WHERE name = 'extra'").fetchall()
    db.close()


@pytest.mark.parametrize("kind", ["nfs4", "fuse.sshfs", "ext4"])
def test_network_file_systems_are_refused_with_a_place_to_go(tmp_path: Path, kind: str) -> None:
    mounts = [mock.Mock(mountpoint="/", fstype="ext4"), mock.Mock(mountpoint=str(tmp_path.resolve()), fstype=kind)]
    with mock.patch("psutil.disk_partitions", return_value=mounts):
        check: Callable[[], None] = lambda: database.refuse_network(tmp_path / "state")  # noqa: E731
        if kind == "ext4":
            check()
            return
        with pytest.raises(RefusedError, match=kind) as refused:
            check()
    assert "GSWARM_STATE_DIR=/" in refused.value.next


async def test_a_stopped_store_says_so(tmp_path: Path) -> None:
    async with Store(tmp_path) as store:
        waiting = asyncio.create_task(store.apply(put("last"), actor="t"))
        await asyncio.sleep(0)
    assert await waiting, "what was asked before is done"
    with pytest.raises(GswarmError, match="stopping"):
        await store.apply(put("late"), actor="t")


async def test_what_a_transaction_shows_includes_its_own_and_its_groups_changes(tmp_path: Path) -> None:
    def look(tx: Transaction) -> set[str]:
        tx.put(node("own"))
        tx.delete(cluster_pb2.Node, "gone")
        return {found.name for found in tx.list(cluster_pb2.Node)}

    async with Store(tmp_path) as store:
        await store.apply(put("gone", "old"), actor="t")
        _, seen = await asyncio.gather(store.apply(put("group"), actor="t"), store.apply(look, actor="t"))
        assert seen == {"old", "group", "own"}
        with pytest.raises(NotFoundError):

            def missing(tx: Transaction) -> None:
                if tx.edit(cluster_pb2.Node, "nobody") is None:
                    raise NotFoundError("nobody")

            await store.apply(missing, actor="t")
