"""The host's end of agents: who may speak for a node, reports applied once, desired state, silence."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import grpc
import grpc.aio
import pytest

from gswarm import __version__, net
from gswarm.client.link import Link
from gswarm.client.outbox import Outbox
from gswarm.errors import ForbiddenError, GswarmError, InvalidError, RefusedError, UnreachableError
from gswarm.host import nodes as module
from gswarm.host.auth import Auth, Caller, Interceptor
from gswarm.host.nodes import Nodes
from gswarm.host.samples import SampleHub
from gswarm.host.state import Batch
from gswarm.host.store import Store
from gswarm.host.transaction import Transaction
from gswarm.v1 import agent_pb2, cluster_pb2, common_pb2, models_pb2, profiler_pb2
from gswarm.v1.agent_pb2_grpc import AgentStub
from tests.support.proxy import Proxy

READY, UNREACHABLE, LEFT = (
    cluster_pb2.NODE_PHASE_READY,
    cluster_pb2.NODE_PHASE_UNREACHABLE,
    cluster_pb2.NODE_PHASE_LEFT,
)


@dataclass
class Host:
    """Store, hub and nodes behind a real gRPC port with real tokens."""

    store: Store
    hub: SampleHub
    nodes: Nodes
    auth: Auth
    admin: str
    port: int

    async def put(self, *messages: Any) -> None:
        def operation(tx: Transaction) -> None:
            for message in messages:
                tx.put(message)

        await self.store.apply(operation, actor="test")

    async def until(self, holds: Callable[[], bool]) -> None:
        """Wait for the state to be so."""
        changed = asyncio.Event()

        def wake(_: Batch) -> None:
            changed.set()

        unsubscribe = self.store.subscribe(wake)
        try:
            async with asyncio.timeout(20):
                while not holds():
                    changed.clear()
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(changed.wait(), 0.2)
        finally:
            unsubscribe()

    def phase(self, name: str) -> cluster_pb2.NodePhase.ValueType:
        node = self.store.state.get(cluster_pb2.Node, name)
        return node.phase if node else cluster_pb2.NODE_PHASE_UNKNOWN

    def events(self, kind: str) -> list[str]:
        return [event.message for event in self.store.state.list(common_pb2.Event) if event.type == kind]

    def service(self, name: str) -> models_pb2.Service:
        found = self.store.state.get(models_pb2.Service, name)
        assert found is not None
        return found


@pytest.fixture
async def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Host]:
    monkeypatch.setattr(module, "HEARTBEAT_S", 0.2)
    async with Store(tmp_path) as store:
        hub = SampleHub()
        nodes = Nodes(store, hub)
        auth = Auth(store, tmp_path, "")
        token = await auth.start()
        server = grpc.aio.server(interceptors=(Interceptor(auth),))
        nodes.register(server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        background = asyncio.create_task(nodes.run())
        yield Host(store, hub, nodes, auth, str(token), port)
        await server.stop(0)
        background.cancel()
        await asyncio.gather(background, return_exceptions=True)


def hello(name: str = "n1", incarnation: str = "one", outbox: str = "box", version: str = __version__) -> Any:
    return agent_pb2.Hello(
        node=cluster_pb2.Node(name=name, incarnation=incarnation, version=version, peer_host="127.0.0.1", peer_port=9),
        devices=[cluster_pb2.Device(id=f"CPU-{name}", alias=f"{name}:cpu", node=name)],
        outbox=outbox,
    )


class RawAgent:
    """An agent that says exactly what a test wants."""

    def __init__(self, host: Host, token: str = "", port: int = 0) -> None:
        self._channel = grpc.aio.insecure_channel(f"127.0.0.1:{port or host.port}")
        self._call = AgentStub(self._channel).Attach(metadata=net.bearer(token or host.admin))
        self._beating: asyncio.Task[None] | None = None
        self._writing = asyncio.Lock()  # a stream takes one write at a time

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._beating:
            self._beating.cancel()
        self._call.cancel()
        await self._channel.close()

    async def say(self, **body: Any) -> None:
        async with self._writing:
            await self._call.write(agent_pb2.AttachRequest(**body))

    async def attach(self, told: agent_pb2.Hello, *, beat: bool = True) -> agent_pb2.Welcome:
        await self.say(hello=told)
        welcome = (await self.hear("welcome")).welcome
        if beat:
            self._beating = asyncio.create_task(self._beat())
        return welcome

    async def _beat(self) -> None:
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            while True:
                await self.say(heartbeat=agent_pb2.Heartbeat())
                await asyncio.sleep(0.1)

    async def hear(self, body: str, accept: Callable[[Any], bool] = lambda _: True) -> agent_pb2.AttachResponse:
        async with asyncio.timeout(10):
            while True:
                message = await self._call.read()
                assert isinstance(message, agent_pb2.AttachResponse), "the stream ended"
                if message.WhichOneof("body") == body and accept(message):
                    return message

    async def ended(self) -> None:
        """Wait for the host to end the stream; raises what it ended with."""
        try:
            async with asyncio.timeout(10):
                while await self._call.read() is not grpc.aio.EOF:
                    pass
        except grpc.aio.AioRpcError as error:
            net.raise_error(error, "test")


def event(seq: int, text: str) -> agent_pb2.Report:
    return agent_pb2.Report(seq=seq, event=agent_pb2.NodeEvent(type="test", message=text))


def service(**told: Any) -> models_pb2.Service:
    return models_pb2.Service(**{"name": "web", "node": "n1", "generation": 1, **told})


def keep_phase(tx: Transaction, node: str, report: agent_pb2.Report) -> None:
    """What a room's handler does, as short as can be."""
    known = tx.edit(models_pb2.Service, report.service.name)
    assert known is not None
    known.phase, known.detail = report.service.phase, report.service.detail
    known.observed_generation = report.service.observed_generation
    tx.put(known)


