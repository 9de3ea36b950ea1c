"""The house's import arrows: who may import whom, read from the source."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MODULES = sorted(
    p for base in ("gswarm", "tui/gswarm_tui") for p in (ROOT / base).rglob("*.py") if "_pb2" not in p.name
)
ROOMS = ("alert", "cluster", "data", "model", "profiler", "queue", "system")
LIGHT = {"actions.py", "types.py", "views.py", "catalogue.py", "cli.py", "config.py", "errors.py", "units.py"}
FACES = {"actions.py", "access.py"}
"""Of the scheduler, which is pure but for them."""
HEAVY = {
    "aiohttp", "asyncio", "blake3", "cryptography", "fastapi", "google", "grpc", "httpx", "matplotlib", "numpy", "nvitop", "psutil",
    "pyarrow", "pydantic", "pynvml", "rich", "sqlite3", "starlette", "textual", "uvicorn", "yaml",
}  # fmt: skip


def imports(path: Path, *, top_level: bool = False) -> Iterator[tuple[str, int]]:
    """Absolute names imported by a module; with `top_level` only those that importing it runs."""
    tree = ast.parse(path.read_text(), str(path))

    def visit(body: list[ast.stmt]) -> Iterator[tuple[str, int]]:
        for node in body:
            if isinstance(node, ast.Import):
                yield from ((alias.name, node.lineno) for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)
            elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
                if not top_level:
                    yield from visit(node.body)
                yield from visit(node.orelse)
            elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and top_level:
                continue
            else:
                for field in ("body", "orelse", "finalbody", "handlers"):
                    children = getattr(node, field, [])
                    yield from visit([c for c in children if isinstance(c, ast.stmt)])
                    for handler in (c for c in children if isinstance(c, ast.ExceptHandler)):
                        yield from visit(handler.body)

    return visit(tree.body)


def offending(path: Path, forbidden: tuple[str, ...], *, top_level: bool = False) -> list[str]:
    return [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for name, line in imports(path, top_level=top_level)
        if any(name == f or name.startswith(f"{f}.") for f in forbidden)
    ]


def _id(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", [p for p in MODULES if p.is_relative_to(ROOT / "gswarm")], ids=_id)
def test_gswarm_never_imports_the_console_at_import_time(path: Path) -> None:
    assert not offending(path, ("gswarm_tui",), top_level=True)


@pytest.mark.parametrize("path", [p for p in MODULES if "scheduler" in p.parts and p.name not in FACES], ids=_id)
def test_scheduler_imports_nothing_of_ours_and_no_io(path: Path) -> None:
    assert not offending(path, ("gswarm.scheduler.actions", "gswarm.scheduler.access"))
    ours = [f"gswarm.{p.stem if p.is_file() else p.name}" for p in (ROOT / "gswarm").iterdir() if p.stem != "scheduler"]
    assert not offending(path, (*ours, "gswarm_tui", "asyncio", "grpc", "google", "socket", "subprocess"))


@pytest.mark.parametrize("path", [p for p in MODULES if p.name in LIGHT and "tui" not in p.parts], ids=_id)
def test_light_modules_stay_light(path: Path) -> None:
    assert not offending(path, tuple(HEAVY | {"gswarm.v1", "gswarm.kinds", "gswarm.swarm"}), top_level=True)


@pytest.mark.parametrize("path", [p for p in MODULES if p.name in {"actions.py", "types.py"}], ids=_id)
def test_actions_and_types_do_not_reach_into_host_or_client(path: Path) -> None:
    if path.parent.name == "system":  # local actions start those very processes
        return
    assert not offending(path, ("gswarm.host", "gswarm.client"))


def side(room: str, name: str) -> list[Path]:
    """A side of a room: its worker.py or service.py, and all of the room that importing it runs."""
    found = [path] if (path := ROOT / "gswarm" / room / name).exists() else []
    for path in found:  # grows as it is walked
        for imported, _ in imports(path, top_level=True):
            for module in (imported, imported.rpartition(".")[0]):
                near = ROOT / f"{module.replace('.', '/')}.py"
                if module.startswith(f"gswarm.{room}.") and near.exists() and near not in found:
                    found.append(near)
    return found


@pytest.mark.parametrize("room", ROOMS)
def test_workers_do_not_import_services(room: str) -> None:
    for name, forbidden in (("worker.py", "gswarm.host"), ("service.py", "gswarm.client")):
        for path in side(room, name):
            assert not offending(path, (forbidden,), top_level=True)


def test_a_side_is_walked_to_its_end() -> None:
    assert {"worker.py", "serving.py", "downloads.py", "store.py", "source.py"} <= {
        p.name for p in side("model", "worker.py")
    }
    assert {"dispatcher.py", "host_tasks.py", "transitions.py"} <= {p.name for p in side("queue", "service.py")}


def test_swarm_imports_no_actions() -> None:
    path = ROOT / "gswarm/swarm.py"
    assert not offending(path, tuple(f"gswarm.{room}.actions" for room in ROOMS))


def test_the_walk_sees_nested_imports(tmp_path: Path) -> None:
    source = tmp_path / "x.py"
    source.write_text(
        "import grpc\ndef f():\n    import yaml\ntry:\n    import numpy\nexcept ImportError:\n    import json\n"
    )
    assert {n for n, _ in imports(source)} == {"grpc", "yaml", "numpy", "json"}
    assert {n for n, _ in imports(source, top_level=True)} == {"grpc", "numpy", "json"}
