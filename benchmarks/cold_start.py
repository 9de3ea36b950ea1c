"""What the CLI costs to start, beside the least that could do the same: a bare Typer app, without and with one gRPC call.

The bare app has the same tree of commands with as many parameters each, generated from the catalogue. For `model list` it
has that one command, imports grpc.aio and our stubs, and makes the call against the same running host. The two are started
in turns, so that the machine's moods meet both. Prints one JSON line; each ratio is gswarm to bare.

    python benchmarks/cold_start.py [--rounds 30]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

GOAL = 1.2
BIN = Path(sys.executable).parent
CALL = '''
@model.command("list")
def list_(
    filter: list[str] = typer.Option([]), sort: str = typer.Option("name"), limit: int = typer.Option(200),
    output: str = typer.Option("table"), host: str = typer.Option("", envvar="BARE_HOST"),
    token: str = typer.Option("", envvar="BARE_TOKEN"), timeout: float = typer.Option(0.0),
) -> None:
    """List models."""
    import asyncio

    asyncio.run(call(host, token, sort, limit))


async def call(host: str, token: str, sort: str, limit: int) -> None:
    import grpc.aio

    from gswarm.v1 import cluster_pb2, cluster_pb2_grpc, common_pb2

    request = cluster_pb2.WatchRequest(kinds=[common_pb2.KIND_MODEL], sort=sort, limit=limit, list_only=True)
    async with grpc.aio.insecure_channel(host) as channel:
        watch = cluster_pb2_grpc.ClusterStub(channel).Watch(request, metadata=[("authorization", "Bearer " + token)])
        async for response in watch:
            for item in response.objects:
                print(item.model.name, item.model.size_bytes, item.model.default_version)
'''


def tree() -> str:
    """A Typer app with every command of the catalogue and their parameters; none does anything."""
    from gswarm.catalogue import actions

    groups: dict[str, list[str]] = defaultdict(list)
    for action in actions():
        *path, verb = action.name.split()
        parent = "_".join(["app", *path])
        words = []
        for p in action.parameters:
            default = "..." if p.required else "None" if p.optional else repr(list(p.default) if p.many else p.default)  # type: ignore[call-overload]
            kind = "str" if p.choices or p.type.__name__ == "Path" else p.type.__name__
            kind = f"list[{kind}]" if p.many else f"{kind} | None" if p.optional else kind
            how = "Argument" if p.positional else "Option"
            words.append(f"{p.name}: {kind} = typer.{how}({default}, help={p.doc!r})")
        function = f"{parent}_{verb}".replace("-", "_")
        groups[parent].append(
            f"@{parent}.command({verb!r})\ndef {function}({', '.join(words)}) -> None:\n    {action.summary!r}\n"
        )
        for depth in range(1, len(path)):
            groups["_".join(["app", *path[:depth]])] += []
    lines = []
    for group in sorted(groups):
        lines.append(f"{group} = typer.Typer(add_completion=False, rich_markup_mode=None, no_args_is_help=True)")
        if group != "app":
            parent, _, name = group.rpartition("_")
            lines.append(f"{parent}.add_typer({group}, name={name!r})")
        lines += groups[group]
    return "import typer\n\n" + "\n".join(lines)


def one_call() -> str:
    """A Typer app with `model list` alone, which makes the call."""
    head = "import typer\n\napp = typer.Typer(add_completion=False, rich_markup_mode=None)\nmodel = typer.Typer()\n"
    return head + "app.add_typer(model, name='model')\n" + CALL


@dataclass(frozen=True)
class Program:
    """Something to start."""

    argv: tuple[str, ...]
    env: dict[str, str]

    def run(self) -> float:
        """Seconds that one start takes, to its end."""
        begin = time.perf_counter()
        subprocess.run(self.argv, env=self.env, check=True, stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL)
        return time.perf_counter() - begin


def bare(directory: Path, name: str, source: str, env: dict[str, str], *words: str) -> Program:
    """A program installed as the gswarm command is: a script that imports a module, which is compiled once."""
    (directory / f"{name}.py").write_text(source)
    script = directory / f"run_{name}"
    script.write_text(f"from {name} import app\napp()\n")
    return Program((sys.executable, str(script), *words), env)


@contextlib.contextmanager
def running_host(env: dict[str, str], directory: Path) -> Iterator[dict[str, str]]:
    """A host in a process of its own; what the bare app needs to reach it."""
    words = [str(BIN / "gswarm"), "host", "start", "--port", "0", "--http-port", "0", "--model-port", "0"]
    process = subprocess.Popen(words, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 30
        while not (found := list(directory.rglob("host.json"))):
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit("the host did not start")
            time.sleep(0.05)
        port = json.loads(found[0].read_text())["port"]
        token = (found[0].parent / "host.token").read_text()
        yield env | {"BARE_HOST": f"127.0.0.1:{port}", "BARE_TOKEN": token}
    finally:
        process.terminate()
        process.wait(20)


def compare(ours: Program, theirs: Program, rounds: int) -> dict[str, object]:
    """Both in turns, after one start each that is not counted (it compiles)."""
    for program in (ours, theirs):
        program.run()
    pairs = []
    for number in range(rounds):
        if number % 2:
            b, a = theirs.run(), ours.run()
        else:
            a, b = ours.run(), theirs.run()
        pairs.append((a, b))
    return {
        "ratio": round(statistics.median(a / b for a, b in pairs), 2),
        "fastest_ratio": round(min(a for a, _ in pairs) / min(b for _, b in pairs), 2),
        "gswarm_ms": round(1000 * statistics.median(a for a, _ in pairs)),
        "bare_ms": round(1000 * statistics.median(b for _, b in pairs)),
    }


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=30)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary)
        dropped = ("GSWARM_", "PYTHONDONTWRITEBYTECODE", "PYTHONUNBUFFERED")
        env = {k: v for k, v in os.environ.items() if not k.startswith(dropped)}
        env |= {"GSWARM_STATE_DIR": str(directory / "state"), "HOME": temporary, "XDG_CONFIG_HOME": temporary}
        gswarm = str(BIN / "gswarm")
        result: dict[str, object] = {"benchmark": "cold_start", "rounds": options.rounds, "goal": GOAL}
        result["help"] = compare(
            Program((gswarm, "--help"), env), bare(directory, "tree", tree(), env, "--help"), options.rounds
        )
        with running_host(env, directory / "state") as reached:
            theirs = bare(directory, "one_call", one_call(), reached, "model", "list")
            result["model_list"] = compare(Program((gswarm, "model", "list"), env), theirs, options.rounds)
        print(json.dumps(result))


if __name__ == "__main__":
    main()
