"""Models served and asked: through the host's port, by the OpenAI client's own words, on simulated devices."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from gswarm.client.agent import Agent
from gswarm.cluster.types import Role
from gswarm.errors import GswarmError, NotFoundError, RefusedError
from gswarm.model.throughput import WINDOW_S, Tail, Throughput
from gswarm.model.types import (
    Placement,
    PlacementPhase,
    Service,
    ServicePhase,
    download_done,
    service_ready,
    service_stopped,
)
from tests.support.cluster import Cluster, cluster, seen


@pytest.fixture
async def running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Cluster]:
    monkeypatch.setenv("GSWARM_STATE_DIR", str(tmp_path))
    async with cluster(tmp_path) as found:
        yield found


async def stored(running: Cluster, name: str, size: str = "1GiB") -> None:
    """A simulated model on the node."""
    for placement in await running.swarm.model.download(name, source=f"simulated:{size}"):
        await running.swarm.wait(download_done, placement, timeout=30)


async def served(running: Cluster, model: str, device: str = "n1:gpu0", **options: object) -> Service:
    """A ready service of a stored model."""
    words = [
        f"{key}={value}" for key, value in ({"load_s": 0.05, "tokens_per_s": 500} | options).items() if key != "service"
    ]
    asked = await running.swarm.model.serve(
        model, device=[device], option=words, service=str(options.get("service", ""))
    )
    return await running.swarm.wait(service_ready, asked, timeout=60)


@asynccontextmanager
async def node(running: Cluster, simulate: str = "2xH100") -> AsyncIterator[Agent]:
    async with running.agent("n1", simulate=simulate) as agent, running.swarm.mirror() as mirror:
        await seen(mirror, lambda: len(mirror.samples), lambda count: count >= 2)
        yield agent


def http(running: Cluster, token: str | None = None) -> httpx.AsyncClient:
    """A client of the gateway."""
    headers = {"Authorization": f"Bearer {running.context.token if token is None else token}"}
    return httpx.AsyncClient(
        base_url=f"http://127.0.0.1:{running.context.file.model_port}", headers=headers, timeout=30, trust_env=False
    )


def ask(model: str, **more: object) -> dict[str, object]:
    return {"model": model, "messages": [{"role": "user", "content": "Say something."}]} | more


async def test_a_model_is_listed_asked_and_streamed(running: Cluster) -> None:
    async with node(running), http(running) as client:
        await stored(running, "tiny")
        await served(running, "tiny")
        listed = (await client.get("/v1/models")).json()
        assert [model["id"] for model in listed["data"]] == ["tiny"]
        whole = (await client.post("/v1/chat/completions", json=ask("tiny", max_tokens=12))).json()
        assert whole["choices"][0]["message"]["content"] and whole["usage"]["completion_tokens"] == 12
        pieces, finished = [], False
        async with client.stream(
            "POST", "/v1/chat/completions", json=ask("tiny", max_tokens=12, stream=True)
        ) as answer:
            assert answer.headers["content-type"].startswith("text/event-stream")
            async for line in answer.aiter_lines():
                if line == "data: [DONE]":
                    finished = True
                elif line.startswith("data: "):
                    pieces += [c.get("delta", {}).get("content") or "" for c in json.loads(line[6:])["choices"]]
        assert finished and len([piece for piece in pieces if piece]) >= 12
        text = (await client.post("/v1/completions", json={"model": "tiny", "prompt": "Say", "max_tokens": 5})).json()
        assert text["choices"][0]["text"]


async def test_the_official_client_is_understood(running: Cluster) -> None:
    openai = pytest.importorskip("openai")
    async with node(running):
        await stored(running, "tiny")
        await served(running, "tiny")
        base = f"http://127.0.0.1:{running.context.file.model_port}/v1"
        async with openai.AsyncOpenAI(base_url=base, api_key=str(running.context.token)) as client:
            stream = await client.chat.completions.create(
                model="tiny", messages=[{"role": "user", "content": "hi"}], max_tokens=8, stream=True
            )
            said = [chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices]
            assert len([word for word in said if word]) >= 8
            with pytest.raises(openai.NotFoundError, match="tinny"):
                await client.chat.completions.create(model="tinny", messages=[{"role": "user", "content": "hi"}])


async def test_errors_have_the_shape_that_clients_expect(running: Cluster) -> None:
    async with node(running), http(running) as client:
        await stored(running, "tiny")
        await served(running, "tiny")
        viewer = (await running.swarm.token.create("dash", role=Role.VIEWER)).token
        infer = (await running.swarm.token.create("app", role=Role.INFER)).token
        cases = [
            (client, {"json": ask("tinny")}, 404, "tiny"),
            (client, {"content": b"{not json"}, 422, "JSON"),
            (client, {"json": {"messages": []}}, 422, "model"),
            (http(running, "nothing"), {"json": ask("tiny")}, 401, "token"),
            (http(running, "gsw1.admin.wrong"), {"json": ask("tiny")}, 401, "token"),
            (http(running, viewer), {"json": ask("tiny")}, 403, "viewer"),
        ]
        for who, request, status, told in cases:
            answer = await who.post("/v1/chat/completions", **request)  # type: ignore[arg-type]
            assert (answer.status_code, told in answer.json()["error"]["message"]) == (status, True), answer.text
        assert (await client.get("/v1/nothing")).status_code == 404
        async with http(running, infer) as app:
            assert (await app.post("/v1/chat/completions", json=ask("tiny", max_tokens=3))).status_code == 200


async def backend_says(service: Service) -> dict[str, float]:
    """Counters of the backend's own process."""
    async with httpx.AsyncClient(trust_env=False) as client:
        told: dict[str, float] = (await client.get(f"http://127.0.0.1:{service.bound_port}/metrics.json")).json()
        return told


