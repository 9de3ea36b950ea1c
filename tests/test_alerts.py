"""Alerts on a whole host: they fire, are seen and told once, and outlive the host."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from gswarm.alert.courier import LIMIT, Courier, post
from gswarm.alert.rules import DEFAULTS, Rule, When
from gswarm.alert.sinks import Command, DeliveryError, Webhook, headers
from gswarm.alert.types import Alert
from gswarm.cluster.types import Device, Event, Kind, Severity
from gswarm.config import AlertingConfig, Config
from gswarm.errors import InvalidError
from gswarm.host.store import Store
from gswarm.host.transaction import Transaction
from gswarm.v1 import agent_pb2, cluster_pb2, common_pb2
from tests.support.cluster import PORTS, Cluster, cluster, seen
from tests.support.killing import eventually

WARM = Rule("warm", When.ABOVE, "temperature_c", limit=1, clear=0, severity=Severity.ERROR)
COLD = Rule("warm", When.ABOVE, "temperature_c", limit=1000, clear=999)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GSWARM_STATE_DIR", str(tmp_path))
    monkeypatch.chdir(tmp_path)


def config(*rules: Rule, **alerting: Any) -> Config:
    return Config(host=PORTS, alerts=rules, alerting=AlertingConfig(**alerting))


async def alerts(running: Cluster, accept: Callable[[list[str]], bool]) -> dict[str, Alert]:
    """The alerts that fire, once their ids are accepted."""
    async with running.swarm.mirror((Alert,), samples=False) as mirror:
        ids = lambda: (mirror.revision > 0, sorted(mirror.rows(Alert)))  # noqa: E731
        await seen(mirror, ids, lambda found: found[0] and accept(found[1]))
        return dict(mirror.rows(Alert))


async def told(running: Cluster) -> list[tuple[str, str]]:
    """The alert events in order: what, and about whom."""
    events = await running.swarm.event.list(filter=["type~alert."], sort="time", limit=0)
    return [(event.type, event.subject) for event in events]


async def test_a_metric_beyond_its_limit_is_an_alert_an_event_and_over_when_the_rule_goes(tmp_path: Path) -> None:
    async with cluster(tmp_path, config(WARM)) as running, running.agent("n1", "1xH100"):
        (alert,) = (await alerts(running, lambda ids: ids == ["warm/SIM-n1-0"])).values()
        assert (alert.name, alert.node, alert.metric, alert.value) == ("n1:gpu0", "n1", "temperature_c", 31)
        assert alert.severity is Severity.ERROR and alert.subject_kind is Kind.DEVICE
        assert [row.id for row in await running.swarm.alert.list(filter=["severity=error"])] == [alert.id]
        (event,) = await running.swarm.event.list(filter=["type=alert.firing"])
        assert event.message == "n1:gpu0: temperature_c 31, above 1" == alert.message
        assert event.subject == "SIM-n1-0" and event.severity is Severity.ERROR and event.actor == "host"


async def test_a_host_that_starts_again_neither_loses_nor_repeats_what_fires(tmp_path: Path) -> None:
    lost = agent_pb2.DevicesReport()
    async with cluster(tmp_path, config(WARM)) as running, running.agent("n1", "1xH100") as agent:
        await alerts(running, lambda ids: ids == ["warm/SIM-n1-0"])
        device = agent.devices[0].describe()
        device.phase, device.detail = cluster_pb2.DEVICE_PHASE_LOST, "fell off the bus"
        lost.devices.append(device)
        agent.link.report(devices=lost)
        before = await alerts(running, lambda ids: "device-lost/SIM-n1-0" in ids)
        once = await told(running)
    async with cluster(tmp_path, config(WARM)) as running:
        assert await alerts(running, lambda ids: len(ids) == 2) == before
        async with running.agent("n1", "1xH100"):
            # The agent says that its device is there: that is over, and the other fires on.
            await alerts(running, lambda ids: ids == ["warm/SIM-n1-0"])
            async with running.swarm.mirror((Device,)) as mirror:
                await seen(mirror, lambda: "SIM-n1-0" in mirror.samples, bool)
            assert await told(running) == [*once, ("alert.resolved", "SIM-n1-0")]
    async with cluster(tmp_path, config(COLD)) as running, running.agent("n1", "1xH100"):
        await alerts(running, lambda ids: not ids)
        assert (await told(running))[-1] == ("alert.resolved", "SIM-n1-0")
    async with cluster(tmp_path, config()) as running:
        assert len(await told(running)) == 4


async def test_an_xid_event_is_an_alert_until_it_has_not_happened_for_a_while(tmp_path: Path) -> None:
    brief = Rule("xid", When.EVENT, "device.xid", hold_s=2, severity=Severity.ERROR)
    rules = (brief, Rule("long", When.EVENT, "device.xid"))
    async with cluster(tmp_path, config(*rules)) as running, running.agent("n1", "1xH100") as agent:
        for number in (13, 79):
            agent.link.report(
                event=agent_pb2.NodeEvent(
                    type="device.xid",
                    subject_kind=common_pb2.KIND_DEVICE,
                    subject="SIM-n1-0",
                    message=f"n1:gpu0: XID {number}",
                )
            )
        async with running.swarm.mirror((Alert,), samples=False) as mirror:
            both = await seen(
                mirror,
                lambda: mirror.rows(Alert).get("long/SIM-n1-0", Alert()),
                lambda alert: alert.count == 2,
            )
            assert both.message == "n1:gpu0: XID 79" and both.value is None
            await seen(mirror, lambda: sorted(mirror.rows(Alert)), lambda ids: ids == ["long/SIM-n1-0"])
        assert (await told(running)).count(("alert.firing", "SIM-n1-0")) == 2


async def test_what_happened_while_no_one_looked_fires_at_the_next_start(tmp_path: Path) -> None:
    async with cluster(tmp_path, config()) as running, running.agent("n1", "1xH100"):
        pass

    def operation(tx: Any) -> None:
        device = cluster_pb2.Device(id="SIM-n1-0")
        tx.event("device.xid", "XID 48", subject=device, severity=common_pb2.SEVERITY_ERROR)

    async with Store(tmp_path) as store:  # as if the host had died right after it took the report
        await store.apply(operation, actor="node:n1")
    async with cluster(tmp_path, config()) as running:
        await alerts(running, lambda ids: ids == ["xid/SIM-n1-0"])
    async with cluster(tmp_path, config()) as running:
        await alerts(running, lambda ids: ids == ["xid/SIM-n1-0"])
        assert await told(running) == [("alert.firing", "SIM-n1-0")]


async def test_a_node_that_falls_silent_fires_and_is_over_when_it_is_forgotten(tmp_path: Path) -> None:
    async with cluster(tmp_path, config()) as running:
        with running.agent_process("n1", {"GSWARM_CLIENT_SIMULATE": "1xH100"}, tmp_path) as process:
            async with running.swarm.mirror((Device,)) as mirror:
                await seen(mirror, lambda: len(mirror.samples), bool)
            process.kill()
            process.wait(10)
        fired = await alerts(running, lambda ids: ids == ["node-unreachable/n1"])
        assert fired["node-unreachable/n1"].node == "n1"
        await running.swarm.node.forget("n1")
        await alerts(running, lambda ids: not ids)
        assert await told(running) == [("alert.firing", "n1"), ("alert.resolved", "n1")]


async def test_a_node_that_sends_no_samples_is_noticed_however_busy_the_others_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gswarm.alert.service.STALE_S", 0.1)
    stale = Rule("node-stale", When.STATE, "node.stale", for_s=1)

    async def nothing() -> None:
        """What a sampling loop that hangs sends."""

    async with cluster(tmp_path, config(stale)) as running, running.agent("n1", "1xH100") as agent:
        async with running.swarm.mirror((Device,)) as mirror:
            await seen(mirror, lambda: len(mirror.samples), bool)
        assert "node-stale/n1" not in await alerts(running, lambda ids: True)
        monkeypatch.setattr(agent.profiler, "_tick", nothing)

        async def busy() -> None:
            for number in range(1_000_000):
                node = cluster_pb2.Node(name="n2", phase=cluster_pb2.NODE_PHASE_LEFT, store_free_bytes=number)
                await running.context.store.apply(lambda tx, node=node: tx.put(node), actor="test", durable=False)  # type: ignore[misc]
                await asyncio.sleep(0.05)

        other = asyncio.create_task(busy())
        fired = await alerts(running, lambda ids: ids == ["node-stale/n1"])
        assert fired["node-stale/n1"].message == "n1: attached, but sends no samples"
        monkeypatch.undo()
        monkeypatch.setenv("GSWARM_STATE_DIR", str(tmp_path))
        await alerts(running, lambda ids: not ids)
        other.cancel()


async def test_a_node_that_is_sampled_seldom_by_right_is_not_stale(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stale = Rule("node-stale", When.STATE, "node.stale", for_s=0)
    async with cluster(tmp_path, config(stale)) as running, running.agent("n1", "1xH100"):
        monkeypatch.setattr(running.context.hub, "age_s", lambda node: 31.0)
        await alerts(running, lambda ids: ids == ["node-stale/n1"])
        await running.swarm.profiler.start(name="night", adaptive=True, slowest=20)
        await alerts(running, lambda ids: not ids)


async def test_default_rules_can_be_switched_off(tmp_path: Path) -> None:
    off = tuple(Rule(rule.name, rule.when, rule.of, is_on=False) for rule in DEFAULTS[1:])
    async with cluster(tmp_path, config(WARM, *off)) as running, running.agent("n1", "1xH100") as agent:
        device = agent.devices[0].describe()
        device.phase = cluster_pb2.DEVICE_PHASE_LOST
        agent.link.report(devices=agent_pb2.DevicesReport(devices=[device]))
        async with running.swarm.mirror((Device,)) as mirror:
            await seen(mirror, lambda: [d.phase.value for d in mirror.rows(Device).values()], lambda p: "lost" in p)
        assert list(await alerts(running, bool)) == ["warm/SIM-n1-0"]


@pytest.mark.parametrize("before", [(), (Rule("lunch", When.EVENT, "dinner.over"),)], ids=["no rule", "another type"])
async def test_what_happened_before_there_was_a_rule_for_it_is_no_news(
    tmp_path: Path, before: tuple[Rule, ...]
) -> None:
    def happens(tx: Transaction) -> None:
        tx.event("lunch.over", "lunch is over", subject=cluster_pb2.Node(name="n1"))

    async with cluster(tmp_path, config(WARM, *before)) as running, running.agent("n1", "1xH100"):
        await alerts(running, bool)  # the rules are followed
        await running.context.store.apply(happens, actor="test")
    lunch = Rule("lunch", When.EVENT, "lunch.over")
    for _ in ("the rule is new", "it is known, and still nothing has happened"):
        async with cluster(tmp_path, config(lunch, WARM)) as running, running.agent("n1", "1xH100"):
            async with running.swarm.mirror((Device,)) as mirror:
                await seen(mirror, lambda: len(mirror.samples), bool)
            assert list(await alerts(running, bool)) == ["warm/SIM-n1-0"]
    async with cluster(tmp_path, config(lunch, WARM)) as running, running.agent("n1", "1xH100"):
        await running.context.store.apply(happens, actor="test")
        fired = await alerts(running, lambda ids: ids == ["lunch/n1", "warm/SIM-n1-0"])
        assert fired["lunch/n1"].count == 1


async def test_rules_that_cannot_be_stop_the_host_before_it_starts(tmp_path: Path) -> None:
    for wrong in (
        config(Rule("a", When.ABOVE, "temprature_c")),
        config(webhook="ftp://x"),
        config(command=("no-such-program-here",)),
        config(webhook="https://x.example/", headers_file=str(tmp_path / "none")),
    ):
        with pytest.raises(InvalidError):
            async with cluster(tmp_path, wrong):
                pass
    assert not (tmp_path / "host.db").exists()


@dataclass
class Receiver:
    """A webhook's other end: answers what it is told to, keeps what it got."""

    answers: list[int] = field(default_factory=list)
    got: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    url: str = ""
    arrived: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def post(self, request: web.Request) -> web.Response:
        status = self.answers.pop(0) if self.answers else 204
        async with self.arrived:
            if status < 300:
                self.got.append(await request.json())
            self.headers.append(dict(request.headers))
            self.arrived.notify_all()
        return web.Response(status=status, headers={"Location": "/elsewhere"} if status == 302 else {})

    async def until(self, count: int) -> None:
        async with asyncio.timeout(30), self.arrived:
            await self.arrived.wait_for(lambda: len(self.got) >= count)


