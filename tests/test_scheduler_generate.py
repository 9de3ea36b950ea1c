"""Generated problems: files that read back as the same problem, and are the same for a seed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gswarm.scheduler import formats, instances
from gswarm.scheduler.generate import Recipe
from gswarm.scheduler.generate import generate as make
from tests.support.scheduler_commands import (
    Commands,
    commands,
)


@pytest.fixture
def scheduler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Commands:
    return commands(tmp_path, monkeypatch, capsys)


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(requests=40),
        Recipe(seed=2, requests=40, models=1, workflows=1, depth=1, width=1, gpus=1),
        Recipe(seed=3, requests=40, depth=7, width=4, wide_share=1.0, burst=9.0, saturation=0.1),
        Recipe(seed=4, requests=2, run_s=0.0, load_over_run=0.0),
        Recipe(seed=5, requests=40, gpu_memory_gb=80, shared=True, host_memory_gb=512, deadline_over_run=3),
    ],
    ids=["default", "one of each", "deep, wide and calm", "no time", "memory tiers and deadlines"],
)
def test_files_of_a_problem_read_back_as_the_same_problem(recipe: Recipe) -> None:
    made = make(recipe)
    config = formats.Document("c.json", "".join(instances.config_lines(made)).encode())
    requests = formats.Document("r.json", "".join(instances.request_lines(made)).encode())
    read = formats.problem_of(config, requests, recipe.gpus)
    assert (read.models, read.gpus, read.requests, read.nodes) == (made.models, made.gpus, made.requests, made.nodes)
    assert (read.shared, read.host_memory_gb, read.placements) == (made.shared, made.host_memory_gb, made.placements)
    for column in ("arrivals", "first", "model", "seconds", "pred_first", "preds", "release", "deadline"):
        assert np.array_equal(getattr(read, column), getattr(made, column)), column


def test_a_seed_gives_the_same_files(scheduler: Commands) -> None:
    files = []
    for seed, name in ((7, "x"), (7, "y"), (8, "z")):
        scheduler.good(f"generate --config {name}.json --requests {name}.json.gz --count 30 --seed {seed}")
        files.append((Path(f"{name}.json").read_bytes(), Path(f"{name}.json.gz").read_bytes()))
    assert files[0] == files[1] and files[0][1] != files[2][1]
    assert files[0][1].startswith(b"\x1f\x8b")
