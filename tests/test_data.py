"""Shared data end to end: put, mapped without a copy, held, moved between nodes, through restarts and full memory."""

from __future__ import annotations

import asyncio
import os
import resource
import shutil
import subprocess
import sys
import textwrap
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import numpy as np
import pytest

from gswarm.client import identity
from gswarm.client.agent import Agent
from gswarm.cluster.types import Event, Node, NodePhase
from gswarm.data import access, codecs, local, wire, worker
from gswarm.data.types import Chunk, ChunkType, LocationPhase, transfer_done
from gswarm.errors import ExhaustedError, ExitCode, GswarmError, InvalidError, NotFoundError, RefusedError
from tests.support.cluster import Cluster, cluster, seen
from tests.support.processes import BIN


@pytest.fixture
async def running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Cluster]:
    monkeypatch.setenv("GSWARM_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("GSWARM_SHM_DIR", str(tmp_path / "shm"))
    monkeypatch.chdir(tmp_path)
    async with cluster(tmp_path / "state") as found:
        yield found


def use(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Two agents on this machine stand for two machines: be on that of one of them."""
    original = identity.local_agents

    def only(address: str) -> list[identity.AgentFile]:
        return [agent for agent in original(address) if agent.name == name]

    monkeypatch.setattr(identity, "local_agents", only)


def stored(root: Path) -> list[Path]:
    """Every file in the agents' shared memory."""
    return [path for path in (root / "shm").rglob("*") if path.is_file()]


async def test_files_come_back_as_they_went_in(running: Cluster, tmp_path: Path) -> None:
    array = np.arange(12, dtype="<f4").reshape(3, 4)
    np.save(tmp_path / "a.npy", array)
    (tmp_path / "b.json").write_text('{"x": [1, 2.5, null], "ü": "ß"}')
    (tmp_path / "c.bin").write_bytes(os.urandom(100_000))
    (tmp_path / "empty").write_bytes(b"")
    async with running.agent("n1"):
        for name, kind in (("a.npy", "numpy"), ("b.json", "json"), ("c.bin", "file"), ("empty", "file")):
            chunk = await running.swarm.data.put(tmp_path / name)
            assert (chunk.type.value, chunk.name, chunk.actor) == (kind, name, "local")
            await running.swarm.data.get(chunk.id, out=tmp_path / f"back-{name}")
            if kind == "numpy":
                assert chunk.shape == (3, 4) and chunk.dtype == "<f4"
                np.testing.assert_array_equal(np.load(tmp_path / f"back-{name}"), array)
            elif kind == "file":
                assert (tmp_path / f"back-{name}").read_bytes() == (tmp_path / name).read_bytes()
        with pytest.raises(RefusedError, match="exists"):
            await running.swarm.data.get(chunk.id, out=tmp_path / "back-empty")
        assert len(await running.swarm.data.list()) == 4


async def test_an_array_is_mapped_not_copied_and_cannot_be_changed(running: Cluster) -> None:
    array = np.random.default_rng(1).random((1000, 100))
    async with running.agent("n1"):
        chunk = await access.put_value(running.swarm, array, name="weights")
        with await access.map_chunk(running.swarm, chunk.id) as mapped:
            view = mapped.value()
            assert isinstance(view, np.ndarray) and not view.flags.owndata and not view.flags.writeable
            np.testing.assert_array_equal(view, array)
            with pytest.raises(ValueError, match="read-only"):
                view[0, 0] = 1.0
            with await access.map_chunk(running.swarm, chunk.id) as again:
                other = again.value()
                assert isinstance(other, np.ndarray)
                np.testing.assert_array_equal(other, array)
                del other
            del view


@pytest.mark.parametrize("value", [b"", b"abc" * 1000, {"a": [1, "x", None, True]}, [1.5, -2], "text", 7])
async def test_values_of_every_kind(running: Cluster, value: object) -> None:
    async with running.agent("n1"):
        chunk = await access.put_value(running.swarm, value)
        assert chunk.type is (ChunkType.BYTES if isinstance(value, bytes) else ChunkType.JSON)
        with await access.map_chunk(running.swarm, chunk.id) as mapped:
            got = mapped.value()
            assert (bytes(got) if isinstance(value, bytes) else got) == value  # type: ignore[call-overload]
            del got


async def test_what_cannot_be_held_exactly_is_refused(running: Cluster, tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text("{not json")
    (tmp_path / "bad.npy").write_bytes(b"no array")
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    async with running.agent("n1"):
        for name, told in (("bad.json", "bad"), ("bad.npy", "bad"), ("objects.npy", "dtype"), ("nowhere", "nowhere")):
            with pytest.raises(GswarmError, match=told):
                await running.swarm.data.put(tmp_path / name)
        with pytest.raises(InvalidError):
            await access.put_value(running.swarm, np.array([{}], dtype=object))
        with pytest.raises(InvalidError):
            await access.put_value(running.swarm, {"x": object()})
        assert not await running.swarm.data.list() and not stored(tmp_path)


async def test_the_same_bytes_are_one_chunk(running: Cluster) -> None:
    async with running.agent("n1"):
        first = await access.put_value(running.swarm, b"same", name="x")
        assert (await access.put_value(running.swarm, b"same", name="x")).id == first.id
        other = await access.put_value(running.swarm, b"same", name="y")
        assert other.digest == first.digest and other.id != first.id


async def test_holders_have_names_dates_and_the_last_word(running: Cluster) -> None:
    async with running.agent("n1"):
        chunk = await access.put_value(running.swarm, b"held", name="x", holder="train-7", lease_s=600)
        (holder,) = chunk.holders
        assert (holder.name, holder.actor) == ("train-7", "local")
        assert holder.since is not None and holder.expires_at is not None
        assert 590 < (holder.expires_at - holder.since).total_seconds() < 610
        with pytest.raises(RefusedError, match="train-7"):
            await running.swarm.data.delete(chunk.id)
        longer = await running.swarm.data.acquire(chunk.id, holder="train-7", lease=3600)
        assert len(longer.holders) == 1 and longer.holders[0].expires_at > holder.expires_at  # type: ignore[operator]
        await running.swarm.data.acquire(chunk.id, holder="eval")
        await running.swarm.data.release(chunk.id, holder="train-7")
        with pytest.raises(RefusedError, match="eval"):
            await running.swarm.data.delete(chunk.id)
        with pytest.raises(GswarmError, match="train-7"):
            await running.swarm.data.release(chunk.id, holder="train-7")
        await running.swarm.data.release(chunk.id, holder="eval")
        await running.swarm.data.delete(chunk.id)
        with pytest.raises(NotFoundError):
            await running.swarm.data.info(chunk.id)


async def test_a_lease_that_runs_out_is_gone_and_on_record(running: Cluster) -> None:
    async with running.agent("n1"):
        chunk = await access.put_value(running.swarm, b"held", holder="short", lease_s=1.0)
        async with running.swarm.mirror((Chunk, Event), samples=False) as mirror:
            await seen(
                mirror,
                lambda: mirror.rows(Chunk).get(chunk.id),
                lambda found: found is not None and not found.holders,
            )
            assert any(e.type == "data.expired" and "short" in e.message for e in mirror.rows(Event).values())
        await running.swarm.data.delete(chunk.id)


async def test_deleting_frees_the_memory(running: Cluster, tmp_path: Path) -> None:
    async with running.agent("n1"):
        chunk = await access.put_value(running.swarm, os.urandom(50_000))
        (file,) = (tmp_path / "shm").rglob(chunk.digest)
        await running.swarm.data.delete(chunk.id)
        await gone(file.exists)


async def test_a_chunk_goes_to_another_node_and_is_the_same_there(
    running: Cluster, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    array = np.random.default_rng(2).random(300_000)
    async with running.agent("n1"), running.agent("n2"):
        with monkeypatch.context() as here:
            use(here, "n1")
            chunk = await access.put_value(running.swarm, array, name="weights")
        assert [place.node for place in chunk.locations] == ["n1"]
        asked = await running.swarm.data.transfer(chunk.id, "n2")
        moved = await running.swarm.wait(transfer_done, asked, timeout=30)
        assert {place.node: place.phase for place in moved.locations} == dict.fromkeys(
            ("n1", "n2"), LocationPhase.PRESENT
        )
        assert len(list((tmp_path / "shm").rglob(chunk.digest))) == 2
        use(monkeypatch, "n2")
        with await access.map_chunk(running.swarm, chunk.id) as mapped:
            view = mapped.value()
            np.testing.assert_array_equal(view, array)
            del view
        with pytest.raises(NotFoundError, match="n2"):
            await running.swarm.data.transfer(chunk.id, "n22")


async def test_reading_what_is_elsewhere_fetches_it(
    running: Cluster, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async with running.agent("n1"), running.agent("n2"):
        with monkeypatch.context() as here:
            use(here, "n1")
            chunk = await access.put_value(running.swarm, b"far away" * 1000)
        use(monkeypatch, "n2")
        await running.swarm.data.get(chunk.id, out=tmp_path / "near")
    assert (tmp_path / "near").read_bytes() == b"far away" * 1000


async def test_a_copy_whose_bytes_differ_is_refused(
    running: Cluster, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(worker, "RETRY_S", (0.1,))
    async with running.agent("n1"), running.agent("n2"):
        with monkeypatch.context() as here:
            use(here, "n1")
            chunk = await access.put_value(running.swarm, b"a" * 100_000)
        (file,) = (tmp_path / "shm").rglob(chunk.digest)
        file.chmod(0o600)
        file.write_bytes(b"b" * 100_000)  # memory of n1 went bad
        asked = await running.swarm.data.transfer(chunk.id, "n2")
        with pytest.raises(GswarmError, match="digest"):
            await running.swarm.wait(transfer_done, asked, timeout=60)
        assert list((tmp_path / "shm").rglob(chunk.digest)) == [file], "nothing of it was kept"


async def test_full_shared_memory_is_an_error_that_changes_nothing(running: Cluster, tmp_path: Path) -> None:
    """A real agent whose files may not grow past a limit: the nearest to a full /dev/shm that needs no root."""
    (tmp_path / "big").write_bytes(os.urandom(8 << 20))
    (tmp_path / "small").write_bytes(b"fits")
    with running.agent_process("n1", {}, tmp_path) as agent:
        await attached(running, "n1")
        kept = await running.swarm.data.put(tmp_path / "small")
        before = stored(tmp_path)
        resource.prlimit(agent.pid, resource.RLIMIT_FSIZE, (4 << 20, resource.RLIM_INFINITY))
        with pytest.raises(ExhaustedError, match=f"no room for {8 << 20} bytes.*gswarm data delete"):
            await running.swarm.data.put(tmp_path / "big")
        arguments = [str(BIN / "gswarm"), "data", "put", "big", "--host", running.endpoint.address]
        env = {**os.environ, "GSWARM_TOKEN": str(running.context.token)}
        done = await asyncio.to_thread(
            subprocess.run, arguments, env=env, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == ExitCode.REFUSED and "no room" in done.stderr and "Traceback" not in done.stderr
        assert [chunk.id for chunk in await running.swarm.data.list()] == [kept.id] and stored(tmp_path) == before
        resource.prlimit(agent.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        assert (await running.swarm.data.put(tmp_path / "big")).size_bytes == 8 << 20


@pytest.mark.parametrize(
    "message",
    [
        wire.pack(wire.Reserve(1 << 70)),
        wire.pack(wire.Reserve(-1)),
        wire.pack(wire.Seal("none", "bytes", "r")),
        wire.pack(wire.Open("../../etc/passwd")),
        wire.pack(wire.Reserved("x")),
        b"noise",
    ],
)
async def test_an_odd_request_is_refused_and_the_agent_goes_on(running: Cluster, message: bytes) -> None:
    async with running.agent("n1") as agent:
        assert isinstance(await said(agent, message), wire.Refused)
        await access.put_value(running.swarm, b"still here")


async def test_an_odd_seal_is_refused_and_its_space_given_back(running: Cluster, tmp_path: Path) -> None:
    async with running.agent("n1") as agent:
        for odd in ({"type": "pickle"}, {"shape": (1 << 70,)}, {"type": "numpy", "dtype": "object", "shape": (1,)}):
            with local.connection(agent.state_dir / wire.SOCKET_NAME) as sock:
                space, fd = await asyncio.to_thread(wire.ask, sock, wire.Reserve(8), wire.Reserved)
                os.close(fd or -1)
                with pytest.raises(GswarmError):
                    seal = wire.Seal(space.name, **{"type": "bytes", "request_id": "r", **odd})  # type: ignore[arg-type]
                    await asyncio.to_thread(wire.ask, sock, seal, wire.Sealed)
            await gone(lambda: stored(tmp_path))
        await access.put_value(running.swarm, b"still here")


async def test_shared_memory_cleaned_under_an_agent_is_told_and_used_again(running: Cluster, tmp_path: Path) -> None:
    async with running.agent("n1"):
        chunk = await access.put_value(running.swarm, b"x")
        (pool,) = (tmp_path / "shm").iterdir()
        shutil.rmtree(pool)
        pool.write_bytes(b"in the way")
        with pytest.raises(GswarmError, match="shared memory cannot be used"):
            await access.put_value(running.swarm, b"y")
        pool.unlink()
        await access.put_value(running.swarm, b"y")
        async with running.swarm.mirror((Chunk,), samples=False) as mirror:
            lost = await seen(
                mirror,
                lambda: mirror.rows(Chunk).get(chunk.id),
                lambda c: c is not None and c.locations[0].phase is LocationPhase.FAILED,
            )
        assert lost is not None and "lost" in lost.locations[0].detail


async def test_what_a_killed_writer_reserved_is_given_back(running: Cluster, tmp_path: Path) -> None:
    async with running.agent("n1") as agent:
        code = """
            import os, signal, sys
            from pathlib import Path
            from gswarm.data import local, wire
            with local.connection(Path(sys.argv[1])) as sock:
                wire.ask(sock, wire.Reserve(1 << 20), wire.Reserved)
                print("reserved", flush=True)
                os.kill(os.getpid(), signal.SIGKILL)
        """
        writer = await asyncio.create_subprocess_exec(
            sys.executable, "-c", textwrap.dedent(code), str(agent.state_dir / wire.SOCKET_NAME), stdout=PIPE
        )
        out, _ = await asyncio.wait_for(writer.communicate(), 30)
        assert out == b"reserved\n"
        await gone(lambda: stored(tmp_path))


async def said(agent: Agent, message: bytes) -> wire.Said:
    """What an agent answers to these very bytes on its socket."""

    def ask() -> bytes:
        with local.connection(agent.state_dir / wire.SOCKET_NAME) as sock:
            sock.settimeout(20)
            sock.sendall(message)
            return sock.recv(wire.MAX_MESSAGE)

    return wire.unpack(await asyncio.to_thread(ask))


async def gone(read: Callable[[], object]) -> None:
    """Until nothing is left of what is read; for files, whose end the agent tells no one."""
    async with asyncio.timeout(20):
        while read():  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def attached(running: Cluster, name: str) -> None:
    """Until a node is ready."""
    async with running.swarm.mirror((Node,), samples=False) as mirror:
        await seen(
            mirror, lambda: mirror.rows(Node).get(name), lambda n: n is not None and n.phase is NodePhase.READY, 60
        )


async def test_chunks_outlive_the_agent_that_took_them(running: Cluster) -> None:
    async with running.agent("n1"):
        chunk = await access.put_value(running.swarm, b"durable" * 100)
    async with running.agent("n1"):
        with await access.map_chunk(running.swarm, chunk.id) as mapped:
            got = mapped.value()
            assert bytes(got) == b"durable" * 100  # type: ignore[call-overload]
            del got


async def test_without_an_agent_here_it_says_what_to_start(running: Cluster, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"x")
    with pytest.raises(GswarmError, match="gswarm up"):
        await running.swarm.data.put(tmp_path / "x")
    assert codecs.inspect_file(tmp_path / "x", None).size_bytes == 1
