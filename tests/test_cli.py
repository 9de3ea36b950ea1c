"""The command line as a person or a script meets it: real processes against a real host."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import select
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from gswarm import units
from gswarm.catalogue import Action, actions
from gswarm.cli import run
from tests.support.processes import BIN, Installation, eventually, installation

pytestmark = pytest.mark.e2e
FLOW = "name: {name}\nactions:\n  - {{id: a, type: inference, model: nothing, prompt: hi}}\n"


@pytest.fixture(scope="module")
def swarm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    """A host with a simulated node, a model, a workflow that nothing can run, and a marker among the events."""
    root = tmp_path_factory.mktemp("cli")
    with installation(root) as made:
        spawn = {"env": made.env, "cwd": root, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        host = subprocess.Popen([BIN / "gswarm", "host", "start"], **spawn)  # type: ignore[call-overload]
        eventually(lambda: made.result("status").returncode, lambda code: code == 0, what="the host answers")
        connect = ["client", "connect", f"127.0.0.1:{made.port}", "--simulate", "2xH100", "--name", "n1"]
        agent = subprocess.Popen([BIN / "gswarm", *connect], **spawn)  # type: ignore[call-overload]
        eventually(lambda: len(made.rows("device", "list")), lambda count: count >= 3, what="the node is there")
        (root / "flow.yaml").write_text(FLOW.format(name="flow"))
        made.run("queue", "submit", "flow.yaml", "--no-wait")
        made.run("model", "download", "sim-7b", "--source", "simulated:14GiB", "--node", "n1")
        yield made
        for process in (agent, host):
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0


class Here(Installation):
    """The same installation, its commands run in this process: the whole command line but for starting Python."""

    def __init__(self, made: Installation, capture: pytest.CaptureFixture[str]) -> None:
        vars(self).update(vars(made))
        self.capture = capture

    def result(
        self, *arguments: str, timeout: float = 60, stdin: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run `gswarm ARGUMENTS` and give everything it said."""
        self.capture.readouterr()
        code = run(arguments)
        out, err = self.capture.readouterr()
        return subprocess.CompletedProcess(arguments, code, out, err)


@pytest.fixture
def here(swarm: Installation, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Here:
    for name in [name for name in os.environ if name.startswith("GSWARM_")]:
        monkeypatch.delenv(name)
    for name, value in swarm.env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(swarm.root)
    monkeypatch.setattr("sys.stdin", io.StringIO())
    return Here(swarm, capsys)


def said(swarm: Installation, *words: str, code: int) -> str:
    """What a failing command says on standard error: one message, no data, no traceback."""
    done = swarm.result(*words)
    assert (done.returncode, done.stdout) == (code, ""), done
    assert done.stderr.startswith("gswarm: error: ") and "Traceback" not in done.stderr
    assert done.stderr.count("\n") == 1
    return done.stderr


# Wrong words: exit 2, and what was probably meant.


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("modle list", "Did you mean model"),
        ("model lst", "No such command 'lst'. Did you mean 'list'?\n"),
        ("model list --ouput json", "--output"),
        ("model list --output xml", "'table', 'json', 'yaml'"),
        ("--output xml model list", "One of table, json, yaml"),
        ("--host", "--host needs a value"),
        ("--host a|b status", "Write HOST:PORT"),
        ("model list --limit x", "--limit"),
        ("model list --limit -1", "a limit of -1"),
        ("model list --filter nam=3", "Did you mean name?"),
        ("model list --filter nam", "field=value"),
        ("queue list --filter stat=ready", "Did you mean state?"),
        ("queue list --filter where=n1", "There are task, action, type, model, priority, state, detail and the fields"),
        ("queue list --filter state=finished", "phase is never 'finished'. There are: backoff, cancelled"),
        ("queue list --filter PRIORITY=hgh", "Did you mean high?"),
        ("queue list --sort stat", "Did you mean state?"),
        ("model list --filter simulated=yes", "There are: false, true"),
        ("device list --filter MEMORY=much", "memory_bytes is never 'much'. Write a size, such as 80G"),
        ("node list --filter CPUS!=4k", "Write a number"),
        ("profiler export --format xml x", "'xml' is not one of"),
        ("model serve", "Missing argument 'name'"),
        ("model annotate sim-7b --set x", "'x' is not key=value"),
        ("token create t superuser", "'viewer'"),
        ("completion tcsh", "bash|zsh|fish"),
        ("--at +12m queue list", "--from"),
        ("--from . --at +12m model serve sim-7b", "changes things"),
        ("--from . queue cancel 1 2", "queue cancel changes things"),
        ("--from . token list", "no secrets"),
        ("--from . model logs sim-7b", "stays on their nodes"),
        ("--from . logs host", "this machine"),
        ("logs", "Missing argument 'role'. Choose from: host, agent"),
        ("queue submit nowhere.yaml", "nowhere.yaml"),
    ],
)
def test_wrong_words_are_refused_with_what_was_meant(here: Here, line: str, told: str) -> None:
    assert told in said(here, *line.split(), code=2)