async def test_a_client_that_hangs_up_stops_the_generation(running: Cluster) -> None:
    async with node(running):
        await stored(running, "tiny")
        service = await served(running, "tiny", tokens_per_s=20)
        async with http(running) as client:
            long = ask("tiny", max_tokens=2000, stream=True)
            async with client.stream("POST", "/v1/chat/completions", json=long) as answer:
                lines = answer.aiter_lines()
                for _ in range(4):
                    await anext(lines)
                assert (await backend_says(service))["active"] == 1
        async with asyncio.timeout(20):
            while (said := await backend_says(service))["active"]:  # noqa: ASYNC110
                await asyncio.sleep(0.05)  # another process, which tells no one
        assert said["generated"] < 2000


async def test_services_of_one_model_share_the_work(running: Cluster) -> None:
    async with node(running), http(running) as client:
        await stored(running, "tiny")
        await served(running, "tiny", service="a")
        await served(running, "tiny", "n1:gpu1", service="b")
        answers = [client.post("/v1/chat/completions", json=ask("tiny", max_tokens=5)) for _ in range(12)]
        assert {answer.status_code for answer in await asyncio.gather(*answers)} == {200}
        async with running.swarm.mirror((Service,), samples=False) as mirror:
            await seen(
                mirror,
                lambda: {name: s.tokens_per_s for name, s in mirror.rows(Service).items()},
                lambda rates: len(rates) == 2 and all(rate for rate in rates.values()),
            )


async def test_a_service_stops_and_is_gone_from_the_gateway(running: Cluster) -> None:
    async with node(running), http(running) as client:
        await stored(running, "tiny")
        service = await served(running, "tiny")
        with pytest.raises(RefusedError, match="tiny"):
            await running.swarm.model.delete("tiny")
        with pytest.raises(RefusedError, match="tiny"):
            await running.swarm.model.serve("tiny", device=["n1:gpu1"], service="tiny")
        await running.swarm.wait(service_stopped, await running.swarm.model.stop("tiny"), timeout=30)
        assert (await client.post("/v1/chat/completions", json=ask("tiny"))).status_code in (404, 503)
        with pytest.raises(httpx.HTTPError):
            await backend_says(service)
        await running.swarm.model.delete("tiny")
        assert not await running.swarm.list(Placement)


