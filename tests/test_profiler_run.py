"""A session around a command, and recordings away from their host: real processes, real signals."""

from __future__ import annotations

import os
import pty
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gswarm.profiler.journal import Record, scan
from gswarm.profiler.recording import Recording
from tests.support.processes import BIN, Installation, eventually, installation

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    with installation(tmp_path_factory.mktemp("run")) as found:
        found.run("up", "--simulate", "2xH100", "--no-console", timeout=90)
        yield found
        found.run("down", timeout=60)


def start(here: Installation, name: str, *command: str, stdin: int = subprocess.DEVNULL) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [str(BIN / "gswarm"), "profiler", "run", "--name", name, "--interval", "0.2", "--", *command],
        env=here.env, cwd=here.root, stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip


def phase(here: Installation, name: str) -> str:
    return str(here.json("profiler", "info", name)["phase"])  # type: ignore[index]


def is_sealed(here: Installation, name: str) -> None:
    eventually(lambda: phase(here, name), lambda p: p == "sealed", what=f"session {name} sealed")


@pytest.mark.parametrize("code", [0, 7])
def test_the_command_has_the_terminal_and_its_exit_code_is_ours(here: Installation, code: int) -> None:
    name = f"exit-{code}"
    script = (
        "import sys; sys.stdout.write(sys.stdin.read().upper()); sys.stderr.write('err'); sys.exit(int(sys.argv[1]))"
    )
    done = here.result(
        "profiler", "run", "--name", name, "--tag", "a=b", "--", sys.executable, "-c", script, str(code), stdin="words"
    )
    assert (done.returncode, done.stdout) == (code, "WORDS"), done.stderr
    assert "err" in done.stderr and f"session {name} stopped" in done.stderr
    is_sealed(here, name)
    assert here.json("profiler", "info", name)["tags"] == {"a": "b"}  # type: ignore[index]


def test_a_command_that_is_killed_tells_by_which_signal(here: Installation) -> None:
    script = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    done = here.result("profiler", "run", "--name", "killed", "--", sys.executable, "-c", script)
    assert done.returncode == 128 + signal.SIGKILL
    is_sealed(here, "killed")