async def test_attach_makes_node_and_devices_and_goodbye_is_not_silence(host: Host) -> None:
    async with RawAgent(host) as agent:
        welcome = await agent.attach(hello())
        assert welcome.host_version == __version__ and welcome.heartbeat_s == 0.2 and welcome.peer_token
        desired = (await agent.hear("desired")).desired
        assert desired.revision and not desired.services
        assert host.phase("n1") == READY and host.nodes.connected("n1")
        assert [d.alias for d in host.store.state.list(cluster_pb2.Device)] == ["n1:cpu"]
        assert host.nodes.peer("n1").url("/blobs/x") == "http://127.0.0.1:9/blobs/x"
        await agent.say(goodbye=agent_pb2.Goodbye(reason="stopped"))
        await agent.ended()
    assert host.phase("n1") == LEFT
    with pytest.raises(UnreachableError, match="stopped"):
        host.nodes.peer("n1")
    assert host.events("node.left") == ["n1 left: stopped"] and not host.events("node.unreachable")


async def test_silence_makes_a_node_unreachable_once_and_its_services_keep_their_phase(host: Host) -> None:
    await host.put(service(phase=models_pb2.SERVICE_PHASE_READY))
    async with RawAgent(host) as agent:
        await agent.attach(hello(), beat=False)
        await host.until(lambda: host.phase("n1") == UNREACHABLE)
        await agent.ended()
        assert host.service("web").phase == models_pb2.SERVICE_PHASE_READY
        node = host.store.state.get(cluster_pb2.Node, "n1")
        assert node is not None and node.detail == "silent for 3 heartbeats" and node.HasField("last_seen")
    async with RawAgent(host) as agent:
        await agent.attach(hello())
        assert host.phase("n1") == READY
    assert host.events("node.unreachable") == ["n1 is silent"]


