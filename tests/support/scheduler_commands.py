"""`gswarm scheduler ...` on small files whose answers are known by hand: two models, two requests, two GPUs."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from gswarm.cli import run
from gswarm.scheduler.plan import Execution

GSWARM = Path(sys.executable).with_name("gswarm")
CONFIG = {
    "models": {
        "alpha": {"name": "", "memory_gb": 16, "gpus_required": 1, "load_time_seconds": 10},
        "beta": {"name": "", "memory_gb": 32, "gpus_required": 2, "load_time_seconds": 4},
    },
    "workflows": {
        "w": {
            "name": "w",
            "nodes": [
                {"id": "n1", "model": "alpha", "inputs": [], "outputs": []},
                {"id": "n2", "model": "beta", "inputs": [], "outputs": []},
            ],
            "edges": [{"from": "n1", "to": "n2"}],
        }
    },
}
REQUESTS = {
    "requests": [
        {
            "request_id": "r1",
            "timestamp": "2026-01-01T00:00:00",
            "workflow_id": "w",
            "node_execution_times": {"n1": 5, "n2": 3},
        },
        {
            "request_id": "r2",
            "timestamp": "2026-01-01T00:00:14",
            "workflow_id": "w",
            "node_execution_times": {"n1": 2, "n2": 1},
        },
    ]
}
# GPU 0 loads alpha (10 s) and runs both its tasks; then both GPUs load beta: 4 s, and 16 GB of alpha out at 16 GB/s.
RUNS = [
    Execution("r1", "n1", "alpha", (0,), 10, 15, 10),
    Execution("r2", "n1", "alpha", (0,), 15, 17, 0),
    Execution("r1", "n2", "beta", (0, 1), 22, 25, 5),
    Execution("r2", "n2", "beta", (0, 1), 25, 26, 0),
]
FILES = "--config c.json --requests r.json"
MADE = "--config gc.json --requests gr.json.gz"


@dataclass
class Done:
    code: int
    out: str
    err: str


class Commands:
    """`gswarm scheduler ...` in this process, in a directory with the small files."""

    def __init__(self, capture: pytest.CaptureFixture[str]) -> None:
        self.capture = capture

    def __call__(self, line: str, *more: str) -> Done:
        self.capture.readouterr()
        code = run(["scheduler", *line.split(), *more])
        out, err = self.capture.readouterr()
        assert "Traceback" not in err and "unforeseen" not in err, err
        return Done(code, out, err)

    def good(self, line: str, *more: str) -> str:
        done = self(line, *more)
        assert done.code == 0, done.err
        return done.out


def write_plan(name: str, runs: list[Execution], gpus: int = 2) -> None:
    Path(name).write_text(json.dumps({"gpus": gpus, "executions": [r._asdict() for r in runs]}))


def commands(directory: Path, monkeypatch: pytest.MonkeyPatch, capture: pytest.CaptureFixture[str]) -> Commands:
    """Go to an empty directory and put the small files there."""
    monkeypatch.chdir(directory)
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "80")
    Path("c.json").write_text(json.dumps(CONFIG, indent=1))
    Path("r.json").write_text(json.dumps(REQUESTS, indent=1))
    write_plan("plan.json", RUNS)
    return Commands(capture)


def rows(text: str) -> list[dict[str, object]]:
    found = json.loads(text)
    assert isinstance(found, list)
    return found
