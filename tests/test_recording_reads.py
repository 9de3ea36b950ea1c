"""Every read of the catalogue asked of a recording: it answers as the host did then, or it is known why it cannot."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from gswarm.alert.rules import Rule, When
from gswarm.alert.types import Alert
from gswarm.catalogue import Action, actions
from gswarm.cli import run
from gswarm.cluster.types import Severity
from gswarm.codec import to_plain
from gswarm.config import Config
from gswarm.profiler.recording import Recording
from gswarm.profiler.unrecorded import UNRECORDED
from gswarm.queue.types import workflow_done
from gswarm.swarm import Swarm
from tests.support.cluster import PORTS, Cluster, cluster, seen
from tests.support.recordings import a_run
from tests.support.sessions import sealed, session

READS = [action for action in actions() if action.read and not action.local]
OF_FILES = {"profiler.export", "profiler.analyze", "profiler.compare", "profiler.plot", "profiler.report"}
"""Asked of a whole recording; what they say of a live host's sessions is compared elsewhere."""
UNEQUAL = {
    "status": {"revision", "time", "role"},  # sessions count on while it is asked, and who reads a file has no token
    "profiler.list": {"ticks", "events", "size_bytes"},  # recorded, these would change themselves
    "profiler.info": {"ticks", "events", "size_bytes"},
    "queue.list": {"params_json", "output_json"},  # of prompts and outputs a recording holds size and digest
    "queue.info": {"params_json", "output_json"},
}
"""What of an answer cannot be the same."""


def test_only_reads_that_there_are_can_have_a_reason() -> None:
    assert set(UNRECORDED) <= {action.id for action in READS}


def plain(action: Action, answer: object) -> object:
    """An answer as JSON, without what cannot be equal."""
    found: Any = to_plain(list(answer) if isinstance(answer, list) else answer)
    for row in found if isinstance(found, list) else [found]:
        for name in UNEQUAL.get(action.id, ()):
            del row[name]
    return found


async def answers(asked: Swarm | Recording, required: dict[str, object]) -> dict[str, object]:
    """What every read says that answers at once."""
    found: dict[str, object] = {}
    for action in READS:
        if action.id not in UNRECORDED and action.id not in OF_FILES:
            given = {p.name: (required[p.ref], p.many) for p in action.parameters if p.required}
            values = {name: [key] if many else key for name, (key, many) in given.items()}
            found[action.id] = plain(action, await action.run(asked, **values))
    return found


async def a_busy_host(running: Cluster, tmp_path: Path) -> dict[str, object]:
    """Something of every kind there is, at rest; a key of each kind."""
    swarm = running.swarm
    await swarm.model.download("sim", source="simulated:1GiB", wait=True, timeout=60)
    flow = tmp_path / "flow.yaml"
    lines = [f"  - {{id: a{i}, type: inference, model: sim, prompt: hi, max_tokens: 4}}" for i in range(3)]
    flow.write_text("name: flow\nactions:\n" + "\n".join(lines) + "\n")
    (asked,) = await swarm.queue.submit([flow])
    workflow = await swarm.wait(workflow_done, asked, timeout=60)
    note = tmp_path / "note.txt"
    note.write_text("hello")
    chunk = await swarm.data.put(note)
    await swarm.profiler.mark("a mark")
    task, *_ = await swarm.queue.list()
    return {
        "node": "n1", "device": "n1:gpu1", "model": "sim", "task": task.id, "workflow": workflow.id,
        "chunk": chunk.id, "session": "run",
    }  # fmt: skip


async def test_a_recording_answers_every_read_as_the_host_did(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GSWARM_STATE_DIR", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    warm = Rule("warm", When.ABOVE, "temperature_c", limit=1, clear=0, severity=Severity.ERROR)
    config = Config(host=PORTS, alerts=(warm,))
    async with cluster(tmp_path, config) as running, running.agent("n1", simulate="2xH100"):
        swarm = running.swarm
        async with swarm.mirror((Alert,)) as mirror:
            await seen(mirror, lambda: len(mirror.rows(Alert)), lambda count: count == 2)
        await swarm.profiler.start(name="run", interval=0.2)
        await session(running, "run", lambda s: s.ticks > 2)
        keys = await a_busy_host(running, tmp_path)
        live = await answers(swarm, keys)
        while True:  # the plan and services settle: nothing changes on either side of the moment
            before, then, live = live, datetime.now(UTC), await answers(swarm, keys)
            if before == live:
                break
        await session(running, "run", lambda s: s.ticks > 12)
        # What happens later must not be in the answers.
        await swarm.model.annotate("sim", set=["team=search"])
        await swarm.profiler.mark("later")
        stopped = await sealed(running, "run")
    assert len(live) == len(READS) - len(UNRECORDED) - len(OF_FILES)
    assert all(live.values()), [name for name, answer in live.items() if not answer]
    with Recording.open(Path(stopped.path)) as recording:
        recording.seek(then)
        past = await answers(recording, keys)
        for name, answer in live.items():
            assert past[name] == answer, name
        assert (await READS[0].run(recording)).time == recording.time
        for action in READS:
            if action.id in OF_FILES:
                values = {p.name: "run" for p in action.parameters if p.required}
                options = {"term": True} if action.id == "profiler.plot" else {}
                assert await action.run(recording, **values, **options), action.id


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ("+30s", ""),
        ("+1h", r"\+1h is outside; made ends at .*, which is shown"),
        ("2020-01-01T00:00:00Z", "2020-01-01T00:00:00Z is outside; made starts at .*, which is shown"),
    ],
)
def test_a_time_outside_of_a_recording_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], asked: str, told: str
) -> None:
    a_run(tmp_path / "made", 60).write()
    assert run(["--from", str(tmp_path / "made"), "--at", asked, "node", "list"]) == 0
    out, err = capsys.readouterr()
    assert "n0" in out and re.fullmatch(f"gswarm: {told}\n" if told else "", err)
