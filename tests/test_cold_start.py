"""A command imports what it needs and nothing else: told by the modules that are loaded when it has ended."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest

from gswarm import net
from gswarm.config import Config, HostConfig, state_dir
from gswarm.host.server import host

# Runs a command as the entry point does, then says on the last line of standard error what is loaded.
CHILD = """
import json, sys
from gswarm.cli import run
code = run(sys.argv[1:])
sys.stderr.write("\\n" + json.dumps([code, sorted(sys.modules)]))
"""
HEAVY = {
    "aiohttp", "cryptography", "fastapi", "gswarm_tui", "httpx", "nvitop", "numpy", "platformdirs",
    "psutil", "pyarrow", "pydantic", "rich", "starlette", "textual", "uvicorn", "yaml",
}  # fmt: skip
WIRE = {"grpc", "google.protobuf", "asyncio", "ssl"}


@pytest.fixture
async def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[dict[str, str]]:
    """The environment in which a command finds a running host."""
    for name in [name for name in os.environ if name.startswith("GSWARM_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("GSWARM_STATE_DIR", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    directory = state_dir()
    directory.mkdir(parents=True, exist_ok=True)
    async with host(Config(host=HostConfig(port=0, http_port=0, model_port=0)), directory):
        yield dict(os.environ)


async def loaded(env: dict[str, str], line: str, code: int = 0) -> set[str]:
    """The modules that a command has loaded at its end, packages of them too."""
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", CHILD, *line.split()],
        env=env,
        capture_output=True,
        text=True,
        timeout=60,
    )
    ended, modules = json.loads(done.stderr.splitlines()[-1])
    assert ended == code, done.stderr
    return set(modules)


@pytest.mark.parametrize("line", ["queue list", "model list", "status", "device list --output json", "model info nope"])
async def test_a_read_imports_nothing_heavy(served: dict[str, str], line: str) -> None:
    modules = await loaded(served, line, code=4 if "nope" in line else 0)
    assert modules & {"grpc", "typer"}, "it has asked the host"
    assert not modules & HEAVY
    rooms = {name.split(".")[1] for name in modules if name.startswith("gswarm.") and name.endswith(".actions")}
    domain = line.split()[0]
    assert rooms == {"cluster" if domain in ("status", "device") else domain}


async def test_yaml_is_loaded_for_those_who_ask_for_it(served: dict[str, str]) -> None:
    modules = await loaded(served, "queue list --output yaml")
    assert modules & HEAVY == {"yaml"}


@pytest.mark.parametrize("line", ["--help", "--version", "", "modle list"])
async def test_the_static_help_imports_no_framework_at_all(line: str) -> None:
    modules = await loaded(dict(os.environ), line, code=2 if line == "modle list" else 0)
    assert not modules & (HEAVY | WIRE | {"typer", "gswarm.catalogue", "gswarm.faces"})


@pytest.mark.parametrize("line", ["model serve --help", "queue --help", "model serve --nonsense", "host start --help"])
async def test_help_of_a_command_imports_no_wire(line: str) -> None:
    modules = await loaded(dict(os.environ), line, code=2 if "nonsense" in line else 0)
    assert not modules & (HEAVY | (WIRE - {"asyncio"}))


async def test_the_package_itself_is_light() -> None:
    code = "import gswarm, sys, json; sys.stderr.write(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not set(json.loads(done.stderr)) & (HEAVY | WIRE | {"typer"})


def test_a_process_is_known_by_its_start_without_psutil() -> None:
    """What replaces psutil here says the same as it does: for us, for an ended one, for a number used again."""
    ours = psutil.Process()
    assert net.same_process(ours.pid, ours.create_time())
    assert not net.same_process(ours.pid, ours.create_time() - 1)
    child = subprocess.Popen([sys.executable, "-c", ""])
    began = psutil.Process(child.pid).create_time()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert not net.same_process(child.pid, began), "a zombie runs no more"
    child.wait()
    assert not net.same_process(child.pid, began)