@asynccontextmanager
async def receiver(*answers: int) -> AsyncIterator[Receiver]:
    found = Receiver(list(answers))
    app = web.Application()
    app.router.add_post("/hook", found.post)
    app.router.add_post("/elsewhere", found.post)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    found.url = f"http://127.0.0.1:{runner.addresses[0][1]}/hook"
    yield found
    await runner.cleanup()


async def test_a_webhook_hears_of_firing_and_of_its_end_with_headers_that_stand_nowhere(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    secret = tmp_path / "headers"
    secret.write_text("Authorization: Bearer hunter2\nX-Team: gpu\n")
    secret.chmod(0o600)
    async with receiver(503) as hook:
        told_to = {"webhook": hook.url, "headers_file": str(secret)}
        async with cluster(tmp_path, config(WARM, **told_to)) as running, running.agent("n1", "1xH100"):
            await hook.until(1)
        async with cluster(tmp_path, config(COLD, **told_to)) as running, running.agent("n1", "1xH100"):
            await hook.until(2)
            await alerts(running, lambda ids: not ids)
        firing, resolved = hook.got
    assert (firing["status"], resolved["status"]) == ("firing", "resolved")
    assert firing["id"] == resolved["id"] == "warm/SIM-n1-0" and firing["severity"] == "error"
    assert firing["message"] == "n1:gpu0: temperature_c 31, above 1" and firing["value"] == 31
    assert firing["since"].endswith("Z") and firing["version"] == 1
    assert all(given["Authorization"] == "Bearer hunter2" and given["X-Team"] == "gpu" for given in hook.headers)
    assert len(hook.headers) == 3, "one was refused and came again"
    assert "hunter2" not in caplog.text and "/hook" not in caplog.text
    assert b"hunter2" not in (tmp_path / "host.db").read_bytes()


async def test_a_command_gets_json_on_its_input_and_no_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GSWARM_TOKEN", "secret")
    out = tmp_path / "told.json"
    program = "import os, sys; open(sys.argv[1], 'a').write(sys.stdin.read() + str('GSWARM_TOKEN' in os.environ))"
    command = (sys.executable, "-c", program, str(out))
    async with cluster(tmp_path, config(WARM, command=command)) as running, running.agent("n1", "1xH100"):
        await alerts(running, bool)
        await eventually(lambda: asyncio.to_thread(out.read_text), lambda text: text.endswith("False"))
    assert json.loads(out.read_text().removesuffix("False"))["rule"] == "warm"


async def test_a_command_that_hangs_is_ended_with_all_it_started(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    script = f"sleep 600 & echo $$ $! > {pids}; sleep 600"
    with pytest.raises(DeliveryError, match=r"did not end within 0\.5 s"):
        await Command(("sh", "-c", script), 0.5).send(b"{}")
    for pid in map(int, pids.read_text().split()):
        await eventually(lambda: _runs(pid), lambda runs: not runs)  # noqa: B023


async def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False


@pytest.mark.parametrize(("status", "final"), [(400, True), (401, True), (302, True), (429, False), (500, False)])
async def test_which_answers_are_worth_another_try(status: int, final: bool) -> None:
    async with receiver(status) as hook:
        with pytest.raises(DeliveryError, match=str(status)) as failed:
            await Webhook(hook.url, {}, 5).send(b"{}")
        assert failed.value.is_final is final and not hook.got, "a redirect is not followed"
        assert "/hook" not in str(failed.value)


async def test_a_webhook_that_is_not_there_or_never_answers_is_told_without_its_path() -> None:
    server = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    with pytest.raises(DeliveryError, match="did not answer") as failed:
        await Webhook(f"http://127.0.0.1:{port}/key", {}, 0.2).send(b"{}")
    server.close()
    with pytest.raises(DeliveryError, match="cannot be reached") as refused:
        await Webhook(f"http://127.0.0.1:{port}/key", {}, 5).send(b"{}")
    assert "key" not in f"{failed.value}{refused.value}"


def test_headers_are_private_and_well_formed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "headers"
    file.write_text("Authorization: s3cret\n")
    file.chmod(0o644)
    with pytest.raises(InvalidError, match="chmod 600"):
        headers(str(file))
    file.chmod(0o600)
    assert headers(str(file)) == {"Authorization": "s3cret"}
    monkeypatch.setenv("GSWARM_ALERT_HEADERS", "X-A: 1\n\nX-B: s3cret two")
    assert headers("") == {"X-A": "1", "X-B": "s3cret two"}
    monkeypatch.setenv("GSWARM_ALERT_HEADERS", "s3cret without a name")
    with pytest.raises(InvalidError, match="line 1 of GSWARM_ALERT_HEADERS is no header") as refused:
        headers("")
    assert "s3cret" not in str(refused.value)
    with pytest.raises(InvalidError, match="in the clear"):
        Webhook("http://hooks.example/x", {"Authorization": "s"}, 1)


@dataclass
class Slow:
    """A sink that fails as often as told, then keeps what it gets."""

    failures: int = 0
    got: list[bytes] = field(default_factory=list)
    wanted: int = 1
    done: asyncio.Event = field(default_factory=asyncio.Event)
    name: str = "slow"

    async def send(self, body: bytes) -> None:
        if self.failures:
            self.failures -= 1
            raise DeliveryError("not now")
        self.got.append(body)
        if len(self.got) == self.wanted:
            self.done.set()


async def outbox(store: Store) -> list[str]:
    return await store.apply(
        lambda tx: [key for key, _ in tx.list_values("alert.outbox.")], actor="test", durable=False
    )


async def run(courier: Courier, until: Callable[[], bool], store: Store) -> None:
    """Run a courier until something is so and what it has done is in the store."""
    working = asyncio.create_task(courier.run())
    await eventually(lambda: outbox(store), lambda left: until() and not left)
    working.cancel()
    await asyncio.gather(working, return_exceptions=True)


async def test_what_was_posted_before_the_end_is_delivered_after_it_in_order(tmp_path: Path) -> None:
    async with Store(tmp_path) as store:
        await store.apply(lambda tx: [post(tx, "slow", b"%d" % n) for n in range(12)], actor="host")
    sink = Slow(failures=2, wanted=12)
    async with Store(tmp_path) as store:
        await run(Courier(store, sink, attempts=3, pause_s=(0.001, 0.001)), sink.done.is_set, store)
        assert sink.got == [b"%d" % n for n in range(12)]
        assert not [e for e in store.state.list(common_pb2.Event) if e.type == "alert.undelivered"]


async def test_what_never_arrives_is_given_up_and_said(tmp_path: Path) -> None:
    sink = Slow(failures=3)
    async with Store(tmp_path) as store:
        await store.apply(lambda tx: [post(tx, "slow", body) for body in (b"a", b"b")], actor="host")
        await run(Courier(store, sink, attempts=3, pause_s=(0.001, 0.001)), sink.done.is_set, store)
        assert sink.got == [b"b"]
        (event,) = store.state.list(common_pb2.Event)
        assert (event.type, event.message) == ("alert.undelivered", "slow: an alert was not delivered: not now")


async def test_the_outbox_is_bounded_and_loses_the_oldest(tmp_path: Path) -> None:
    sink = Slow(wanted=LIMIT)
    async with Store(tmp_path) as store:
        await store.apply(lambda tx: [post(tx, "slow", b"%d" % n) for n in range(LIMIT + 5)], actor="host")
        await run(Courier(store, sink, attempts=1), sink.done.is_set, store)
        assert sink.got[0] == b"5" and len(sink.got) == LIMIT
        assert [e.message for e in store.state.list(common_pb2.Event)] == [
            f"slow: 5 alerts were not delivered: more than {LIMIT} waited"
        ]


async def test_a_recording_answers_which_alerts_fired_then(tmp_path: Path) -> None:
    from gswarm.profiler.recording import Recording
    from gswarm.profiler.types import session_sealed

    async with cluster(tmp_path, config(WARM)) as running, running.agent("n1", "1xH100"):
        await alerts(running, bool)
        await running.swarm.profiler.start(name="run")
        sealed = await running.swarm.wait(session_sealed, await running.swarm.profiler.stop("run"), timeout=60)
    with Recording.open(Path(sealed.path)) as recording:
        assert [alert.id for alert in await recording.list(Alert)] == ["warm/SIM-n1-0"]
        assert [event.type for event in await recording.list(Event) if event.type.startswith("alert.")] == [
            "alert.firing"
        ]
