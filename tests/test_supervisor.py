"""Child processes: started apart, adopted by the next agent, ended whole, and never left behind."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import psutil
import pytest

from gswarm.client import supervisor as module
from gswarm.client.supervisor import Launch, Supervisor
from gswarm.errors import GswarmError

SLEEP = (sys.executable, "-c", "import time; print('up', flush=True); time.sleep(600)")
STUBBORN = (
    sys.executable,
    "-c",
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(600)",
)
# Starts a worker in its own session's group, writes its pid, and waits.
PARENT = (
    sys.executable,
    "-c",
    "import subprocess, sys, time\n"
    "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
    "print(child.pid, flush=True)\n"
    "time.sleep(600)",
)

AGENT = (
    "import asyncio, os, pathlib, signal, sys\n"
    "from gswarm.client.supervisor import Launch, Supervisor\n"
    "async def main():\n"
    "    started = Supervisor(pathlib.Path(sys.argv[1])).start(Launch('tree', 1, sys.argv[2:]))\n"
    "    print(started.pid, flush=True)\n"
    "    os.kill(os.getpid(), signal.SIGKILL)\n"
    "asyncio.run(main())"
)


@pytest.fixture
async def directory(tmp_path: Path) -> AsyncIterator[Path]:
    """A state directory; whatever still carries its mark at the end is killed."""
    yield tmp_path
    for process, _ in module._marked(tmp_path):
        with contextlib.suppress(psutil.Error):
            process.kill()


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not holds():  # noqa: ASYNC110 - another process cannot set our event
            await asyncio.sleep(0.02)


async def said(supervisor: Supervisor, name: str) -> str:
    await until(lambda: bool(supervisor.last_lines(name)))
    return supervisor.last_lines(name)


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.Error:
        return True


async def test_a_child_has_its_own_session_and_writes_to_a_file(directory: Path) -> None:
    supervisor = Supervisor(directory)
    process = supervisor.start(Launch("web", 1, SLEEP, port=4321))
    assert os.getsid(process.pid) == process.pid
    assert await said(supervisor, "web") == "up"
    output = Path(f"/proc/{process.pid}/fd/1").resolve()
    assert output == supervisor.log_path("web")
    assert output.stat().st_mode & 0o077 == 0
    await supervisor.stop("web")
    assert gone(process.pid) and supervisor.get("web") is None


async def test_stop_ends_the_whole_group_even_one_that_ignores_sigterm(directory: Path) -> None:
    supervisor = Supervisor(directory)
    parent = supervisor.start(Launch("tree", 1, PARENT))
    worker = int(await said(supervisor, "tree"))
    stubborn = supervisor.start(Launch("stubborn", 1, STUBBORN))
    await said(supervisor, "stubborn")
    await asyncio.gather(supervisor.stop("tree", 5), supervisor.stop("stubborn", 0.2))
    assert gone(parent.pid) and gone(stubborn.pid)
    await until(lambda: gone(worker))
    assert await supervisor.wait("stubborn") == -signal.SIGKILL


async def test_the_workers_of_a_backend_that_dies_go_with_it(directory: Path) -> None:
    supervisor = Supervisor(directory)
    parent = supervisor.start(Launch("tree", 1, PARENT))
    worker = int(await said(supervisor, "tree"))
    os.kill(parent.pid, signal.SIGKILL)
    assert await supervisor.wait("tree") == -signal.SIGKILL
    await until(lambda: gone(worker))
    assert supervisor.get("tree") is None


async def test_the_next_agent_adopts_what_runs_and_sees_its_end(directory: Path) -> None:
    first = Supervisor(directory)
    process = first.start(Launch("web", 7, SLEEP, port=4321))
    second = Supervisor(directory)
    assert second.adopt() == [process]
    assert second.get("web") == process
    os.kill(process.pid, signal.SIGKILL)
    await asyncio.gather(first.wait("web"), second.wait("web"))
    assert second.get("web") is None
    assert second.adopt() == []


async def test_a_process_that_no_record_names_is_ended(directory: Path) -> None:
    """An agent killed between starting a process and writing its record leaves no orphan."""
    first = Supervisor(directory)
    process = first.start(Launch("web", 1, SLEEP))
    (directory / "processes.json").unlink()
    assert Supervisor(directory).adopt() == []
    await first.wait("web")
    assert gone(process.pid)


async def test_workers_of_a_backend_that_died_while_no_agent_was_there_are_ended(directory: Path) -> None:
    # A first agent that starts the backend and is then killed.
    agent = await asyncio.create_subprocess_exec(sys.executable, "-c", AGENT, str(directory), *PARENT, stdout=-1)
    assert agent.stdout is not None
    pid = int(await agent.stdout.readline())
    await agent.wait()
    second = Supervisor(directory)
    worker = int(await said(second, "tree"))
    os.kill(pid, signal.SIGKILL)
    await until(lambda: gone(pid))
    assert not gone(worker)
    assert second.adopt() == []
    await until(lambda: gone(worker))


async def test_a_reused_process_id_is_not_adopted_nor_killed(directory: Path) -> None:
    first = Supervisor(directory)
    process = first.start(Launch("web", 1, SLEEP))
    records = directory / "processes.json"
    me = psutil.Process()
    records.write_text(records.read_text().replace(str(process.pid), str(me.pid)))
    assert Supervisor(directory).adopt() == [], "our own process has that pid, but started at another time"
    await first.wait("web")


async def test_another_agents_children_are_left_alone(
    directory: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    other_dir = tmp_path_factory.mktemp("other")
    other = Supervisor(other_dir)
    process = other.start(Launch("web", 1, SLEEP))
    Supervisor(directory).adopt()
    assert process.alive()
    await other.stop_all()


async def test_what_cannot_be_started_is_one_clear_error(directory: Path) -> None:
    supervisor = Supervisor(directory)
    with pytest.raises(GswarmError, match="cannot be started: No such file"):
        supervisor.start(Launch("web", 1, ("/no/such/program",)))
    assert supervisor.get("web") is None


async def test_a_log_that_grew_is_cut_and_the_child_writes_on(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOG_LIMIT", 1_000)
    supervisor = Supervisor(directory)
    talk = "import sys\nfor line in sys.stdin: pass\n"
    loud = f"import time\nfor i in range(200): print('line', i, flush=True)\n{talk}\ntime.sleep(600)"
    supervisor.start(Launch("loud", 1, (sys.executable, "-c", loud)))
    await until(lambda: "line 199" in supervisor.last_lines("loud"))
    supervisor.rotate_logs()
    assert supervisor.log_path("loud").stat().st_size == 0
    assert "line 199" in supervisor.log_path("loud").with_suffix(".log.1").read_text()
    await supervisor.stop_all()


async def test_following_a_log_gives_what_is_there_and_what_comes(directory: Path) -> None:
    supervisor = Supervisor(directory)
    supervisor.logs.joinpath("web.log").write_bytes(b"0123456789")
    got = b""
    async with asyncio.timeout(20):
        async for piece in supervisor.read_log("web", 4, follow=True):
            got += piece
            if got == b"6789":
                with supervisor.log_path("web").open("ab") as file:
                    file.write(b"more")
            if got.endswith(b"more"):
                break
    assert got == b"6789more"
