"""A whole gswarm in its own state directory, as real processes, for end-to-end tests."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import psutil

T = TypeVar("T")
BIN = Path(sys.executable).parent


def free_ports(count: int) -> list[int]:
    """Ports that were free a moment ago, all different."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for sock in sockets:
            sock.bind(("127.0.0.1", 0))
        return [sock.getsockname()[1] for sock in sockets]


class Installation:
    """Runs the gswarm command with a state directory, ports and a home of its own."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.state = root / "state"
        self.port, self.http_port, self.model_port = free_ports(3)
        passed = {k: v for k, v in os.environ.items() if not k.startswith("GSWARM_") or k == "GSWARM_BACKENDS_DIR"}
        self.env = passed | {
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "HOME": str(root),
            "XDG_CONFIG_HOME": str(root / "config"),
            "GSWARM_STATE_DIR": str(self.state),
            "GSWARM_SHM_DIR": str(root / "shm"),
            "GSWARM_HOST_PORT": str(self.port),
            "GSWARM_HOST_HTTP_PORT": str(self.http_port),
            "GSWARM_HOST_MODEL_PORT": str(self.model_port),
            "NO_COLOR": "1",
        }

    def run(self, *arguments: str, code: int = 0, timeout: float = 60, stdin: str | None = None) -> str:
        """Run `gswarm ARGUMENTS`, check its exit code, give its standard output."""
        done = self.result(*arguments, timeout=timeout, stdin=stdin)
        assert done.returncode == code, f"gswarm {' '.join(arguments)}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr
        return done.stdout

    def result(
        self, *arguments: str, timeout: float = 60, stdin: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run `gswarm ARGUMENTS` and give everything it said."""
        return subprocess.run(
            [str(BIN / "gswarm"), *arguments],
            env=self.env,
            cwd=self.root,
            input=stdin if stdin is not None else "",
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def json(self, *arguments: str, timeout: float = 60) -> object:
        """The parsed `--output json` of a command."""
        return json.loads(self.run(*arguments, "--output", "json", timeout=timeout))

    def rows(self, *arguments: str, timeout: float = 60) -> list[dict[str, object]]:
        """The rows of a list command."""
        found = self.json(*arguments, timeout=timeout)
        assert isinstance(found, list), found
        return found

    def processes(self) -> list[psutil.Process]:
        """Every process that carries this installation's state directory in its environment."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get("GSWARM_STATE_DIR") == str(self.state) and process.status() != "zombie":
                    found.append(process)
        return found

    def kill_everything(self) -> None:
        """SIGKILL whatever is left; only for the end of a test."""
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                process.send_signal(signal.SIGKILL)
                process.wait(5)


@contextlib.contextmanager
def installation(root: Path) -> Iterator[Installation]:
    """An installation that leaves no process behind."""
    installed = Installation(root)
    try:
        yield installed
    finally:
        installed.kill_everything()


def eventually(read: Callable[[], T], accept: Callable[[T], bool], *, timeout: float = 60, what: str = "") -> T:
    """Read until `accept` holds; the last value is in the failure. For state of other processes that cannot notify us."""
    import time

    deadline = time.monotonic() + timeout
    while True:
        value = read()
        if accept(value):
            return value
        assert time.monotonic() < deadline, f"{what or 'it'} did not come true in {timeout} s; last seen: {value}"
        time.sleep(0.1)