async def test_what_does_not_fit_or_is_not_there_is_said_beforehand(running: Cluster) -> None:
    async with node(running, "1xH100"):
        await stored(running, "huge", "200GiB")
        with pytest.raises(GswarmError, match="does not fit"):
            await running.swarm.wait(
                service_ready, await running.swarm.model.serve("huge", device=["n1:gpu0"]), timeout=30
            )
        with pytest.raises(NotFoundError, match="n1:gpu0"):
            await running.swarm.model.serve("huge", device=["n1:gpu7"])
        with pytest.raises(NotFoundError, match="huge"):
            await running.swarm.model.serve("hugo", device=["n1:gpu0"])
        await stored(running, "tiny")
        with pytest.raises(GswarmError, match="no option speed"):
            asked = await running.swarm.model.serve("tiny", device=["n1:gpu0"], option=["speed=9"], service="x")
            await running.swarm.wait(service_ready, asked, timeout=30)


async def test_a_backend_that_is_killed_is_started_again(running: Cluster) -> None:
    import os
    import signal

    async with node(running) as agent, http(running) as client:
        await stored(running, "tiny")
        await served(running, "tiny")
        process = agent.supervisor.get("tiny")
        assert process is not None
        os.kill(process.pid, signal.SIGKILL)
        async with running.swarm.mirror((Service,), samples=False) as mirror:
            again = await seen(
                mirror,
                lambda: mirror.rows(Service).get("tiny"),
                lambda s: s is not None and s.pid not in (0, process.pid) and s.phase is ServicePhase.READY,
            )
        assert again is not None
        assert (await client.post("/v1/chat/completions", json=ask("tiny", max_tokens=3))).status_code == 200


async def test_a_download_that_fails_says_why_and_can_be_tried_again(running: Cluster, tmp_path: Path) -> None:
    async with node(running):
        asked = await running.swarm.model.download("m", source=f"file://{tmp_path}/nowhere")
        with pytest.raises(GswarmError, match="nowhere"):
            await running.swarm.wait(download_done, asked[0], timeout=30)
        (placement,) = await running.swarm.list(Placement)
        assert placement.phase is PlacementPhase.FAILED and "nowhere" in placement.detail
        (tmp_path / "nowhere").mkdir()
        (tmp_path / "nowhere" / "weights.bin").write_bytes(b"x" * 1000)
        again = await running.swarm.model.download("m", source=f"file://{tmp_path}/nowhere")
        await running.swarm.wait(download_done, again[0], timeout=30)
        assert (await running.swarm.model.info("m")).size_bytes == 1000


async def test_logs_come_from_the_backend(running: Cluster) -> None:
    async with node(running):
        await stored(running, "tiny")
        await served(running, "tiny")
        stream = await running.swarm.model.logs("tiny")
        assert isinstance(b"".join([piece async for piece in stream]), bytes)
        with pytest.raises(NotFoundError, match="tiny"):
            async for _ in await running.swarm.model.logs("tinny"):
                pass


def test_throughput_counts_what_ended_within_its_window() -> None:
    now = 100.0
    rates = Throughput(lambda: now)
    assert rates.rate("a") is None
    rates.add("a", 30)
    now += WINDOW_S / 2
    rates.add("a", 70)
    assert rates.rate("a") == 100 / WINDOW_S
    now += WINDOW_S / 2
    assert rates.rate("a") == 70 / WINDOW_S
    now += WINDOW_S
    assert rates.rate("a") == 0.0, "it has answered before: that is 0, not unknown"
    rates.forget("a")
    assert rates.rate("a") is None


@pytest.mark.parametrize("size", [1, 7, 100, 100_000])
def test_the_usage_is_found_however_the_answer_is_cut(size: int) -> None:
    answer = (
        b'data: {"x": "' + b"y" * 20_000 + b'"}\n\ndata: {"usage": {"prompt_tokens": 3, "completion_tokens": 41}}\n\n'
    )
    tail = Tail()
    for at in range(0, len(answer), size):
        tail.feed(answer[at : at + size])
    assert tail.tokens() == 41
    assert Tail().tokens() is None
