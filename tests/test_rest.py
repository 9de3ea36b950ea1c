"""REST against a whole host in this process: who may, what comes back, and where to look for what takes long."""

from __future__ import annotations

import asyncio
import contextlib
import re
import ssl
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import pytest

import gswarm
from gswarm.config import Config, HostConfig
from gswarm.errors import ForbiddenError, UnreachableError
from gswarm.host.server import HostContext, host
from gswarm.host.transaction import Transaction
from gswarm.v1 import cluster_pb2, models_pb2

API = "/api/v1"
ON_LOOPBACK = HostConfig(port=0, http_port=0, model_port=0)
GIB = 2**30


@dataclass
class Rest:
    """A host, and a client with its local admin token."""

    context: HostContext
    client: httpx.AsyncClient

    async def act(self, action: str, body: dict[str, Any] | None = None, **options: Any) -> httpx.Response:
        """POST an action, "model/serve"."""
        return await self.client.post(f"{API}/actions/{action}", json=body or {}, **options)

    async def get(self, path: str, **options: Any) -> httpx.Response:
        """GET below /api/v1."""
        return await self.client.get(f"{API}/{path}", **options)

    async def token(self, role: str) -> dict[str, str]:
        """Headers of a fresh token of a role."""
        made = await self.act("token/create", {"name": f"t-{role}", "role": role})
        return {"authorization": f"Bearer {made.json()['token']}"}

    async def put(self, change: Callable[[Transaction], None]) -> None:
        """Change the host's state as an agent's report would."""

        def operation(tx: Transaction) -> cluster_pb2.StatusResponse:
            change(tx)
            return cluster_pb2.StatusResponse()

        await self.context.store.apply(operation, actor="test")

    async def until(self, holds: Callable[[], bool]) -> None:
        """Wait for the store's next publications until it holds."""
        changed = asyncio.Event()
        end = self.context.store.subscribe(lambda _: changed.set())
        try:
            async with asyncio.timeout(20):
                while not holds():
                    await changed.wait()
                    changed.clear()
        finally:
            end()


@contextlib.asynccontextmanager
async def serving(directory: Path, config: HostConfig = ON_LOOPBACK) -> AsyncIterator[Rest]:
    """A host and a client on its HTTP port."""
    async with host(Config(host=config), directory) as context:
        scheme, verify = "http", ssl.create_default_context()
        if context.file.tls:
            scheme, verify = "https", ssl.create_default_context(cafile=str(directory / "host.crt"))
        headers = {"authorization": f"Bearer {context.token}"}
        base = f"{scheme}://127.0.0.1:{context.file.http_port}"
        async with httpx.AsyncClient(
            base_url=base, headers=headers, verify=verify, timeout=20, trust_env=False
        ) as client:
            yield Rest(context, client)


@pytest.fixture
async def rest(tmp_path: Path) -> AsyncIterator[Rest]:
    async with serving(tmp_path) as found:
        await found.put(furnish)
        yield found


def furnish(tx: Transaction) -> None:
    """A node with a simulated device, and a model that is stored there."""
    node = cluster_pb2.Node(name="n1", phase=cluster_pb2.NODE_PHASE_READY, backends=["simulated"], simulated=True)
    device = cluster_pb2.Device(
        id="SIM-n1-0", alias="n1:gpu0", node="n1", kind=cluster_pb2.DEVICE_KIND_SIMULATED, memory_bytes=80 * GIB,
        phase=cluster_pb2.DEVICE_PHASE_READY, name="H100",
    )  # fmt: skip
    version = models_pb2.ModelVersion(version="v1", digest="d" * 64, size_bytes=14 * GIB, source="simulated:14GiB")
    model = models_pb2.Model(
        name="sim-7b", versions=[version], default_version="v1", simulated=True, size_bytes=14 * GIB
    )
    placement = models_pb2.Placement(
        id="sim-7b@v1/n1", model="sim-7b", version="v1", node="n1", phase=models_pb2.PLACEMENT_PHASE_STORED
    )
    for message in (node, device, model, placement):
        tx.put(message)


def service(rest: Rest, name: str) -> models_pb2.Service | None:
    """The service as the host knows it."""
    return rest.context.store.state.get(models_pb2.Service, name)


def report(phase: models_pb2.ServicePhase.ValueType, name: str) -> Callable[[Transaction], None]:
    """What the node's agent says of a service."""

    def change(tx: Transaction) -> None:
        found = tx.edit(models_pb2.Service, name)
        assert found is not None
        found.phase, found.observed_generation, found.bound_port = phase, found.generation, 9100
        found.detail = "out of memory" if phase == models_pb2.SERVICE_PHASE_FAILED else ""
        tx.put(found)

    return change