def test_a_group_without_a_command_shows_what_there_is(here: Here) -> None:
    done = here.result("model")
    assert (done.returncode, done.stdout) == (2, "") and "  serve " in done.stderr


def test_a_workflow_with_a_mistake_is_refused_whole_with_its_place(here: Here) -> None:
    (here.root / "wrong.yaml").write_text(FLOW.format(name="wrong").replace("prompt", "promt"))
    before = len(here.rows("queue", "workflows"))
    assert re.search(r"wrong\.yaml:3:\d+", said(here, "queue", "submit", "flow.yaml", "wrong.yaml", code=2))
    assert len(here.rows("queue", "workflows")) == before


# What is asked for comes on standard output, in three shapes of one truth.

# Streams, writes files, waits.
NO_DATA = (
    "model logs",
    "data get",
    "profiler export",
    "profiler pull",
    "profiler plot",
    "profiler report",
    "queue wait",
)
READS = [a for a in actions() if a.read and not a.local and a.name not in NO_DATA]


@pytest.fixture(scope="module")
def subjects(swarm: Installation) -> dict[str, str]:
    """By kind, the name of something that is there."""
    swarm.run("profiler", "start", "--name", "run")
    swarm.run("profiler", "stop", "run")
    (swarm.root / "bytes.bin").write_bytes(b"some bytes")
    chunk = swarm.json("data", "put", "bytes.bin", "--type", "file")
    assert isinstance(chunk, dict)
    return {"node": "n1", "device": "n1:gpu0", "model": "sim-7b", "task": "1", "session": "run", "chunk": chunk["id"]}


@pytest.mark.parametrize("action", READS, ids=[a.id for a in READS])
def test_every_read_prints_table_json_and_yaml(here: Here, subjects: dict[str, str], action: Action) -> None:
    words = [subjects[p.ref] for p in action.parameters if p.required]
    told = {shape: here.result(*action.name.split(), *words, "-o", shape) for shape in ("table", "json", "yaml")}
    for shape, done in told.items():
        assert (done.returncode, done.stderr) == (0, ""), f"{shape}: {done}"
        assert done.stdout.endswith("\n") and "\x1b" not in done.stdout
    plain = json.loads(told["json"].stdout)
    assert type(plain) is type(yaml.safe_load(told["yaml"].stdout))
    fields = set(plain) if isinstance(plain, dict) else {field for row in plain for field in row}
    other = yaml.safe_load(told["yaml"].stdout)
    assert fields == (set(other) if isinstance(other, dict) else {field for row in other for field in row})
    if isinstance(plain, list):
        assert len(told["table"].stdout.splitlines()) == len(plain) + 1
    for value in words:
        assert value in told["table"].stdout and value in told["json"].stdout