WAITS = """
import signal, sys, time
def tell(number, frame):
    print(signal.Signals(number).name, flush=True)
    sys.exit(3)
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    signal.signal(number, tell)
print("ready", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signals_reach_the_command(here: Installation, number: signal.Signals) -> None:
    name = f"by-{number.name}"
    process = start(here, name, sys.executable, "-c", WAITS)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    process.send_signal(number)
    out, errors = process.communicate(timeout=60)
    assert (process.returncode, out) == (3, f"{number.name}\n"), errors
    is_sealed(here, name)


def test_ctrl_c_reaches_the_command_once(here: Installation) -> None:
    """In a real terminal the key press goes to the whole foreground group."""
    counts = "import signal, time\nn = []\nsignal.signal(2, lambda *_: n.append(1))\nprint('ready', flush=True)\ntime.sleep(1.5)\ntime.sleep(1.5)\nprint('seen', len(n), flush=True)"
    pid, fd = pty.fork()
    if pid == 0:
        os.chdir(here.root)
        gswarm = str(BIN / "gswarm")
        os.execve(gswarm, [gswarm, "profiler", "run", "--name", "key", "--", sys.executable, "-c", counts], here.env)
    seen = b""
    deadline = time.monotonic() + 60
    pressed = False
    try:
        while time.monotonic() < deadline:
            try:
                piece = os.read(fd, 4096)
            except OSError:
                break
            if not piece:
                break
            seen += piece
            if b"ready" in seen and not pressed:
                os.write(fd, b"\x03")
                pressed = True
    finally:
        os.close(fd)
        _, status = os.waitpid(pid, 0)
    assert b"seen 1" in seen and os.waitstatus_to_exitcode(status) == 0, seen
    is_sealed(here, "key")


def test_what_cannot_run_takes_no_name(here: Installation) -> None:
    for command in ("no-such-command-anywhere", "./tests", "/etc/passwd"):
        done = here.result("profiler", "run", "--name", "missing", "--", command)
        assert done.returncode == 4 and f"no command {command} that can be run" in done.stderr
    assert here.result("profiler", "run", "--name", "missing", "--", "true").returncode == 0
    is_sealed(here, "missing")
    again = here.result("profiler", "run", "--name", "missing", "--", "true")
    assert again.returncode == 5 and "exists" in again.stderr


def test_a_host_that_goes_takes_no_command_with_it(tmp_path: Path) -> None:
    with installation(tmp_path) as own:
        own.run("up", "--no-console", timeout=90)
        process = start(
            own,
            "orphan",
            sys.executable,
            "-c",
            "print('ready', flush=True); input(); print('end')",
            stdin=subprocess.PIPE,
        )
        assert process.stdout is not None and process.stdin is not None
        assert process.stdout.readline() == "ready\n"
        os.kill(int(own.json("status")["pid"]), signal.SIGKILL)  # type: ignore[index]
        out, errors = process.communicate("\n", timeout=90)
        assert (process.returncode, out) == (0, "end\n")
        assert "was not stopped" in errors and "gswarm profiler stop orphan" in errors


def test_pulled_it_opens_without_a_host(here: Installation, tmp_path: Path) -> None:
    here.run("profiler", "start", "--name", "away", "--interval", "0.2", "--for", "2s")
    here.run("profiler", "mark", "half way")
    eventually(lambda: int(here.json("profiler", "info", "away")["ticks"]), lambda n: n > 2)  # type: ignore[index]
    growing = here.json("profiler", "pull", "away", "--out", str(tmp_path / "growing"))
    is_sealed(here, "away")
    whole = here.json("profiler", "pull", "away", "--out", str(tmp_path / "whole"))
    assert isinstance(growing, dict) and isinstance(whole, dict) and whole["files"] == 4
    for name in ("growing", "whole"):
        directory = tmp_path / name
        assert all(path.stat().st_mode & 0o077 == 0 for path in directory.iterdir())
        with Recording.open(directory) as recording:
            assert recording.damage == () and recording.counts()[0] > 2
        rows = here.rows("--from", str(directory), "device", "list")
        assert {row["kind"] for row in rows} >= {"simulated"}
    refused = here.result("profiler", "pull", "away", "--out", str(tmp_path / "whole"))
    assert refused.returncode == 5 and "exists" in refused.stderr
    already = here.result("--from", str(tmp_path / "whole"), "profiler", "pull", "away", "--out", str(tmp_path / "no"))
    assert already.returncode == 2 and "recording already" in already.stderr
    (tmp_path / "file").touch()
    nowhere = here.result("profiler", "pull", "away", "--out", str(tmp_path / "file" / "below"))
    assert nowhere.returncode == 2 and "not a directory" in nowhere.stderr
    unknown = here.result("profiler", "pull", "awy")
    assert unknown.returncode == 4 and "away" in unknown.stderr
    assert not [path for path in here.root.iterdir() if "awy" in path.name]


def test_recover_seals_a_copy_and_says_what_it_lost(here: Installation, tmp_path: Path) -> None:
    here.run("profiler", "start", "--name", "torn", "--interval", "0.2")
    eventually(lambda: int(here.json("profiler", "info", "torn")["ticks"]), lambda n: n > 3)  # type: ignore[index]
    (source,) = here.state.glob("*/recordings/torn")
    shutil.copytree(source, tmp_path / "copy")
    busy = here.result("profiler", "recover", "torn")
    assert busy.returncode == 1 and "being recorded" in busy.stderr
    journal = tmp_path / "copy" / "journal-0001"
    data = bytearray(journal.read_bytes())
    hit = [found for found in scan(bytes(data))[0] if found.kind is Record.TICK][1]
    data[hit.offset + hit.size // 2] ^= 1
    journal.write_bytes(data[:-7])
    told = here.json("profiler", "recover", str(tmp_path / "copy"))
    assert isinstance(told, dict) and told["ticks"] > 0 and "journal-0001" in told["lost"][0]
    assert sorted(path.name for path in (tmp_path / "copy").iterdir()) == [
        "events-0001.parquet", "manifest.json", "metrics-0001.parquet", "state-0001"
    ]  # fmt: skip
    again = here.json("profiler", "recover", str(tmp_path / "copy"))
    assert isinstance(again, dict) and (again["ticks"], again["lost"]) == (told["ticks"], told["lost"])
    nothing = here.result("profiler", "recover", str(tmp_path / "nothing"))
    assert nothing.returncode == 4 and "is no recording" in nothing.stderr
    here.run("profiler", "stop", "torn", timeout=60)
