"""The host as a process: ports, a second one, stopping, what it says and what it leaves."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from gswarm.config import machine_name
from gswarm.net import HostFile
from tests.support.processes import BIN, Installation, eventually, free_ports, installation


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Installation]:
    with installation(tmp_path) as installed:
        yield installed


def state(here: Installation) -> Path:
    """Where the host of this machine keeps its state: several machines may share a home."""
    return here.state / machine_name()


def started(here: Installation, *options: str) -> subprocess.Popen[bytes]:
    """`gswarm host start`, once it answers."""
    log = (here.root / "host.log").open("ab")
    process = subprocess.Popen(
        [str(BIN / "gswarm"), "host", "start", *options],
        env=here.env, cwd=here.root, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
    )  # fmt: skip
    log.close()

    def up() -> bool:
        file = HostFile.read(state(here))
        return process.poll() is not None or (file is not None and file.pid == process.pid)

    eventually(up, bool, what="the host")
    assert process.poll() is None, (here.root / "host.log").read_text()
    return process


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_told_to_stop_it_stops_and_leaves_nothing_that_misleads(here: Installation, number: signal.Signals) -> None:
    process = started(here)
    here.run("status")
    process.send_signal(number)
    assert process.wait(20) == 0
    assert not (state(here) / "host.json").exists()
    assert "Traceback" not in (here.root / "host.log").read_text()
    assert "no host runs" in here.result("status").stderr
    again = started(here)
    again.send_signal(signal.SIGTERM)
    again.wait(20)


def test_the_ports_asked_for_are_the_ports_used(here: Installation) -> None:
    grpc, http, model = free_ports(3)
    process = started(here, "--port", str(grpc), "--http-port", str(http), "--model-port", str(model))
    for port in (grpc, http, model):
        socket.create_connection(("127.0.0.1", port), 5).close()
    with urllib.request.urlopen(f"http://127.0.0.1:{http}/healthz", timeout=5) as answer:
        assert answer.status == 200
    here.run("host", "stop")
    assert process.wait(20) == 0


@pytest.mark.parametrize("flag", ["--port", "--http-port", "--model-port"])
def test_a_port_in_use_is_one_clear_error_and_changes_nothing(here: Installation, flag: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = here.result("host", "start", flag, str(port))
    assert done.returncode == 5
    assert str(port) in done.stderr and flag in done.stderr and "Traceback" not in done.stderr
    assert done.stdout == "" and not (state(here) / "host.db").exists()


def test_a_second_host_on_the_same_state_is_refused_and_the_first_goes_on(here: Installation) -> None:
    process = started(here)
    before = (state(here) / "host.json").read_text()
    ports = free_ports(3)
    done = here.result(
        "host", "start", "--port", str(ports[0]), "--http-port", str(ports[1]), "--model-port", str(ports[2])
    )
    assert done.returncode == 5 and "GSWARM_STATE_DIR" in done.stderr
    assert (state(here) / "host.json").read_text() == before
    here.run("status")
    assert process.poll() is None


def test_an_address_that_is_not_ours_is_refused(here: Installation) -> None:
    done = here.result("host", "start", "--bind", "203.0.113.9")
    assert done.returncode in (2, 5) and "203.0.113.9" in done.stderr and "Traceback" not in done.stderr


def test_a_state_directory_that_cannot_be_made_is_named(here: Installation) -> None:
    here.state.write_text("a file is in the way")
    done = here.result("host", "start")
    assert done.returncode in (1, 5) and str(here.state) in done.stderr and "Traceback" not in done.stderr
    assert here.state.read_text() == "a file is in the way"


def test_a_database_that_is_none_is_named_and_kept(here: Installation) -> None:
    state(here).mkdir(parents=True)
    (state(here) / "host.db").write_bytes(b"garbage" * 1000)
    done = here.result("host", "start")
    assert done.returncode == 1 and "host.db" in done.stderr and "Traceback" not in done.stderr
    assert (state(here) / "host.db").read_bytes() == b"garbage" * 1000


def test_a_host_that_was_killed_misleads_no_one(here: Installation) -> None:
    process = started(here)
    process.kill()
    process.wait(10)
    assert (state(here) / "host.json").exists(), "it had no time to clean up"
    done = here.result("status")
    assert done.returncode == 3 and "gswarm up" in done.stderr
    # The number of a dead process may be another one's by now.
    stale = json.loads((state(here) / "host.json").read_text()) | {"pid": os.getpid()}
    (state(here) / "host.json").write_text(json.dumps(stale))
    assert here.result("status").returncode == 3
    started(here)
    here.run("status")


def test_logs_and_metrics_are_there(here: Installation) -> None:
    process = started(here)
    token = (state(here) / "host.token").read_text().strip()
    port = json.loads((state(here) / "host.json").read_text())["http_port"]
    request = urllib.request.Request(f"http://127.0.0.1:{port}/metrics", headers={"Authorization": f"Bearer {token}"})
    with urllib.request.urlopen(request, timeout=5) as answer:
        text = answer.read().decode()
    names = {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")}
    assert names and all(name.startswith("gswarm_") for name in names)
    assert {line.split()[2] for line in text.splitlines() if line.startswith("# HELP")} == names
    assert token not in text and token not in (here.root / "host.log").read_text()
    process.terminate()
    assert process.wait(20) == 0
