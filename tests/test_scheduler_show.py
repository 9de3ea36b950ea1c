"""A plan shown as lanes in a terminal: it fits any width, does without colour, and nothing vanishes."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from gswarm.scheduler.lanes import IDLE, Axis, Block, Form, blocks, draw, initials, owners
from gswarm.scheduler.plan import Execution
from tests.support.scheduler_commands import (
    FILES,
    GSWARM,
    MADE,
    RUNS,
    Commands,
    commands,
    write_plan,
)


@pytest.fixture
def scheduler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Commands:
    return commands(tmp_path, monkeypatch, capsys)


def test_lanes_at_80_columns_without_colour(scheduler: Commands) -> None:
    shown = scheduler.good("show --plan plan.json").splitlines()
    assert shown[0] == "makespan 26.0 s · 2 switches, 15.0 s · utilisation 29%"
    assert shown[1] == "     0s            5s             10s           15s            20s           25s"
    # 75 cells of 0.347 s: 10 s of load are 28.8 of them, 7 s of alpha 20.2, 5 s of load 14.4, 4 s of beta 11.5.
    assert shown[2] == f"gpu0 {'░' * 29}▌alpha ×2{'─' * 11}{'░' * 14}▌beta ×2────"
    assert shown[3] == f"gpu1 {' ' * 49}{'░' * 14}▌beta ×2────"
    assert shown[4] == "▌alpha (A)  ▌beta (B)  ░ load  1 cell 0.347 s"
    assert len(shown) == 5 and all(len(line) <= 80 and "\x1b" not in line for line in shown)
    told = scheduler.good(f"show --plan plan.json {FILES}").splitlines()[0]
    assert " × bound · " in told and len(told) <= 80


@pytest.mark.parametrize("width", [1, 10, 40, 200])
def test_lanes_fit_any_width(scheduler: Commands, width: int) -> None:
    scheduler.good(f"generate {MADE} --count 50 --gpus 12")
    scheduler.good(f"plan {MADE} --gpus 12 --strategy baseline --out p.json")
    shown = scheduler.good(f"show --plan p.json --width {width}").splitlines()
    assert sum(line.startswith("gpu"[:width]) for line in shown[2:14]) == 12
    assert all(len(line) <= max(width, len("gpu11 ") + 1) for line in shown)


def test_lanes_in_ascii_where_the_locale_has_no_more(scheduler: Commands) -> None:
    asked = scheduler.good("show --plan plan.json --ascii")
    assert asked.isascii() and "[alpha x2===" in asked and ":::" in asked
    env = {**os.environ, "PYTHONIOENCODING": "ascii", "COLUMNS": "80"}
    words = [str(GSWARM), "scheduler", "show", "--plan", "plan.json"]
    done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == asked


def test_a_part_of_a_plan_is_shown_alone(scheduler: Commands) -> None:
    shown = scheduler.good("show --plan plan.json --start 17 --end 26").splitlines()
    assert shown[2].startswith("gpu0 ░░░░") and "alpha" not in shown[2] and "beta ×2" in shown[2]
    assert shown[2][5:] == shown[3][5:]


def test_colours_tell_models_apart_and_change_no_cell() -> None:
    plain, coloured = (draw(RUNS, 2, width=60, form=form) for form in (Form.PLAIN, Form.COLOUR))
    assert "\x1b[30;43m▌alpha ×2" in coloured[1] and "\x1b[30;46m▌beta ×2" in coloured[1]
    bare = [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in coloured]
    assert bare == [line.replace("─", " ") for line in plain]


def test_blocks_end_at_a_load_another_model_or_a_pause() -> None:
    assert blocks(RUNS, 2) == [
        [Block("alpha", 10, 17, 10, 2), Block("beta", 22, 26, 5, 2)],
        [Block("beta", 22, 26, 5, 2)],
    ]
    apart = [RUNS[0], RUNS[1]._replace(start=18.0, end=20.0)]
    assert [b.count for b in blocks(apart, 1)[0]] == [1, 1]
    assert [b.count for b in blocks(apart, 1, gap_s=3.0)[0]] == [2]
    again = [RUNS[0], RUNS[1]._replace(start=25.0, end=27.0, switch_seconds=10.0)]
    assert [b.load_s for b in blocks(again, 1, gap_s=100.0)[0]] == [10, 10]


def test_a_cell_shows_what_takes_most_of_it_and_nothing_vanishes() -> None:
    lane = [Block("a", 1, 1.2, 0, 1), Block("b", 1.2, 1.9, 0, 1), Block("c", 5, 5, 0, 1)]
    assert owners(lane, Axis(0, 8, 8)) == [(n, False) for n in (IDLE, 1, IDLE, IDLE, IDLE, 2, IDLE, IDLE)]
    assert owners([Block("a", 4, 8, 2, 1)], Axis(0, 8, 4)) == [(IDLE, False), (0, True), (0, False), (0, False)]


def test_names_are_shortened_as_far_as_they_stay_apart() -> None:
    assert initials(["llama", "sdxl", "sd"]) == {"llama": "L", "sdxl": "Sdx", "sd": "sd"}


def test_a_name_cannot_steer_the_terminal() -> None:
    runs = [RUNS[0]._replace(model="a\x1b[2Jb")]
    assert "\x1b" not in "".join(draw(runs, 1, width=60, form=Form.PLAIN))


def test_models_beside_each_other_have_a_lane_each(scheduler: Commands) -> None:
    runs = [
        Execution("r1", "n1", "alpha", (0,), 10, 30, 10),
        Execution("r2", "n1", "gamma", (0,), 12, 20, 10),
        Execution("r3", "n1", "alpha", (0,), 30, 40, 0),
        Execution("r4", "n1", "gamma", (0,), 20, 40, 0),
    ]
    write_plan("beside.json", runs, gpus=1)
    _, _, first, second, legend = scheduler.good("show --plan beside.json --width 60").splitlines()
    assert first.startswith("gpu0 ") and "alpha ×2" in first and "gamma" not in first
    assert second.startswith("     ") and "gamma ×2" in second and "alpha" in legend
