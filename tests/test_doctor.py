"""What `gswarm doctor` finds: nothing to do on a good machine, and for each trouble what it is and what to do."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from gswarm import config as settings
from gswarm.system import doctor
from gswarm.system.types import Finding, Verdict
from tests.support.nvml import LOST, Stub, compiler
from tests.support.processes import Installation, free_ports, installation


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A machine with a state directory, ports and shared memory of its own; no host runs."""
    for name in ("GSWARM_HOST", "GSWARM_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    state, shm = tmp_path / "state", tmp_path / "shm"
    state.mkdir(mode=0o700)
    shm.mkdir(mode=0o700)
    monkeypatch.setenv("GSWARM_STATE_DIR", str(state))
    monkeypatch.setenv("GSWARM_SHM_DIR", str(shm))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("TERM", "xterm-256color")
    names = ("GSWARM_HOST_PORT", "GSWARM_HOST_HTTP_PORT", "GSWARM_HOST_MODEL_PORT")
    for name, port in zip(names, free_ports(3), strict=True):
        monkeypatch.setenv(name, str(port))
    settings.state_dir().mkdir(mode=0o700, parents=True, exist_ok=True)
    yield tmp_path


def found() -> dict[str, Finding]:
    """Findings by id; each that is not ok says what to do."""
    findings = doctor.examine()
    assert all(one.next for one in findings if one.verdict is not Verdict.OK), findings
    return {one.id: one for one in findings}


def failed(findings: dict[str, Finding]) -> set[str]:
    return {one.id for one in findings.values() if one.verdict is Verdict.FAILED}


def test_an_idle_machine_without_gpus_has_nothing_broken() -> None:
    findings = found()
    assert not failed(findings)
    assert findings["host"].verdict is Verdict.WARNING and "gswarm up" in findings["host"].next
    for name in ("config", "state", "ports.port", "ports.http_port", "ports.model_port", "shm", "terminal"):
        assert findings[name].verdict is Verdict.OK, findings[name]


@pytest.mark.parametrize("name", ["host.token", "host.key"])
@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604])
def test_a_secret_that_others_may_read_is_found_though_no_host_runs(name: str, mode: int) -> None:
    secret = settings.state_dir() / name
    secret.write_text("x")
    secret.chmod(0o600)
    assert "token.mode" not in found()
    secret.chmod(mode)
    finding = found()["token.mode"]
    assert finding.verdict is Verdict.FAILED and finding.next == f"chmod 600 {secret}"


def test_a_state_directory_that_others_may_read_is_found() -> None:
    settings.state_dir().chmod(0o755)
    assert found()["state.mode"].next == f"chmod 700 {settings.state_dir()}"


def test_a_port_in_use_is_named_with_its_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setenv("GSWARM_HOST_HTTP_PORT", str(port))
        findings = found()
        finding = findings["ports.http_port"]
        assert finding.verdict is Verdict.WARNING and str(port) in finding.found and "host.http_port" in finding.next
        assert findings["ports.port"].verdict is Verdict.OK
    assert found()["ports.http_port"].verdict is Verdict.OK


class Usage(NamedTuple):
    total: int
    used: int
    free: int


def test_full_shared_memory_is_found_and_only_that(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measure = shutil.disk_usage

    def usage(path: Path) -> object:
        return Usage(1 << 30, (1 << 30) - 4096, 4096) if path == machine / "shm" else measure(path)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    findings = found()
    assert findings["shm"].verdict is Verdict.WARNING and "delete chunks" in findings["shm"].next
    assert "4" in findings["shm"].found and findings["state"].verdict is Verdict.OK


def test_shared_memory_that_an_agent_will_make_is_no_trouble_but_a_file_in_its_place_is(machine: Path) -> None:
    (machine / "shm").rmdir()
    assert found()["shm"].verdict is Verdict.OK
    (machine / "shm").write_text("")
    assert found()["shm"].verdict is Verdict.FAILED


@pytest.mark.parametrize(
    ("name", "value", "check"),
    [("GSWARM_TOKEN", "nonsense", "token"), ("GSWARM_HOST", "a b:c", "token"), ("GSWARM_HOST_PORT", "many", "config")],
)
def test_a_bad_setting_is_told_and_not_passed_over(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, check: str
) -> None:
    if name == "GSWARM_TOKEN":
        monkeypatch.setenv("GSWARM_HOST", "127.0.0.1:9")
    monkeypatch.setenv(name, value)
    finding = found()[check]
    assert finding.verdict is Verdict.FAILED and finding.next not in finding.found


def test_a_host_named_without_a_token_says_how_to_get_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GSWARM_HOST", "127.0.0.1:9")
    finding = found()["token"]
    assert finding.verdict is Verdict.FAILED and "GSWARM_TOKEN" in finding.next


def told(here: Installation) -> dict[str, dict[str, object]]:
    return {str(row["id"]): row for row in here.rows("doctor")}


@pytest.mark.skipif(compiler() is None, reason="no C compiler for the stub NVML")
def test_a_good_machine_with_its_host_and_gpus(tmp_path: Path) -> None:
    """Whole processes: a host and an agent run, and NVML gives eight GPUs, of which then one falls off the bus."""
    (tmp_path / "stub").mkdir()
    stub = Stub(tmp_path / "stub", "devices 8")
    with installation(tmp_path / "here") as here:
        here.root.mkdir()
        here.env |= {**stub.env, "TERM": "xterm"}
        here.run("up", "--no-console", timeout=90)
        rows = told(here)
        assert {row["verdict"] for name, row in rows.items() if not name.startswith("backend.")} == {"ok"}, rows
        assert str(here.port) in str(rows["host"]["found"]) and "8 GPUs" in str(rows["nvml"]["found"])
        assert "admin" in str(rows["token"]["found"]) and not any(name.startswith("ports") for name in rows)
        (token,) = here.state.rglob("host.token")
        token.chmod(0o644)
        stub.set("devices 8", f"fail 3 * {LOST}")
        rows = told(here)
        assert rows["token.mode"]["verdict"] == rows["nvml"]["verdict"] == "failed", rows
        here.run("down", timeout=60)