@pytest.mark.parametrize("line", ["node list", "device list", "model placements", "queue list", "queue workflows"])
def test_what_a_table_shows_under_state_filters_it(here: Here, line: str) -> None:
    every, words = here.rows(*line.split()), line.split()
    (phase,) = {str(row["phase"]) for row in every}
    for name in ("state", "STATE", "phase"):
        assert here.rows(*words, "--filter", f"{name}={phase}") == every
        assert here.rows(*words, "--filter", f"{name}!={phase}") == []


def test_headings_that_are_no_names_of_fields_filter_too(here: Here) -> None:
    (gpu,) = here.rows("device", "list", "--filter", "DEVICE=n1:gpu0")
    assert gpu["id"] == "SIM-n1-0"
    assert [row["id"] for row in here.rows("queue", "workflows", "--filter", "BY=local", "--filter", "id=w1")] == ["w1"]
    assert here.rows("model", "services", "--filter", "TOK/S=1") == []
    shown = f"MEMORY={units.size(int(str(gpu['memory_bytes'])))}"
    assert gpu in here.rows("device", "list", "--filter", "KIND=SIM", "--filter", shown)
    assert here.rows("device", "list", "--filter", "KIND!=SIM") == here.rows("device", "list", "--filter", "kind=cpu")
    assert [row["name"] for row in here.rows("model", "list", "--filter", "size~1", "--sort", "-SIZE")] == ["sim-7b"]


def test_times_are_utc_and_what_is_unknown_is_null(here: Here) -> None:
    (task,) = here.rows("queue", "list", "--filter", "action=a", "--limit", "1")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", str(task["created_at"]))
    assert task["started_at"] is None and task["tokens_out"] is None


def test_simulated_devices_say_so(here: Here) -> None:
    lines = [line for line in here.run("device", "list").splitlines() if ":gpu" in line]
    assert len(lines) == 2 and all("SIM" in line.split() for line in lines)


def test_rows_left_out_are_told_on_standard_error(here: Here) -> None:
    done = here.result("device", "list", "--limit", "1", "--output", "json")
    assert len(json.loads(done.stdout)) == 1
    assert done.stderr == "gswarm: 2 more rows are not shown; use --limit\n"


def test_options_stand_before_or_after_the_command(here: Here) -> None:
    after = here.run("device", "list", "--output", "json", "--host", f"127.0.0.1:{here.port}")
    before = here.run("--output=json", "--host", f"127.0.0.1:{here.port}", "device", "list")
    assert json.loads(before) == json.loads(after)


def in_terminal(swarm: Installation, *words: str, columns: int, **env: str) -> str:
    """What a command draws on a terminal that wide."""
    import fcntl
    import struct
    import termios

    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    process = subprocess.Popen(
        [BIN / "gswarm", *words], env=swarm.env | env, stdin=slave, stdout=slave, stderr=slave, cwd=swarm.root
    )
    os.close(slave)
    drawn = b""
    while select.select([master], [], [], 30)[0]:
        try:
            piece = os.read(master, 65536)
        except OSError:  # the other side is closed
            break
        drawn += piece
    os.close(master)
    assert process.wait(10) == 0, drawn
    return drawn.decode().replace("\r\n", "\n")


def test_a_narrow_terminal_gets_lines_that_do_not_wrap(swarm: Installation) -> None:
    wide = in_terminal(swarm, "device", "list", columns=200).splitlines()
    narrow = in_terminal(swarm, "device", "list", columns=40, NO_COLOR="1").splitlines()
    assert len(narrow) == len(wide) == 4
    assert max(map(len, wide)) > 40 >= max(map(len, narrow))
    assert not any("\x1b" in line for line in narrow)


def test_help_has_the_examples_and_needs_no_host(tmp_path: Path) -> None:
    with installation(tmp_path) as alone:
        told = alone.run("model", "serve", "--help")
        assert "gswarm model serve smollm2 --device cpu --port 9100\n" in told
        assert "--device" in told and "--wait / --no-wait" in told
        assert "Exit codes" in alone.run("--help") == alone.run("help") == alone.run()
        assert re.fullmatch(r"gswarm \d+\.\d+\.\d+\n", alone.run("--version"))
        assert not alone.state.exists(), "looking for help leaves nothing behind"


