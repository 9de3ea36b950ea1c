"""Tokens and roles: who may do what, what is written where, and what a revoked token can still do."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from hypothesis import given
from hypothesis import strategies as st

from gswarm import net
from gswarm.client.agent import Agent, Options
from gswarm.cluster.types import Event, Node, NodePhase, Role
from gswarm.errors import ForbiddenError, GswarmError, NotFoundError, RefusedError, UnauthenticatedError
from gswarm.host.auth import ALLOWED, Caller, authorize
from gswarm.swarm import Swarm
from gswarm.v1 import agent_pb2, cluster_pb2, data_pb2, models_pb2, profiler_pb2, queue_pb2
from tests.support.cluster import Cluster, cluster, seen


@pytest.fixture
async def running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Cluster]:
    monkeypatch.setenv("GSWARM_STATE_DIR", str(tmp_path))
    async with cluster(tmp_path) as found:
        yield found


async def made(running: Cluster, name: str, role: Role, node: str = "") -> net.Token:
    return net.Token.parse((await running.swarm.token.create(name, role=role, node=node)).token)


def endpoint(running: Cluster, token: net.Token | None) -> net.Endpoint:
    return net.Endpoint("127.0.0.1", running.context.file.port, token)


METHODS = [
    f"{service.name}.{method.name}"
    for module in (agent_pb2, cluster_pb2, data_pb2, models_pb2, profiler_pb2, queue_pb2)
    for service in module.DESCRIPTOR.services_by_name.values()
    for method in service.methods
]


@pytest.mark.parametrize("method", METHODS)
def test_no_method_is_open_to_more_than_it_should_be(method: str) -> None:
    """Whatever is not named as a read is for those who may change things; a new method starts closed."""
    allowed = {role for role in ("viewer", "operator", "agent", "infer", "admin") if may(role, method)}
    assert "admin" in allowed and "infer" not in allowed
    if "viewer" in allowed:
        assert not any(word in method for word in ("Create", "Delete", "Start", "Stop", "Submit", "Cancel", "Put"))
    if "Token" in method or "Shutdown" in method:
        assert allowed == {"admin"}


def may(role: str, method: str) -> bool:
    try:
        authorize(Caller("x", role), method)
    except ForbiddenError:
        return False
    return True


def test_the_table_names_methods_that_exist() -> None:
    assert set(ALLOWED) <= set(METHODS)


async def test_no_token_and_a_strange_one_are_refused_in_words_that_help(running: Cluster) -> None:
    async with Swarm(endpoint(running, None)) as swarm:
        with pytest.raises(UnauthenticatedError, match="wants a token"):
            await swarm.list(Node)
    stranger = net.Token.new("admin")
    async with Swarm(endpoint(running, stranger)) as swarm:
        with pytest.raises(UnauthenticatedError, match="does not know this token") as refused:
            await swarm.list(Node)
    assert stranger.secret not in str(refused.value)


async def test_what_a_token_says_of_itself_counts_for_nothing(running: Cluster) -> None:
    viewer = await made(running, "dash", Role.VIEWER)
    forged = net.Token("admin", viewer.secret)
    async with Swarm(endpoint(running, forged)) as swarm:
        await swarm.list(Node)
        with pytest.raises(ForbiddenError, match="viewer"):
            await swarm.token.create("more", role=Role.ADMIN)


async def test_secrets_are_written_once_and_only_for_the_user(running: Cluster, tmp_path: Path) -> None:
    token = await made(running, "ci", Role.OPERATOR)
    path = tmp_path / "host.token"
    assert path.stat().st_mode & 0o777 == 0o600 and (tmp_path / "host.db").stat().st_mode & 0o077 == 0
    assert path.stat().st_uid == os.getuid()
    for file in tmp_path.iterdir():
        if file.is_file():
            content = file.read_bytes()
            assert token.secret.encode() not in content
            assert file == path or running.context.token.secret.encode() not in content
    listed = await running.swarm.token.list()
    assert {t.name for t in listed} == {"local", "ci"} and token.secret not in repr(listed)


async def test_a_name_is_taken_once_and_bad_names_are_refused(running: Cluster) -> None:
    await made(running, "ci", Role.VIEWER)
    with pytest.raises(RefusedError, match="there is a token named ci"):
        await made(running, "ci", Role.VIEWER)
    with pytest.raises(GswarmError, match="name"):
        await made(running, "../ci", Role.VIEWER)
    with pytest.raises(RefusedError, match="bound to a node"):
        await made(running, "odd", Role.VIEWER, node="n1")
    with pytest.raises(NotFoundError, match=r"no token named cj.*ci"):
        await running.swarm.token.revoke("cj")
    with pytest.raises(RefusedError, match="local"):
        await running.swarm.token.revoke("local")


async def test_tokens_outlive_the_host_and_revoked_ones_do_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GSWARM_STATE_DIR", str(tmp_path))
    async with cluster(tmp_path) as first:
        kept, gone = await made(first, "kept", Role.VIEWER), await made(first, "gone", Role.VIEWER)
        await first.swarm.token.revoke("gone")
        local = first.context.token
    async with cluster(tmp_path) as second:
        assert second.context.token == local
        async with Swarm(endpoint(second, kept)) as swarm:
            await swarm.list(Node)
        async with Swarm(endpoint(second, gone)) as swarm:
            with pytest.raises(UnauthenticatedError):
                await swarm.list(Node)


async def test_revoking_ends_what_still_runs(running: Cluster) -> None:
    viewer = await made(running, "dash", Role.VIEWER)
    request = cluster_pb2.WatchRequest()
    async with Swarm(endpoint(running, viewer)) as swarm:
        stream = swarm.watch(request, silence_s=10)
        await anext(stream)
        await running.swarm.token.revoke("dash")
        with pytest.raises(UnauthenticatedError, match="revoked"):
            async with asyncio.timeout(10):
                async for _ in stream:
                    pass


async def test_an_agent_whose_token_is_revoked_is_cut_off_and_keeps_what_it_serves(running: Cluster) -> None:
    token = await made(running, "rack-1", Role.AGENT, node="n1")
    agent = Agent(running.context.config, Options(endpoint(running, token), resilient=True, name="n1", simulate=""))
    async with running.swarm.mirror((Node, Event), samples=False) as mirror:
        work = asyncio.create_task(agent.run())
        await seen(mirror, lambda: mirror.rows(Node).get("n1"), lambda n: n is not None and n.phase is NodePhase.READY)
        await running.swarm.token.revoke("rack-1")
        async with asyncio.timeout(20):
            await agent.link.detached.wait()
        assert not work.done(), "resilient: what it serves goes on while an admin sets it right"
        assert any(e.type == "token.revoked" and e.actor == "local" for e in mirror.rows(Event).values())
        agent.stopping.set()
        async with asyncio.timeout(20):
            await work


async def test_health_and_reflection_answer_the_tools(running: Cluster) -> None:
    from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

    async with grpc.aio.insecure_channel(f"127.0.0.1:{running.context.file.port}") as channel:
        health: Any = health_pb2_grpc.HealthStub(channel)
        reflection: Any = reflection_pb2_grpc.ServerReflectionStub(channel)  # type: ignore[arg-type]
        for name in ("", "gswarm.v1.Cluster", "gswarm.v1.Queue"):
            answer = await health.Check(health_pb2.HealthCheckRequest(service=name))
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        asked: Any = reflection_pb2.ServerReflectionRequest
        asked = iter([asked(list_services="")])
        metadata = net.bearer(running.context.token)
        call = reflection.ServerReflectionInfo(asked, metadata=metadata)
        told = [service.name async for answer in call for service in answer.list_services_response.service]
    assert {"gswarm.v1.Agent", "gswarm.v1.Cluster", "gswarm.v1.Data", "gswarm.v1.Models"} <= set(told)


@given(
    role=st.sampled_from(["viewer", "operator", "agent", "infer", "admin"]),
    fingerprint=st.one_of(st.just(""), st.text("0123456789abcdef", min_size=64, max_size=64)),
)
def test_a_token_is_read_back_as_written(role: str, fingerprint: str) -> None:
    token = net.Token.new(role, fingerprint)
    assert net.Token.parse(f" {token}\n") == token


@given(st.text(max_size=80))
def test_what_is_no_token_is_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(UnauthenticatedError) as refused:
        net.Token.parse("gsw1." + text)
    assert len(text) < 12 or text not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("10.0.0.5", ("10.0.0.5", 8090)),
        ("gpu-7.lab:99", ("gpu-7.lab", 99)),
        ("[::1]", ("::1", 8090)),
        ("[fe80::1]:1", ("fe80::1", 1)),
    ],
)
def test_addresses(text: str, expected: tuple[str, int]) -> None:
    assert net.parse_address(text) == expected
    assert net.parse_address(net.Endpoint(*expected).address) == expected


@pytest.mark.parametrize("text", ["", ":8090", "host:0", "host:65536", "host:x", "a b", "http://host", "::1", "h:1:2"])
def test_what_is_no_address_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(GswarmError, match="no address") as refused:
        net.parse_address(text)
    assert "HOST:PORT" in refused.value.next