def problem(response: httpx.Response, status: int) -> dict[str, str]:
    """The error in a response of that status."""
    assert response.status_code == status, response.text
    error: dict[str, str] = response.json()["error"]
    assert set(error) == {"message", "why", "next", "field", "code"} and error["message"]
    return error


# The page.


async def test_the_page_and_its_description_load_nothing_from_elsewhere(rest: Rest) -> None:
    bare = httpx.AsyncClient(base_url=rest.client.base_url, trust_env=False)
    async with bare:
        for path in ("/", f"{API}/docs"):
            page = await bare.get(path)
            assert page.status_code == 200 and page.headers["content-type"].startswith("text/html")
            assert not re.search(r"(https?:)?//[\w.-]+\.\w", page.text)
            assert set(re.findall(r'fetch\("([^"]+)"', page.text)) == {f"{API}/openapi.json"}
        described = await bare.get(f"{API}/openapi.json")
    assert described.status_code == 200
    paths = described.json()["paths"]
    assert "post" in paths[f"{API}/actions/model/serve"] and "get" in paths[f"{API}/model/services"]


# Who may.


async def test_without_a_known_token_nothing_is_answered(rest: Rest) -> None:
    for said in ("", "Basic x", "Bearer", "Bearer gsw1.admin.nonsense", f"Bearer gsw1.admin.{'x' * 43}"):
        for path in ("model/models", "model/models/sim-7b", "actions/model/list", "actions/status"):
            error = problem(await rest.get(path, headers={"authorization": said}), 401)
            assert error["code"] == "UNAUTHENTICATED" and "sim-7b" not in str(error)
        problem(
            await rest.act("model/annotate", {"name": "sim-7b", "set": ["a=b"]}, headers={"authorization": said}), 401
        )
    model = rest.context.store.state.get(models_pb2.Model, "sim-7b")
    assert model is not None and not model.metadata


async def test_roles_hold_as_everywhere_else(rest: Rest) -> None:
    viewer, operator, infer = [await rest.token(role) for role in ("viewer", "operator", "infer")]
    body = {"name": "sim-7b", "set": ["team=search"]}
    assert (await rest.get("model/models", headers=viewer)).status_code == 200
    error = problem(await rest.act("model/annotate", body, headers=viewer), 403)
    assert error["code"] == "PERMISSION_DENIED"
    assert (await rest.act("model/annotate", body, headers=operator)).status_code == 200
    problem(await rest.act("token/create", {"name": "x", "role": "admin"}, headers=operator), 403)
    problem(await rest.get("model/models", headers=infer), 403)


async def test_the_event_log_names_the_caller_and_not_the_host(rest: Rest) -> None:
    operator = await rest.token("operator")
    await rest.act("model/annotate", {"name": "sim-7b", "set": ["a=b"]}, headers=operator | {"idempotency-key": "why"})
    (event,) = (await rest.get("cluster/events", params={"filter": "actor=t-operator"})).json()["items"]
    assert event["cause"] == "why" and event["subject"] == "sim-7b"


# What comes back.


async def test_resources_are_listed_filtered_and_got(rest: Rest) -> None:
    listed = (await rest.get("model/models")).json()
    assert [model["name"] for model in listed["items"]] == ["sim-7b"]
    assert listed["left_out"] == 0 and listed["revision"] > 0
    assert (await rest.get("model/models", params={"filter": "name~nothing"})).json()["items"] == []
    one = (await rest.get("model/models/sim-7b")).json()
    assert one == listed["items"][0] and one["size_bytes"] == 14 * GIB and one["simulated"] is True
    assert (await rest.get("model/placements/sim-7b@v1/n1")).json()["phase"] == "stored"
    assert (await rest.get("cluster/devices/SIM-n1-0")).json()["alias"] == "n1:gpu0"


async def test_a_limit_says_what_it_left_out(rest: Rest) -> None:
    def add(tx: Transaction) -> None:
        for i in range(5):
            tx.put(models_pb2.Model(name=f"m{i}"))

    await rest.put(add)
    found = (await rest.get("model/models", params={"limit": 2, "sort": "-name"})).json()
    assert [model["name"] for model in found["items"]] == ["sim-7b", "m4"] and found["left_out"] == 4


async def test_an_action_that_reads_answers_what_the_command_line_prints(rest: Rest) -> None:
    answered = await rest.get("actions/model/list", params={"filter": "simulated=true", "limit": "5"})
    assert answered.json() == (await rest.get("model/models")).json()["items"]
    assert (await rest.get("actions/status")).json()["role"] == "admin"