async def test_a_node_that_hangs_up_is_not_unreachable_at_once(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HEARTBEAT_S", 5.0)
    async with RawAgent(host) as agent:
        await agent.attach(hello())
    async with RawAgent(host) as agent:
        await agent.attach(hello(incarnation="two"))
        assert not host.events("node.unreachable")


@pytest.mark.parametrize(
    ("first", "error", "words"),
    [
        ({"heartbeat": agent_pb2.Heartbeat()}, InvalidError, "says hello first"),
        ({"hello": hello(name="../x")}, InvalidError, "node name"),
        ({"hello": hello(version="9.0.0")}, RefusedError, "upgrade the older"),
        ({"hello": hello(version="")}, RefusedError, "cannot attach"),
        (
            {"hello": agent_pb2.Hello(node=hello().node, devices=[cluster_pb2.Device(id="x", node="n2")])},
            InvalidError,
            "claims to be on n2",
        ),
    ],
)
async def test_what_cannot_attach_is_told_why(
    host: Host, first: dict[str, Any], error: type[GswarmError], words: str
) -> None:
    async with RawAgent(host) as agent:
        await agent.say(**first)
        with pytest.raises(error) as caught:
            await agent.ended()
    assert words.lower() in str(caught.value).lower()
    assert not list(host.store.state.list(cluster_pb2.Node))


async def test_a_neighbouring_version_is_taken_and_shown(host: Host) -> None:
    major, minor = __version__.split(".")[:2]
    async with RawAgent(host) as agent:
        await agent.attach(hello(version=f"{major}.{int(minor) + 1}.0"))
        node = host.store.state.get(cluster_pb2.Node, "n1")
        assert node is not None and "the host" in node.detail
    assert len(host.events("node.skew")) == 1


async def test_an_agent_token_speaks_for_its_own_node_only(host: Host) -> None:
    request = cluster_pb2.CreateTokenRequest(name="t", role=cluster_pb2.ROLE_AGENT, node="n1")
    token = (await host.auth.create(request, Caller("local", "admin"))).token
    async with RawAgent(host, token) as agent:
        await agent.say(hello=hello(name="n2"))
        with pytest.raises(ForbiddenError, match="node n1 only"):
            await agent.ended()
    host.nodes.reports.handle("service", keep_phase)
    await host.put(service(node="n2", phase=models_pb2.SERVICE_PHASE_READY))
    async with RawAgent(host, token) as agent:
        await agent.attach(hello(name="n1"))
        told = agent_pb2.ServiceReport(name="web", observed_generation=9, phase=models_pb2.SERVICE_PHASE_FAILED)
        await agent.say(report=agent_pb2.Report(seq=1, service=told))
        await agent.say(tick=profiler_pb2.SampleTick(node="n2", seq=1))
        await agent.hear("ack", lambda m: m.ack.report_seq == 1)
    assert host.service("web").phase == models_pb2.SERVICE_PHASE_READY, "n1 must not fail a service of n2"
    assert host.hub.nodes() == ["n1"]


async def test_reports_told_again_are_applied_once(host: Host) -> None:
    async with RawAgent(host) as agent:
        assert (await agent.attach(hello())).report_seq == 0
        for seq in (1, 2, 3):
            await agent.say(report=event(seq, str(seq)))
        await agent.hear("ack", lambda m: m.ack.report_seq == 3)
    async with RawAgent(host) as agent:
        assert (await agent.attach(hello(incarnation="two"))).report_seq == 3, "the outbox outlives the incarnation"
        for seq in (2, 3, 4):
            await agent.say(report=event(seq, str(seq)))
        await agent.hear("ack", lambda m: m.ack.report_seq == 4)
    async with RawAgent(host) as agent:
        welcome = await agent.attach(hello(incarnation="three", outbox="new"))
        assert welcome.report_seq == 0, "another outbox counts anew"
        await agent.say(report=event(1, "5"))
        await agent.hear("ack", lambda m: m.ack.report_seq == 1)
    assert host.events("test") == ["1", "2", "3", "4", "5"]


async def test_reports_about_an_older_generation_change_nothing(host: Host) -> None:
    host.nodes.reports.handle("service", keep_phase)
    await host.put(service(generation=2, observed_generation=2, phase=models_pb2.SERVICE_PHASE_READY))
    async with RawAgent(host) as agent:
        await agent.attach(hello())
        for seq, generation in ((1, 1), (2, 2)):
            told = agent_pb2.ServiceReport(
                name="web", observed_generation=generation, phase=models_pb2.SERVICE_PHASE_FAILED, detail=f"{seq}"
            )
            await agent.say(report=agent_pb2.Report(seq=seq, service=told))
            await agent.hear("ack", lambda m, seq=seq: m.ack.report_seq == seq)  # type: ignore[misc]
            expected = models_pb2.SERVICE_PHASE_READY if generation == 1 else models_pb2.SERVICE_PHASE_FAILED
            assert host.service("web").phase == expected


async def test_a_report_that_cannot_be_applied_is_put_on_record_and_blocks_nothing(host: Host) -> None:
    def broken(tx: Transaction, node: str, report: agent_pb2.Report) -> None:
        raise RefusedError("no such chunk here")

    host.nodes.reports.handle("location", broken)
    async with RawAgent(host) as agent:
        await agent.attach(hello())
        await agent.say(report=event(1, "before"))
        bad = agent_pb2.LocationReport(chunk_id="c")
        bad.location.node = "n1"
        await agent.say(report=agent_pb2.Report(seq=2, location=bad))
        await agent.say(report=event(3, "after"))
        await agent.hear("ack", lambda m: m.ack.report_seq == 3)
    assert host.events("test") == ["before", "after"]
    assert host.events("report.refused") == ["a location report of n1 was not applied: no such chunk here"]


async def test_a_second_machine_cannot_take_a_name_but_a_restarted_agent_gets_its_own(host: Host) -> None:
    async with RawAgent(host) as first, RawAgent(host) as other, RawAgent(host) as restarted:
        await first.attach(hello())
        await other.say(hello=hello(incarnation="x", outbox="another machine's"))
        with pytest.raises(RefusedError, match="attached already"):
            await other.ended()
        assert host.nodes.connected("n1")
        await restarted.attach(hello(incarnation="two"))
        await first.ended()
        assert host.nodes.connected("n1")


async def test_a_fenced_incarnation_changes_nothing(host: Host) -> None:
    async with RawAgent(host) as old, RawAgent(host) as new:
        await old.attach(hello())
        connection = host.nodes._connections["n1"]
        await new.attach(hello(incarnation="two"))
        late = host.nodes.reports.operation(connection, [event(1, "late")])
        assert await host.store.apply(late, actor="node:n1") == 0
    assert not host.events("test")


async def test_desired_state_is_pushed_whole_to_the_nodes_concerned_and_only_them(host: Host) -> None:
    async with RawAgent(host) as one, RawAgent(host) as two:
        await one.attach(hello("n1"))
        await two.attach(hello("n2", outbox="box2"))
        pushed: list[str] = []
        push = host.nodes.push_desired
        host.nodes.push_desired = lambda name: (pushed.append(name), push(name))[1]  # type: ignore[method-assign, func-returns-value]
        await host.put(service(), models_pb2.Model(name="m"))
        got = await one.hear("desired", lambda m: len(m.desired.services) == 1)
        assert got.desired.services[0].name == "web" and [n.name for n in got.desired.peers] == ["n2"]
        assert got.desired.revision == host.store.state.revision
        assert pushed == ["n1"]
        await host.put(service(phase=models_pb2.SERVICE_PHASE_LOADING, progress_permille=400, observed_generation=1))
        assert pushed == ["n1"], "what the agent told us is no news to it"
        await host.put(service(generation=2, stop=True))
        got = await one.hear("desired", lambda m: m.desired.services[0].stop)
        session = profiler_pb2.Session(name="s", interval_s=0.25, phase=profiler_pb2.SESSION_PHASE_RECORDING)
        await host.put(session)
        for agent in (one, two):
            got = await agent.hear("desired", lambda m: bool(m.desired.sessions))
            assert got.desired.sample_interval_s == 0.25


async def test_a_change_of_a_model_reaches_the_nodes_that_have_it(host: Host) -> None:
    await host.put(models_pb2.Model(name="m"), models_pb2.Placement(id="m@v1/n1", model="m", node="n1", generation=1))
    async with RawAgent(host) as agent:
        await agent.attach(hello())
        await host.put(models_pb2.Model(name="m", versions=[models_pb2.ModelVersion(version="v1", digest="d")]))
        await agent.hear("desired", lambda m: any(len(model.versions) == 1 for model in m.desired.models))


async def test_one_device_belongs_to_one_node(host: Host) -> None:
    def with_gpu(name: str, outbox: str) -> agent_pb2.Hello:
        told: agent_pb2.Hello = hello(name, outbox=outbox)
        told.devices.add(id="GPU-1", alias=f"{name}:gpu0", node=name)
        return told

    async with RawAgent(host) as one, RawAgent(host) as two:
        await one.attach(with_gpu("n1", "a"))
        await two.attach(with_gpu("n2", "b"))
        assert {d.id: d.node for d in host.store.state.list(cluster_pb2.Device)} == {
            "CPU-n1": "n1",
            "CPU-n2": "n2",
            "GPU-1": "n1",
        }
        assert host.events("device.claimed")


async def test_logs_come_from_the_node_that_was_asked(host: Host) -> None:
    async with RawAgent(host) as one, RawAgent(host) as two:
        await one.attach(hello("n1"))
        await two.attach(hello("n2", outbox="b"))

        async def read() -> bytes:
            return b"".join([piece async for piece in host.nodes.read_log("n1", "web", 100, follow=False)])

        reading = asyncio.create_task(read())
        asked = (await one.hear("read_log")).read_log
        await two.say(log=agent_pb2.LogChunk(stream_id=asked.stream_id, chunk=b"not ours"))
        await two.say(report=event(1, "x"))
        await two.hear("ack", lambda m: m.ack.report_seq == 1)
        await one.say(log=agent_pb2.LogChunk(stream_id=asked.stream_id, chunk=b"line\n"))
        await one.say(log=agent_pb2.LogChunk(stream_id=asked.stream_id, end=True))
        assert await reading == b"line\n"
    with pytest.raises(UnreachableError, match="not attached"):
        await anext(host.nodes.read_log("n9", "web", 100, follow=False))


async def test_who_follows_a_log_is_told_when_its_agent_attaches_anew(host: Host) -> None:
    async with RawAgent(host) as one, RawAgent(host) as again:
        await one.attach(hello())

        async def read() -> None:
            async for _ in host.nodes.read_log("n1", "web", 100, follow=True):
                pass

        reading = asyncio.create_task(read())
        await one.hear("read_log")
        await again.attach(hello(incarnation="two"))
        async with asyncio.timeout(10):
            with pytest.raises(RefusedError, match="read it again"):
                await reading


async def test_an_agent_that_cannot_be_welcomed_is_not_taken_for_attached(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: str) -> agent_pb2.DesiredState:
        raise RefusedError("no desired state can be made")

    async with RawAgent(host) as agent:
        monkeypatch.setattr(host.nodes.desired, "of", broken)
        await agent.say(hello=hello())
        with pytest.raises(RefusedError, match="no desired state"):
            await agent.ended()
        assert not host.nodes.connected("n1")


# The real link over a network that fails


class RealAgent:
    """The agent's link alone, on a channel through a proxy."""

    def __init__(self, host: Host, port: int, directory: Path) -> None:
        loop = asyncio.get_running_loop()

        def written() -> None:
            loop.call_soon_threadsafe(self.link.wake)

        self.outbox = Outbox(directory / "outbox.db", written)
        self._channel = net.channel(net.Endpoint("127.0.0.1", port))
        self.got: list[agent_pb2.AttachResponse] = []
        told = hello(outbox=self.outbox.id)
        self.link = Link(self._channel, "the host", host.admin, self.outbox, lambda: told, self.got.append)
        self._task = asyncio.create_task(self.link.run(resilient=True))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await self._channel.close()
        self.outbox.close()

    def tell(self, texts: Iterable[str]) -> None:
        for text in texts:
            self.link.report(event=agent_pb2.NodeEvent(type="test", message=text))


@pytest.mark.parametrize("failure", ["drop", "silence", "refuse"])
async def test_a_cut_link_loses_and_doubles_nothing(host: Host, tmp_path: Path, failure: str) -> None:
    seen: list[int] = []
    host.hub.subscribe(lambda node, tick, schema: seen.append(profiler_pb2.SampleTick.FromString(tick).seq))
    (tmp_path / "agent").mkdir()
    async with Proxy("127.0.0.1", host.port) as proxy, RealAgent(host, proxy.port, tmp_path / "agent") as agent:
        await host.until(lambda: host.nodes.connected("n1"))
        seq = 0
        for round_number in range(3):
            agent.tell(f"{round_number}.{n}" for n in range(100))
            for _ in range(20):
                seq += 1
                agent.link.sample(profiler_pb2.SampleTick(seq=seq, time_unix_us=seq * 1_000_000, schema_id=1))
            await asyncio.sleep(0)  # let some of it be under way
            getattr(proxy, failure)()
            if failure == "silence":
                await host.until(lambda: host.phase("n1") == UNREACHABLE)
            agent.tell(f"{round_number}.{n}" for n in range(100, 150))
            proxy.restore()
            told = 150 * (round_number + 1)
            await host.until(lambda told=told: len(host.events("test")) >= told)  # type: ignore[misc]
    assert host.events("test") == [f"{r}.{n}" for r in range(3) for n in range(150)]
    await host.until(lambda: len(set(seen)) == seq)
    assert sorted(seen) == list(range(1, seq + 1)), "each tick once"
    history = [profiler_pb2.SampleTick.FromString(wire).seq for wire in host.hub.history("n1", 600)]
    assert history == list(range(1, seq + 1)), "what came late lies in its place"


async def test_a_slow_link_still_works(host: Host, tmp_path: Path) -> None:
    (tmp_path / "agent").mkdir()
    async with Proxy("127.0.0.1", host.port) as proxy, RealAgent(host, proxy.port, tmp_path / "agent") as agent:
        proxy.delay_s = 0.05
        agent.tell(["a", "b"])
        await host.until(lambda: host.events("test") == ["a", "b"])
        assert host.nodes.connected("n1")


async def test_without_resilience_a_lost_host_is_an_error(host: Host, tmp_path: Path) -> None:
    async with Proxy("127.0.0.1", host.port) as proxy:
        (tmp_path / "agent").mkdir()
        async with RealAgent(host, proxy.port, tmp_path / "agent") as agent:
            agent._task.cancel()
            lost = asyncio.create_task(agent.link.run(resilient=False))
            await asyncio.wait_for(agent.link.attached.wait(), 10)
            proxy.refuse()
            with pytest.raises(UnreachableError):
                await asyncio.wait_for(lost, 10)


async def test_a_wrong_token_ends_a_resilient_agent_too(host: Host, tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "wrong.db", lambda: None)
    channel = net.channel(net.Endpoint("127.0.0.1", host.port))
    link = Link(channel, "the host", str(net.Token.new("agent")), outbox, hello, lambda _: None)
    with pytest.raises(GswarmError, match="does not know this token"):
        await asyncio.wait_for(link.run(resilient=True), 10)
    await channel.close()
    outbox.close()
