"""Shell completion: the scripts, and live names for parameters that refer to a resource."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from gswarm.errors import InvalidError

VARIABLE = "_GSWARM_COMPLETE"
SHELLS = ("bash", "zsh", "fish")
LOOK_UP_S = 1.0


def script(words: Sequence[str]) -> str:
    """The completion script of a shell, to be sourced."""
    if len(words) != 1 or words[0] not in SHELLS:
        raise InvalidError("name the shell", next=f"gswarm completion {'|'.join(SHELLS)}")
    from typer._completion_shared import get_completion_script

    return get_completion_script(prog_name="gswarm", complete_var=VARIABLE, shell=words[0]) + "\n"


def complete() -> int:
    """Answer a completion request that the shell put into the environment."""
    import typer

    from gswarm.catalogue import ROOMS
    from gswarm.cli import Globals, build

    # A root with Typer's own completion switched on; its main() reads the environment and answers.
    app = typer.Typer(add_completion=True)
    app.callback()(lambda: None)
    root = typer.main.get_command(app)
    assert isinstance(root, typer.core.TyperGroup)
    for room in ROOMS:
        root.commands.update(build(room, Globals()).commands)
    code = root.main([], prog_name="gswarm", standalone_mode=False)
    return code if isinstance(code, int) else 0


def completer(kind: str) -> Callable[[str], list[str]]:
    """Names of a kind that begin with what was typed; none when the host does not answer quickly."""

    def names(incomplete: str) -> list[str]:
        import asyncio

        from gswarm.errors import GswarmError

        try:
            return [name for name in asyncio.run(_names(kind)) if name.startswith(incomplete)]
        except (GswarmError, TimeoutError):
            return []

    return names


async def _names(kind: str) -> list[str]:
    import asyncio

    from gswarm.codec import dataclass_of
    from gswarm.kinds import BY_SLOT
    from gswarm.swarm import connect

    async with asyncio.timeout(LOOK_UP_S), connect() as swarm:
        rows: list[Any] = await swarm.list(dataclass_of(kind), limit=1000)
    field = "alias" if kind == "device" else BY_SLOT[kind].key_field
    return [str(getattr(row, field)) for row in rows]