async def test_errors_have_their_status_and_name_the_field(rest: Rest) -> None:
    near = problem(await rest.get("model/models/sim-7"), 404)
    assert near["next"] == "did you mean sim-7b?" and near["code"] == "NOT_FOUND"
    problem(await rest.get("nowhere"), 404)
    problem(await rest.get("actions/model/logs", params={"service": "nope"}), 404)
    assert problem(await rest.get("actions/model/list", params={"limit": "x"}), 422)["field"] == "limit"
    assert problem(await rest.get("actions/model/list", params={"nonsense": "1"}), 422)["field"] == "nonsense"
    assert problem(await rest.act("model/serve", {}), 422)["field"] == "name"
    assert problem(await rest.act("model/serve", {"name": "sim-7b", "prot": 1}), 422)["field"] == "prot"
    assert problem(await rest.act("model/serve", {"name": "sim-7b", "port": "x"}), 422)["field"] == "port"
    assert problem(await rest.act("token/create", {"name": "x", "role": "root"}), 422)["field"] == "role"
    assert problem(await rest.get("model/models", params={"filter": "nam=x"}), 422)["next"] == "did you mean name?"
    broken = await rest.client.post(
        f"{API}/actions/model/serve", content=b"{", headers={"content-type": "application/json"}
    )
    problem(broken, 422)
    problem(await rest.client.post(f"{API}/actions/model/list"), 405)


async def test_what_the_state_does_not_allow_is_409(rest: Rest) -> None:
    body = {"name": "sim-7b", "device": ["n1:gpu0"]}
    assert (await rest.act("model/serve", body)).status_code == 202
    refused = problem(await rest.act("model/delete", {"name": "sim-7b"}), 409)
    assert refused["code"] == "FAILED_PRECONDITION"
    await rest.token("viewer")
    problem(await rest.act("token/create", {"name": "t-viewer", "role": "viewer"}), 409)


# What takes long.


async def test_a_long_action_is_202_with_a_location_that_exists(rest: Rest) -> None:
    asked = await rest.act("model/serve", {"name": "sim-7b", "device": ["n1:gpu0"]})
    assert asked.status_code == 202 and asked.json()["phase"] == "pending"
    found = await rest.client.get(asked.headers["location"])
    assert found.status_code == 200 and found.json()["name"] == asked.json()["name"]
    await rest.put(report(models_pb2.SERVICE_PHASE_READY, "sim-7b"))
    assert (await rest.client.get(asked.headers["location"])).json()["phase"] == "ready"


async def test_wait_answers_when_it_is_done(rest: Rest) -> None:
    asking = asyncio.create_task(rest.act("model/serve", {"name": "sim-7b"}, params={"wait": 20}))
    await rest.until(lambda: service(rest, "sim-7b") is not None)
    assert not asking.done()
    await rest.put(report(models_pb2.SERVICE_PHASE_READY, "sim-7b"))
    answered = await asyncio.wait_for(asking, 20)
    assert answered.status_code == 200 and answered.json()["phase"] == "ready"
    assert "location" not in answered.headers


async def test_wait_says_so_when_it_fails(rest: Rest) -> None:
    asking = asyncio.create_task(rest.act("model/serve", {"name": "sim-7b"}, params={"wait": 20}))
    await rest.until(lambda: service(rest, "sim-7b") is not None)
    await rest.put(report(models_pb2.SERVICE_PHASE_FAILED, "sim-7b"))
    assert problem(await asyncio.wait_for(asking, 20), 500)["why"] == "out of memory"


async def test_a_wait_that_is_over_is_202_as_without(rest: Rest) -> None:
    answered = await rest.act("model/serve", {"name": "sim-7b"}, params={"wait": 0.05})
    assert answered.status_code == 202
    assert (await rest.client.get(answered.headers["location"])).status_code == 200
    problem(await rest.act("model/serve", {"name": "sim-7b"}, params={"wait": 1e6}), 422)


async def test_a_retry_with_its_key_is_answered_not_repeated(rest: Rest) -> None:
    body, key = {"name": "sim-7b", "device": ["n1:gpu0"]}, {"idempotency-key": "once"}
    first = await rest.act("model/serve", body, headers=key)
    again = await rest.act("model/serve", body, headers=key)
    assert (first.status_code, again.status_code) == (202, 202)
    assert again.json() == first.json() and again.headers["location"] == first.headers["location"]
    assert rest.context.store.state.count(models_pb2.Service) == 1
    other = problem(await rest.act("model/annotate", {"name": "sim-7b", "set": ["a=b"]}, headers=key), 409)
    assert "once" in other["message"]
    assert (await rest.act("model/serve", body)).json()["name"] == "sim-7b-2"


