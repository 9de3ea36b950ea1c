"""The tutorial's own lines, run as they are written: a real model, asked through the gateway, queued, recorded, replayed."""

from __future__ import annotations

import csv
import re
import subprocess
from pathlib import Path

import pytest

from tests.support.processes import Installation, free_ports, installation

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(900)]
ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    """Every line of the tutorial's console blocks that is typed."""
    blocks = BLOCK.findall((ROOT / "docs/tutorial.md").read_text())
    return [line.removeprefix("$ ") for block in blocks for line in block.splitlines() if line.startswith("$ ")]


def adapted(line: str, installed: Installation, service_port: int) -> str:
    """The line with this test's ports, since the tutorial's may be taken here."""
    return line.replace("9010", str(installed.model_port)).replace("--port 9100", f"--port {service_port}")


def ran(installed: Installation, service_port: int) -> dict[str, str]:
    """What each line printed. One shell runs them all and stops at the first that fails."""
    lines = commands()
    script = ["set -eu"]
    for number, line in enumerate(lines):
        script += [f"echo '@@{number}'", adapted(line, installed, service_port)]
    done = subprocess.run(
        ["bash", "-c", "\n".join(script)],
        cwd=ROOT,
        env=installed.env | {"GSWARM_BACKENDS_DIR": str(ROOT / ".cache/backends")},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=800,
        check=False,
    )
    parts = re.split(r"^@@(\d+)\n", done.stdout, flags=re.MULTILINE)
    said = {lines[int(number)]: text for number, text in zip(parts[1::2], parts[2::2], strict=True)}
    assert done.returncode == 0, f"{list(said)[-1:]} failed\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    assert "Traceback" not in done.stderr
    return said


def test_every_line_of_the_tutorial(tmp_path: Path) -> None:
    (service_port,) = free_ports(1)
    with installation(tmp_path) as installed:
        said = ran(installed, service_port)

        def of(beginning: str) -> str:
            found = [text for line, text in said.items() if line.startswith(beginning)]
            assert len(found) == 1, f"{beginning} is {len(found)} times in the tutorial"
            return found[0]

        assert "ready" in of("make run")
        assert of("gswarm model download smollm2 ").split()[-2:] == ["260M", "0"]
        assert of("gswarm model download smollm2-copy").split()[-2:] == ["260M", "260M"], "stored once"
        stored = [p for p in installed.state.rglob("*") if p.is_file() and p.stat().st_size > 200_000_000]
        assert len({p.stat().st_ino for p in stored}) == 1, "the weights lie on disk once"
        assert re.search(rf"^bound port +{service_port}$", of("gswarm model serve"), re.MULTILINE)
        assert of("python examples/ask.py").strip() == "The capital of France is Paris."
        assert len(of("gswarm queue list").strip().splitlines()) == 11
        assert "smollm2-copy" in of("gswarm queue plan")
        assert of("gswarm queue explain 9").startswith("task 9 is waiting")
        assert "10/10" in of("gswarm queue wait w1")
        assert "Paris" in of("gswarm queue info 1")
        then = of("gswarm --from first --at +2s queue list")
        assert "running" in then or "ready" in then, "the queue as it was, not as it ended"
        assert "smollm2" in of("gswarm --from first --at +2s queue plan")
        with (ROOT / "first.csv").open() as file:
            rows = list(csv.DictReader(file))
        (ROOT / "first.csv").unlink()
        assert rows
        assert "stopped" in of("make down")
        assert installed.processes() == [], "nothing is left running"


def test_serve_and_test(tmp_path: Path) -> None:
    (service_port,) = free_ports(1)
    with installation(tmp_path) as installed:
        env = installed.env | {"GSWARM_BACKENDS_DIR": str(ROOT / ".cache/backends")}
        command = [str(ROOT / "tests/serve_and_test.sh"), "smollm2", "cpu", str(service_port)]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=800, check=False)
        assert (done.returncode, done.stdout) == (0, "The capital of France is Paris.\n"), done.stderr
        assert installed.processes() == [], "what it brought up it took down"
        command[1] = "no-such-model"
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 4
        assert "there is no model no-such-model" in done.stderr