# What went wrong, as exit codes.


def test_no_host_is_exit_3(tmp_path: Path) -> None:
    with installation(tmp_path) as alone:
        assert "gswarm up" in said(alone, "model", "list", code=3)
        told = said(alone, "--host", f"127.0.0.1:{alone.port}", "model", "list", code=3)
        assert f"no gswarm host answers at 127.0.0.1:{alone.port}" in told


def test_not_found_is_exit_4_with_the_near_name(here: Here) -> None:
    assert "Did you mean sim-7b?" in said(here, "model", "info", "sim-7", code=4)
    assert "Did you mean n1:gpu" in said(here, "device", "show", "n1:gpu7", code=4)
    assert "there is no task 4711" in said(here, "queue", "explain", "4711", code=4)


def test_a_metric_that_there_is_not_is_exit_4_with_the_near_name(here: Here) -> None:
    assert "Did you mean power_mw" in said(here, "profiler", "metrics", "powr_mw", code=4)


def test_refused_is_exit_5(here: Here) -> None:
    assert "add --yes" in said(here, "model", "delete", "sim-7b", code=5).lower()
    assert here.json("model", "info", "sim-7b")
    here.run("token", "create", "twice", "viewer")
    assert "there is a token named twice" in said(here, "token", "create", "twice", "viewer", code=5)


def test_a_viewer_reads_and_changes_nothing(here: Here) -> None:
    made = here.json("token", "create", "watcher", "viewer")
    assert isinstance(made, dict)
    (here.root / "viewer.token").write_text(made["token"])
    asks = ("--token-file", "viewer.token")
    assert "sim-7b" in here.run(*asks, "model", "list")
    assert "viewer" in said(here, *asks, "model", "annotate", "sim-7b", "--set", "a=b", code=5)
    assert "not a gswarm token" in said(here, "--token-file", "flow.yaml", "model", "list", code=5)
    (here.root / "other.token").write_text("gsw1.admin." + "x" * 43)
    assert "token" in said(here, "--token-file", "other.token", "model", "list", code=5)


DRY = (
    "model annotate sim-7b --set team=search",
    "model delete sim-7b",
    "model serve sim-7b --device n1:gpu0 --service dry",
    "model download dry --source simulated:1GiB --node n1",
    "queue submit flow.yaml",
    "queue cancel 1",
    "queue priority high 1",
    "token create dry viewer",
    "token revoke spare",
    "profiler start --name dry",
    "profiler mark dry",
    "data put flow.yaml",
)


def test_a_dry_run_is_answered_and_changes_nothing(here: Here) -> None:
    spare = here.json("token", "create", "spare", "viewer")
    assert isinstance(spare, dict)
    (here.root / "spare.token").write_text(spare["token"])

    def standing() -> list[object]:
        return [
            here.rows("model", "list"),
            here.rows("token", "list"),
            here.rows("profiler", "list"),
            here.rows("data", "list"),
            [service["name"] for service in here.rows("model", "services")],
            [placement["id"] for placement in here.rows("model", "placements")],
            [(task["id"], task["phase"], task["priority"]) for task in here.rows("queue", "list")],
            [event["id"] for event in here.rows("event", "list", "--filter", "actor=local")],
        ]

    before = standing()
    for line in DRY:
        here.run(*line.split(), "--dry-run")
    assert standing() == before
    assert here.run("--token-file", "spare.token", "model", "list"), "a token that was not revoked is good"


def test_a_cancel_prints_the_tasks_it_cancelled(here: Here) -> None:
    made = here.json("queue", "submit", "flow.yaml", "--no-wait")
    assert isinstance(made, list)
    heading, line = here.run("queue", "cancel", "--workflow", made[0]["id"], "--yes").splitlines()
    assert heading.split()[:2] == ["TASK", "ACTION"]
    assert line.split()[0] == str(made[0]["first_task"]) and "cancelled" in line
    assert "queue cancel 7 8 was not confirmed" in said(here, "queue", "cancel", "7", "8", code=5)
    assert "queue cancel was not confirmed" in said(here, "queue", "cancel", "--workflow", made[0]["id"], code=5)
    assert "nothing to cancel" in said(here, "queue", "cancel", "--yes", code=2)


