"""The scheduler's commands all in one: through every one of them, wrong use, warnings, interruption, and what help loads."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from gswarm.scheduler import formats, planning
from tests.support.scheduler_commands import (
    CONFIG,
    FILES,
    GSWARM,
    MADE,
    Commands,
    commands,
    rows,
)


@pytest.fixture
def scheduler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Commands:
    return commands(tmp_path, monkeypatch, capsys)


@pytest.mark.parametrize("mode", ["offline", "online"])
@pytest.mark.parametrize("name", planning.names(online=True))
def test_memory_tiers_and_deadlines_go_through_every_command(scheduler: Commands, name: str, mode: str) -> None:
    scheduler.good(
        f"generate {MADE} --seed 3 --count 25 --gpus 5 --models 8 --gpu-memory-gb 80 --shared --host-memory-gb 300"
        " --deadline-over-run 4"
    )
    line = f"plan {MADE} --gpus 5 --strategy {name} --mode {mode} --out plan.json --output json"
    (row,) = rows(scheduler.good(line))
    assert isinstance(row["late"], int) and 0 <= row["late"] <= 25
    assert scheduler.good(f"validate {MADE} --plan plan.json --mode {mode}").startswith("plan.json is valid: ")
    assert " LATE " in scheduler.good(f"compare {MADE} --gpus 5 --mode online --strategy {name}").splitlines()[0]
    told = scheduler.good(f"simulate {MADE} --gpus 5 --strategy {name} --mode {mode} --output json --out again.json")
    assert {"arrival", "load", "loaded", "start", "end"} <= {json.loads(line)["kind"] for line in told.splitlines()}
    assert Path("plan.json").read_bytes() == Path("again.json").read_bytes()
    assert "gpu4" in scheduler.good(f"show --plan plan.json {MADE} --mode {mode}")
    loaded = next(r for r in formats.executions_of(formats.read_file(Path("plan.json")))[1] if r.switch_seconds)
    task = f"{loaded.request_id}/{loaded.node_id}"
    assert f" to load {loaded.model}" in scheduler.good(f"explain {MADE} --plan plan.json --task {task} --mode {mode}")


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (f"plan {FILES} --gpus 0 --strategy fifo", "there cannot be 0 GPUs"),
        (f"plan {FILES} --gpus 1000000000 --strategy fifo", "there cannot be 1000000000 GPUs. Give 1 to 65536"),
        (f"validate {FILES} --plan crowd.json", "there cannot be 1000000000 GPUs"),
        ("show --plan crowd.json", "there cannot be 1000000000 GPUs"),
        ("show --plan plan.json --width 1000000000", "--width from 1 to 10000"),
        (f"simulate {FILES} --gpus 2 --noise 0.1 --seed -1", "--seed is -1"),
        ("generate --config x --requests y --saturation 1e-300", "no such instance: it would have"),
        ("generate --config x --requests y --gpus 1000000000", "there cannot be 1000000000 GPUs"),
        (f"plan {FILES} --gpus 1 --strategy fifo", "c.json:12: models.beta.gpus_required: 2 GPUs"),
        (f"plan {FILES} --gpus two --strategy fifo", "'two' is not a valid int"),
        (f"plan {FILES} --gpus 2 --strategy onlin", "there is no strategy 'onlin'. Did you mean online"),
        (f"plan {FILES} --gpus 2 --strategy offline --mode online", "needs all requests at t = 0"),
        (f"plan {FILES} --gpus 2 --strategy offline --seconds -1", "a search takes no less"),
        (f"plan {FILES} --gpus 2 --strategy fifo --out no/p.json", "cannot write no/p.json: no such file"),
        ("plan --config no.json --requests r.json --gpus 2 --strategy fifo", "cannot read no.json: no such file"),
        ("plan --config . --requests r.json --gpus 2 --strategy fifo", "cannot read .: is a directory"),
        ("show --plan deep.json", "deep.json is nested too deep"),
        ("plan --config r.json --requests r.json --gpus 2 --strategy fifo", "r.json:1: models: is missing"),
        ("plan --config c.json --requests bad.json --gpus 2 --strategy fifo", "bad.json:2: is no JSON"),
        (f"validate {FILES} --plan c.json", "c.json:1: gpus: is missing"),
        (f"validate {FILES} --plan plan.json --limit 0", "--limit is 0"),
        (f"simulate {FILES} --gpus 2 --noise 1", "--noise is 1"),
        (f"simulate {FILES} --gpus 2 --strategy offline", "nothing to simulate"),
        (f"compare {FILES} --gpus 2 --strategy fifi", "there is no strategy 'fifi'"),
        (f"compare {FILES} --gpus 2 --plot a.pdf", "ends in .svg or .png"),
        (f"plan {FILES} --gpus 2 --strategy fifo --out ./c.json", "--out is c.json, which is read. Name another file"),
        (f"simulate {FILES} --gpus 2 --out r.json", "--out is r.json, which is read"),
        ("generate --config x --requests y --count 0", "at least 1"),
        ("generate --config x --requests y --saturation 0", "saturation is above 0"),
        ("generate --config x --requests ./x", "are both x"),
        ("generate --config x --requests y --zipf -1", "not negative"),
        ("generate --config x --requests y --gpu-memory-gb 2e9", "files say 1e+09 at most"),
        ("generate --config x --requests y --deadline-over-run 1e12", "files say 1e+09 at most"),
        (f"explain {FILES} --plan plan.json --task r9/n1", "there is no request 'r9'"),
        (f"explain {FILES} --plan plan.json --task r9/n1", "REQUEST/NODE. There are: r1, r2"),
        ("explain --config other.json --requests r.json --plan plan.json --task r1/n1", "the plan of other files"),
        (f"explain {FILES} --plan plan.json --task r1/n9", "request r1 has no node 'n9': n1, n2"),
        (f"explain {FILES} --plan plan.json --task n1", "there is no task 'n1'; a task is named REQUEST/NODE"),
        ("show --plan plan.json --config c.json", "belong together"),
        ("show --plan plan.json --start 9 --end 3", "nothing to show"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(scheduler: Commands, line: str, told: str) -> None:
    Path("bad.json").write_text('{"requests":\n nope}')
    Path("deep.json").write_text("[" * 200_000)
    Path("crowd.json").write_text('{"gpus": 1000000000, "executions": []}')
    Path("other.json").write_text(json.dumps(CONFIG).replace('"model": "alpha"', '"model": "beta"'))
    done = scheduler(line)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("gswarm: error: ") and told in done.err and done.err.count("\n") == 1
    assert not {"x", "y", "a.pdf"} & {p.name for p in Path().iterdir()}


def test_a_strategy_that_cannot_be_loaded_is_named_and_the_others_go_on(
    scheduler: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    def installed(group: str) -> list[EntryPoint]:
        return [EntryPoint("theirs", "no_such_package:Best", group)]

    monkeypatch.setattr("gswarm.scheduler.strategies.entry_points", installed)
    why = "the strategy theirs cannot be loaded from no_such_package:Best: ModuleNotFoundError"
    for line in (f"plan {FILES} --gpus 2 --strategy theirs", f"simulate {FILES} --gpus 2 --strategy theirs"):
        done = scheduler(line)
        assert (done.code, done.out) == (1, "") and f"error: {why}" in done.err
    done = scheduler(f"compare {FILES} --gpus 2 --seconds 0")
    assert done.code == 0 and f"warning: theirs cannot do this: {why}" in done.err
    assert [line.split()[0] for line in done.out.splitlines()[1:]] == [*planning.names(online=False)[:5], "offline"]


def test_what_is_ignored_is_said(scheduler: Commands) -> None:
    edge = '{"from": "n1", "to": "n2"}'
    text = json.dumps(CONFIG).replace(edge, f'{edge}, {{"from": "n1", "to": "nowhere"}}')
    Path("c.json").write_text(text)
    done = scheduler(f"plan {FILES} --gpus 2 --strategy fifo")
    assert done.code == 0 and "warning: c.json: workflows.w.edges[1]: ignored" in done.err
    assert "warning" not in done.out


def test_nothing_to_do_is_a_plan_too(scheduler: Commands) -> None:
    Path("r.json").write_text('{"requests": []}')
    for name in planning.names(online=False):
        scheduler.good(f"plan {FILES} --gpus 2 --strategy {name} --out plan.json")
        assert "0 tasks on 2 GPUs" in scheduler.good(f"validate {FILES} --plan plan.json")
    assert scheduler.good("show --plan plan.json").startswith("makespan 0.0 s")


def test_an_interrupt_ends_it_at_once_and_leaves_no_file(scheduler: Commands) -> None:
    scheduler.good(f"generate {MADE} --count 300")
    words = f"plan {MADE} --gpus 8 --strategy offline --seconds 100 --out p.json".split()
    child = subprocess.Popen([GSWARM, "scheduler", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert child.stderr and child.stdout
    assert child.stderr.readline().startswith("planning with offline"), "what takes long says so"
    child.send_signal(signal.SIGINT)
    said, out = child.stderr.read(), child.stdout.read()
    assert child.wait(20) == 130 and "error" not in said and out == ""
    assert said.endswith("gswarm: interrupted\n")
    assert not [p.name for p in Path().iterdir() if "p.json" in p.name]


def test_an_interrupt_between_two_pieces_of_work_ends_it_before_the_next(scheduler: Commands) -> None:
    # The event loop has the signal while nothing is worked on, and only marks its task.
    code = (
        "import os, signal, sys; from gswarm.cli import run; from gswarm.scheduler import access;"
        "checked = access.check_strategy;"
        "access.check_strategy = lambda *a, **k: (checked(*a, **k), os.kill(os.getpid(), signal.SIGINT));"
        "sys.exit(run(sys.argv[1:]))"
    )
    words = f"scheduler plan {FILES} --gpus 2 --strategy offline --seconds 100 --out p.json".split()
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "gswarm: interrupted\n")
    assert not Path("p.json").exists()


def test_help_loads_nothing_that_plans() -> None:
    code = (
        "import sys; from gswarm.cli import run; run(['scheduler', 'plan', '--help']);"
        "sys.exit(', '.join(sys.modules.keys() & {'numpy', 'yaml', 'matplotlib', 'gswarm.scheduler.access'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert "--strategy" in done.stdout and done.stderr.strip() == "", done.stderr
