"""The simulated backend's process: speaks the OpenAI API, loads for a while, then makes up words at a modelled speed."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path

from aiohttp import web

LOAD_BYTES_PER_S = 8 << 30
"""Modelled reading speed of weights: a 16 GiB model loads in two seconds."""
FASTEST_TOKENS_PER_S = 200.0
WORDS = [
    "the",
    "model",
    "would",
    "say",
    "something",
    "useful",
    "here",
    "if",
    "it",
    "were",
    "real",
    "and",
    "this",
    "device",
    "were",
    "more",
    "than",
    "a",
    "number",
]


class Simulation:
    """One model: loading, then ready; its memory and load are in the state file that simulated devices read."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.model: str = options.model
        self.devices: list[str] = options.devices.split(",")
        self.memory_bytes = int(options.size_bytes * 1.25)
        self.load_s: float = (
            options.load_s if options.load_s is not None else max(0.2, options.size_bytes / LOAD_BYTES_PER_S)
        )
        billions = max(0.1, options.size_bytes / (2 << 30))
        self.tokens_per_s: float = options.tokens_per_s or max(5.0, FASTEST_TOKENS_PER_S / (1 + billions / 4))
        self.state: Path = options.state
        self.active = 0
        self.generated = 0
        self.started = time.monotonic()
        self._told: tuple[int, float] | None = None

    @property
    def progress(self) -> float:
        """From 0 to 1; ready at 1."""
        return min(1.0, (time.monotonic() - self.started) / self.load_s)

    def tell(self) -> None:
        """Write memory and load for the devices."""
        told = (
            int(self.memory_bytes * self.progress),
            0.15 if self.progress < 1 else min(1.0, 0.25 * self.active + (0.35 if self.active else 0)),
        )
        if told != self._told:
            self._told = told
            body = {"devices": self.devices, "memory_bytes": told[0], "load": told[1]}
            part = self.state.with_suffix(".part")
            part.write_text(json.dumps(body))
            part.replace(self.state)

    async def words(self, prompt: str, limit: int) -> AsyncIterator[str]:
        """Tokens at the modelled pace, the same for the same prompt."""
        chooser = random.Random(prompt)
        self.active += 1
        self.tell()
        try:
            yield "[SIM]"
            for _ in range(max(0, limit - 1)):
                await asyncio.sleep(1 / self.tokens_per_s)
                self.generated += 1
                yield f" {chooser.choice(WORDS)}"
        finally:
            self.active -= 1
            self.tell()


def build(simulation: Simulation) -> web.Application:
    """The routes."""
    routes = web.RouteTableDef()

    @routes.get("/health")
    async def health(_: web.Request) -> web.Response:
        progress = simulation.progress
        return web.json_response({"progress": progress}, status=200 if progress >= 1 else 503)

    @routes.get("/v1/models")
    async def models(_: web.Request) -> web.Response:
        if simulation.progress < 1:
            return web.json_response({"error": {"message": "loading"}}, status=503)
        return web.json_response(
            {"object": "list", "data": [{"id": simulation.model, "object": "model", "owned_by": "simulated"}]}
        )

    @routes.get("/metrics.json")
    async def metrics(_: web.Request) -> web.Response:
        return web.json_response({"active": simulation.active, "generated": simulation.generated})

    @routes.post("/v1/chat/completions")
    async def chat(request: web.Request) -> web.StreamResponse:
        body = await request.json()
        prompt = " ".join(str(m.get("content", "")) for m in body.get("messages", []))
        return await _answer(simulation, request, body, prompt, is_chat=True)

    @routes.post("/v1/completions")
    async def completions(request: web.Request) -> web.StreamResponse:
        body = await request.json()
        return await _answer(simulation, request, body, str(body.get("prompt", "")), is_chat=False)

    app = web.Application(client_max_size=64 << 20)
    app.add_routes(routes)
    return app


async def _answer(
    simulation: Simulation, request: web.Request, body: dict[str, object], prompt: str, *, is_chat: bool
) -> web.StreamResponse:
    if simulation.progress < 1:
        return web.json_response({"error": {"message": "the model is loading"}}, status=503)
    asked = body.get("max_tokens") or body.get("max_completion_tokens") or 32
    limit = max(1, min(int(str(asked)), 4096))
    kind = "chat.completion" if is_chat else "text_completion"
    head = {
        "id": f"sim-{time.time_ns():x}",
        "created": int(time.time()),
        "model": simulation.model,
        "system_fingerprint": "SIM",
    }
    usage = {
        "prompt_tokens": len(prompt.split()),
        "completion_tokens": limit,
        "total_tokens": len(prompt.split()) + limit,
    }
    if not body.get("stream"):
        text = "".join([word async for word in simulation.words(prompt, limit)])
        choice = {"message": {"role": "assistant", "content": text}} if is_chat else {"text": text}
        return web.json_response(
            {**head, "object": kind, "choices": [{"index": 0, "finish_reason": "length", **choice}], "usage": usage}
        )
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"})
    await response.prepare(request)
    suffix = ".chunk" if is_chat else ""

    async def send(choice: dict[str, object], finish: str | None = None) -> None:
        event = {**head, "object": kind + suffix, "choices": [{"index": 0, "finish_reason": finish, **choice}]}
        if finish:
            event["usage"] = usage
        await response.write(f"data: {json.dumps(event)}\n\n".encode())

    async for word in simulation.words(prompt, limit):
        await send({"delta": {"role": "assistant", "content": word}} if is_chat else {"text": word})
    await send({"delta": {}} if is_chat else {"text": ""}, "length")
    await response.write(b"data: [DONE]\n\n")
    return response


async def serve(options: argparse.Namespace) -> None:
    """Serve until SIGTERM."""
    simulation = Simulation(options)
    options.state.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    runner = web.AppRunner(build(simulation), access_log=None, handler_cancellation=True, shutdown_timeout=1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", options.port).start()
    try:
        while not stop.is_set():
            simulation.tell()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.2 if simulation.progress < 1 else 5.0):
                    await stop.wait()
    finally:
        await runner.cleanup()
        options.state.unlink(missing_ok=True)


def main() -> None:
    """Entry point of the child process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--size-bytes", type=int, required=True)
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--devices", required=True)
    parser.add_argument("--tokens-per-s", type=float)
    parser.add_argument("--load-s", type=float)
    asyncio.run(serve(parser.parse_args()))


if __name__ == "__main__":
    main()
