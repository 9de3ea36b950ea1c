"""Work on a recording in a process of its own: what the host does for others takes none of its own memory and time.

Run as `python -m gswarm.profiler.apart`: a function and its arguments come on standard input, its result goes out.
"""

from __future__ import annotations

import asyncio
import pickle
import sys
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from gswarm.errors import GswarmError

P = ParamSpec("P")
R = TypeVar("R")


async def apart(function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
    """Call a module's function in a child process, which ends with us. Raises the GswarmError that it raised."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "gswarm.profiler.apart",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    try:
        told, _ = await process.communicate(pickle.dumps((function, args, kwargs)))
    except asyncio.CancelledError:
        process.kill()
        await process.wait()
        raise
    if process.returncode:
        raise GswarmError("the recording could not be worked on", why=f"its process ended with {process.returncode}")
    error, result = pickle.loads(told)  # from our own child
    if error is not None:
        kind, what, why, step, field = error
        raise kind(what, why=why, next=step, field=field)
    found: R = result
    return found


def main() -> None:
    """One call."""
    function, args, kwargs = pickle.load(sys.stdin.buffer)
    told: tuple[object, object]
    try:
        told = None, function(*args, **kwargs)
    except GswarmError as error:
        told = (type(error), error.what, error.why, error.next, error.field), None
    sys.stdout.buffer.write(pickle.dumps(told))


if __name__ == "__main__":
    main()
