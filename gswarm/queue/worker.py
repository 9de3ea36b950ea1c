"""The agent's side of the queue: runs leased inference tasks against the node's own services."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import aiohttp

from gswarm.errors import GswarmError
from gswarm.v1 import agent_pb2, queue_pb2

if TYPE_CHECKING:
    from gswarm.client.agent import Agent

RUNNING, DONE = queue_pb2.TASK_PHASE_RUNNING, queue_pb2.TASK_PHASE_DONE
FAILED, CANCELLED = queue_pb2.TASK_PHASE_FAILED, queue_pb2.TASK_PHASE_CANCELLED
OUTPUT_LIMIT = 64 << 10
"""Bytes of an output that travel with the task; a longer one becomes a chunk of the data pool."""
OUTPUT_LEASE_S = 7 * 86400.0
SETTLE_S, LOOK_S = 10.0, 0.1
"""How long a lease waits for its service: an agent that has just started hears of work before it has adopted all."""
PASSED_ON = ("max_tokens", "temperature", "top_p", "seed", "stop")


@dataclass(eq=False)
class _Work:
    attempt: agent_pb2.TaskAttempt
    task: asyncio.Task[None]


class QueueWorker:
    """One asyncio task a lease. A revoke hangs up on the backend, which stops the generation."""

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        self._work: dict[str, _Work] = {}
        self._group: asyncio.TaskGroup | None = None
        self._client: aiohttp.ClientSession | None = None
        agent.link.running(self.running)

    def running(self) -> list[agent_pb2.TaskAttempt]:
        """Attempts under way: their leases are renewed."""
        return [work.attempt for work in self._work.values()]

    def desired(self, state: agent_pb2.DesiredState) -> None:
        """Tasks are leased, not desired."""

    async def run(self) -> None:
        """Hold the tasks until cancelled."""
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=5)
        async with (
            aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0)) as self._client,
            asyncio.TaskGroup() as self._group,
        ):
            await asyncio.get_running_loop().create_future()

    def lease(self, lease: agent_pb2.Lease) -> None:
        """Start an attempt; a lease that is here already is not started twice."""
        if self.agent.stopping.is_set():
            return  # the host will see that the node left
        attempt = agent_pb2.TaskAttempt(task_id=lease.task.id, attempt=lease.task.attempt)
        known = self._work.get(lease.task.id)
        if known is not None and known.attempt == attempt:
            return
        if known is not None:
            known.task.cancel()
        if self._group is None:
            self._tell(attempt, CANCELLED, detail="the agent is starting")
            return
        task = self._group.create_task(self._run(lease, attempt), name=f"task-{lease.task.id}")
        self._work[lease.task.id] = _Work(attempt, task)

    def revoke(self, revoke: agent_pb2.Revoke) -> None:
        """End an attempt; one that is not here any more is reported as cancelled all the same."""
        known = self._work.get(revoke.attempt.task_id)
        if known is not None and known.attempt == revoke.attempt:
            known.task.cancel()
        else:
            self._tell(revoke.attempt, CANCELLED, detail=revoke.reason)

    async def _run(self, lease: agent_pb2.Lease, attempt: agent_pb2.TaskAttempt) -> None:
        began = time.monotonic()
        try:
            async with asyncio.timeout(lease.task.timeout_s or None):
                output, tokens_in, tokens_out = await self._infer(lease)
                text = await self._kept(json.dumps(output, ensure_ascii=False), attempt)
        except TimeoutError:
            self._tell(attempt, FAILED, detail=f"not done after {lease.task.timeout_s:g} s")
        except asyncio.CancelledError:
            self._tell(attempt, CANCELLED, detail="ended on the node")
            raise
        except _NotServed as error:  # no failure of the task: it is ready again
            self._tell(attempt, CANCELLED, detail=str(error))
        except _Refused as error:
            self._tell(attempt, FAILED, detail=str(error), permanent=True)
        except (GswarmError, aiohttp.ClientError, OSError, ValueError) as error:
            # A backend that ends with its agent is no failure: the host takes back what a node had that leaves.
            if not self.agent.stopping.is_set():
                self._tell(attempt, FAILED, detail=str(error) or type(error).__name__)
        else:
            report = agent_pb2.TaskReport(
                attempt=attempt,
                phase=DONE,
                output_json=text,
                run_s=time.monotonic() - began,
            )
            if tokens_in is not None:
                report.tokens_in = tokens_in
            if tokens_out is not None:
                report.tokens_out = tokens_out
                self.agent.peer.throughput.add(lease.service, tokens_out)
            self.agent.link.report(task=report)
        finally:
            known = self._work.get(lease.task.id)
            if known is not None and known.attempt == attempt:
                del self._work[lease.task.id]

    async def _kept(self, text: str, attempt: agent_pb2.TaskAttempt) -> str:
        """The output itself, or what names the chunk that holds it."""
        size = len(text.encode())
        if size <= OUTPUT_LIMIT:
            return text
        from gswarm.data import local, wire

        who = f"task-{attempt.task_id}"
        label = local.Label(
            f"output of {who}", who, OUTPUT_LEASE_S, f"{who}/{attempt.attempt}", self.agent.swarm.token_text
        )
        socket = self.agent.state_dir / wire.SOCKET_NAME
        chunk = await asyncio.to_thread(local.put_value, socket, json.loads(text), label)
        return json.dumps({"chunk": chunk.id, "bytes": size})

    def _tell(
        self,
        attempt: agent_pb2.TaskAttempt,
        phase: queue_pb2.TaskPhase.ValueType,
        *,
        detail: str,
        permanent: bool = False,
    ) -> None:
        self.agent.link.report(
            task=agent_pb2.TaskReport(attempt=attempt, phase=phase, detail=detail, permanent=permanent)
        )

    async def _service(self, service: str) -> tuple[str, int]:
        """The name that a service's backend wants as model, and its port. Raises _NotServed."""
        deadline = time.monotonic() + SETTLE_S
        while True:
            ready, process = self.agent.models.ready(service), self.agent.supervisor.get(service)
            if ready is not None and process is not None:
                return ready[1], process.port
            if time.monotonic() > deadline:
                raise _NotServed(f"service {service} is not ready on this node")
            await asyncio.sleep(LOOK_S)

    async def _infer(self, lease: agent_pb2.Lease) -> tuple[dict[str, Any], int | None, int | None]:
        """Ask the backend; streamed, so that hanging up stops it. (output, tokens in, tokens out)."""
        name, port = await self._service(lease.service)
        params = json.loads(lease.params_json)
        messages = params.get("messages") or [{"role": "user", "content": str(params.get("prompt", ""))}]
        if "system" in params:
            messages = [{"role": "system", "content": str(params["system"])}, *messages]
        body = {"model": name, "messages": messages, "stream": True}
        body |= {name: params[name] for name in PASSED_ON if name in params}
        text: list[str] = []
        usage: dict[str, Any] = {}
        finish = ""
        assert self._client is not None
        async with self._client.post(f"http://127.0.0.1:{port}/v1/chat/completions", json=body) as answer:
            if answer.status >= 400:
                detail = (await answer.text())[:300]
                error = f"the backend answered {answer.status}: {detail}"
                raise _Refused(error) if answer.status in (400, 404, 413, 422) else GswarmError(error)
            async for line in answer.content:
                data = line.strip().removeprefix(b"data:").strip()
                if not line.startswith(b"data:") or data == b"[DONE]":
                    continue
                event = json.loads(data)
                usage = event.get("usage") or usage
                for choice in event.get("choices", []):
                    text.append((choice.get("delta") or {}).get("content") or "")
                    finish = choice.get("finish_reason") or finish
        if not finish:
            raise GswarmError("the backend broke off in the middle of its answer")
        output = {"text": "".join(text), "finish_reason": finish}
        return output, usage.get("prompt_tokens"), usage.get("completion_tokens")


class _NotServed(Exception):
    """The service is not here, or not ready, whatever the host thought when it leased the task."""


class _Refused(Exception):
    """The backend says the request itself is wrong: another attempt would not help."""