def test_switched_sampling_is_told_in_words(here: Here) -> None:
    assert here.run("profiler", "sampling", "--nvlink", "on") == "1 node told to sample something else\n"
    assert here.run("profiler", "sampling", "--nvlink", "on") == "0 nodes told to sample something else\n"
    assert '"changed": 1' in here.run("profiler", "sampling", "--nvlink", "off", "-o", "json")


def test_a_retry_prints_the_tasks_it_puts_back_to_work(here: Here) -> None:
    made = here.json("queue", "submit", "flow.yaml", "--no-wait")
    assert isinstance(made, list)
    task = str(made[0]["first_task"])
    here.run("queue", "cancel", task, "--yes")
    heading, line = here.run("queue", "retry", task).splitlines()
    assert heading.split()[:2] == ["TASK", "ACTION"] and line.split()[0] == task and "cancelled" not in line
    assert "has not failed" in said(here, "queue", "retry", task, code=5)
    here.run("queue", "cancel", task, "--yes")


def test_a_dry_run_refuses_what_would_be_refused(here: Here) -> None:
    assert "there is no" in said(here, "model", "annotate", "nope", "--set", "a=b", "--dry-run", code=4)
    here.run("token", "create", "twin", "viewer")
    assert "there is a token named twin" in said(here, "token", "create", "twin", "viewer", "--dry-run", code=5)


def test_a_command_repeated_with_its_request_id_is_answered_not_repeated(here: Here) -> None:
    submit = ("queue", "submit", "flow.yaml", "--no-wait", "--request-id", "once")
    first = here.json(*submit)
    assert here.json(*submit) == first
    assert isinstance(first, list)
    assert [w["id"] for w in here.rows("queue", "workflows")].count(first[0]["id"]) == 1
    other = ("model", "annotate", "sim-7b", "--set", "a=b")
    assert "request id once was used" in said(here, *other, "--request-id", "once", code=5)


def test_a_wait_that_takes_too_long_is_exit_124_and_the_work_goes_on(here: Here) -> None:
    done = here.result("queue", "submit", "flow.yaml", "--timeout", "0.5")
    assert (done.returncode, done.stdout) == (124, "")
    assert "not done after 0.5 s" in done.stderr and "goes on" in done.stderr
    (number,) = re.findall(r"workflow (w\d+)", done.stderr)
    (flow,) = here.rows("queue", "workflows", "--filter", f"id={number}")
    assert flow["phase"] == "active"


def test_a_host_that_does_not_answer_is_exit_124_with_a_timeout(here: Here) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        told = said(here, "status", "--host", address, "--timeout", "0.4", code=124)
    assert "status took longer than 0.4 s" in told


# Interrupts: what was asked goes on, and the person is told how to find it.