# Files are the machine's, not the caller's.

FILE_ACTIONS: dict[str, dict[str, Any]] = {
    "queue/submit": {"file": ["/etc/hostname"]},
    "data/put": {"path": "/etc/hostname"},
    "data/get": {"chunk": "x", "out": "/tmp/x"},
    "profiler/export": {"name": "x", "out": "/tmp/x"},
    "profiler/plot": {"name": "x", "out": "/tmp/x.svg"},
    "profiler/report": {"name": "x", "out": "/tmp/x"},
}


async def submit(rest: Rest, directory: Path, **options: Any) -> httpx.Response:
    """Submit a workflow that lies in a directory of the host's machine."""
    path = directory / "flow.yaml"
    path.write_text("name: flow\nactions:\n  - {id: a, type: inference, model: nothing, prompt: hi}\n")
    return await rest.act("queue/submit", {"file": [str(path)]}, **options)


async def test_a_file_of_this_machine_can_be_named_on_loopback(rest: Rest, tmp_path: Path) -> None:
    asked = await submit(rest, tmp_path)
    assert asked.status_code == 202 and asked.headers["location"] == f"{API}/queue/workflows/w1"
    assert (await rest.client.get(asked.headers["location"])).json()["phase"] == "active"
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text("name: flow\nactions:\n  - {id: a, type: nothing}\n")
    assert "wrong.yaml:3" in str(problem(await rest.act("queue/submit", {"file": [str(wrong)]}), 422))


async def test_a_file_is_named_by_its_absolute_path(rest: Rest) -> None:
    for action, body in FILE_ACTIONS.items():
        (name,) = (name for name, value in body.items() if "/" in str(value))
        for relative in ("flow.yaml", "-", "~/x"):
            wrong = body | {name: [relative] if isinstance(body[name], list) else relative}
            error = problem(await rest.act(action, wrong), 422)
            assert error["field"].startswith(name) and "absolute" in error["why"]
        problem(await rest.act(action, {key: value for key, value in body.items() if key != name}), 422)


async def test_a_viewer_names_no_files(rest: Rest, tmp_path: Path) -> None:
    viewer = await rest.token("viewer")
    for action, body in FILE_ACTIONS.items():
        error = problem(await rest.act(action, body, headers=viewer), 403)
        assert "viewer" in error["why"]
    problem(await submit(rest, tmp_path, headers=viewer), 403)


async def test_a_host_beyond_loopback_speaks_tls_and_takes_no_files(tmp_path: Path) -> None:
    async with serving(tmp_path / "host", replace(ON_LOOPBACK, bind="0.0.0.0")) as rest:
        assert rest.client.base_url.scheme == "https"
        assert (await rest.get("actions/status")).json()["loopback"] is False
        for action, body in FILE_ACTIONS.items():
            error = problem(await rest.act(action, body), 403)
            assert "beyond loopback" in error["why"] and error["next"]
        problem(await submit(rest, tmp_path), 403)
        assert (await rest.get("queue/workflows")).json()["items"] == []


async def test_beyond_loopback_the_client_pins_the_certificate_of_its_token(tmp_path: Path) -> None:
    async with serving(tmp_path / "host", replace(ON_LOOPBACK, bind="0.0.0.0")) as rest:
        address, token = f"127.0.0.1:{rest.context.file.port}", rest.context.token
        async with gswarm.connect(address, token=str(token)) as swarm:
            assert (await swarm.status()).role == "admin"
        other = replace(token, fingerprint="0" * 64)
        with pytest.raises(ForbiddenError, match="is not the host this token belongs to"):
            async with gswarm.connect(address, token=str(other)):
                pass
        with pytest.raises(UnreachableError):  # and never in the clear
            async with gswarm.connect(address, token=str(replace(token, fingerprint=""))) as swarm:
                await swarm.status()


# The rest of the port.


async def test_health_is_open_and_metrics_want_a_token(rest: Rest) -> None:
    async with httpx.AsyncClient(base_url=rest.client.base_url, trust_env=False) as bare:
        assert (await bare.get("/healthz")).json()["status"] == "ok"
        assert (await bare.get("/metrics")).status_code == 401
    told = await rest.client.get("/metrics")
    assert told.status_code == 200 and "gswarm_" in told.text
    assert not re.search(r"(?i)\bnan\b", told.text)