def test_ctrl_c_while_waiting_detaches(swarm: Installation) -> None:
    process = subprocess.Popen(
        [BIN / "gswarm", "queue", "submit", "flow.yaml"],
        env=swarm.env,
        cwd=swarm.root,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    number = process.stderr.readline().partition(":")[0]
    assert re.fullmatch(r"w\d+", number)
    process.send_signal(signal.SIGINT)
    out, rest = process.communicate(timeout=30)
    assert (process.returncode, out) == (130, "")
    (request,) = re.findall(r"^gswarm: detached; it goes on \(request id (\w+)\)\n$", rest)
    (flow,) = swarm.rows("queue", "workflows", "--filter", f"id={number}")
    assert flow["phase"] == "active"
    # The id is the one that the host knows this request by.
    again = swarm.json("queue", "submit", "flow.yaml", "--no-wait", "--request-id", request)
    assert isinstance(again, list) and again[0]["id"] == number


def test_ctrl_c_before_an_answer_says_how_to_ask_again(swarm: Installation) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        words = ["--host", f"127.0.0.1:{silent.getsockname()[1]}", "token", "create", "x", "viewer"]
        process = subprocess.Popen([BIN / "gswarm", *words], env=swarm.env, stderr=subprocess.PIPE, text=True)
        silent.settimeout(30)
        connection, _ = silent.accept()
        with connection:
            process.send_signal(signal.SIGINT)
            _, told = process.communicate(timeout=30)
    assert process.returncode == 130
    assert re.search(r"interrupted; .*--request-id \w{32}", told) and "Traceback" not in told


def test_progress_that_is_not_on_a_terminal_is_few_plain_lines(here: Here) -> None:
    done = here.result("model", "serve", "sim-7b", "--device", "n1:gpu0", "--service", "progress")
    assert done.returncode == 0, done
    lines = done.stderr.splitlines()
    assert 1 <= len(lines) <= 5 and len(set(lines)) == len(lines)
    assert not re.search(r"[\x00-\x09\x0b-\x1f]", done.stderr)
    assert "progress" in done.stdout and "ready" in done.stdout
    here.run("model", "stop", "progress", "--yes")


def test_progress_on_a_terminal_is_one_line_that_is_rewritten(swarm: Installation) -> None:
    drawn = in_terminal(swarm, "model", "serve", "sim-7b", "--device", "n1:gpu1", "--service", "bar", columns=100)
    progress, *_ = drawn.split("\n")
    assert progress.count("\r\x1b[2K") >= 1 and "bar is ready" in progress.rpartition("\x1b[2K")[2]
    swarm.run("model", "stop", "bar", "--yes")


# Pipes.


@pytest.fixture(scope="module")
def many(swarm: Installation) -> None:
    """More tasks than a pipe holds."""
    tasks = (f"  - {{id: a{i}, type: inference, model: nothing, prompt: hi}}\n" for i in range(3000))
    (swarm.root / "many.yaml").write_text("name: many\nactions:\n" + "".join(tasks))
    swarm.run("queue", "submit", "many.yaml", "--no-wait")


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("line", ["queue list --limit 0 | head -n 1", "--help | head -n 1", "status | true"])
def test_a_reader_that_goes_away_is_no_failure(swarm: Installation, many: None, line: str, unbuffered: str) -> None:
    script = f"set -o pipefail; gswarm {line}"
    done = subprocess.run(
        ["bash", "-c", script],
        env=swarm.env | {"PYTHONUNBUFFERED": unbuffered},
        cwd=swarm.root,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


# Completion.


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_ask_this_program(swarm: Installation, shell: str) -> None:
    script = swarm.run("completion", shell)
    assert "_GSWARM_COMPLETE" in script and "gswarm" in script
    if shell == "bash":
        assert subprocess.run(["bash", "-n"], input=script, text=True, check=False).returncode == 0


def complete(swarm: Installation, line: str) -> list[str]:
    """What bash would offer for a line with the cursor at its end."""
    words = line.split(" ")
    env = swarm.env | {"_GSWARM_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}
    done = subprocess.run([BIN / "gswarm"], env=env, capture_output=True, text=True, timeout=60, check=False)
    assert done.stderr == "", done.stderr
    return done.stdout.split()


def test_completion_knows_commands_options_choices_and_live_names(swarm: Installation, tmp_path: Path) -> None:
    assert complete(swarm, "gswarm mod") == ["model"]
    assert {"serve", "services"} <= set(complete(swarm, "gswarm model serv"))
    assert "--device" in complete(swarm, "gswarm model serve --d")
    assert complete(swarm, "gswarm model info sim") == ["sim-7b"]
    assert complete(swarm, "gswarm model serve sim-7b --device n1:gpu") == ["n1:gpu0", "n1:gpu1"]
    with installation(tmp_path) as alone:
        assert complete(alone, "gswarm model info sim") == [], "without a host there is nothing to offer, and no noise"
