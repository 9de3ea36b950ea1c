"""A recording and a live host's past in a real pseudo-terminal: played, paused, stepped, sought by keys and mouse."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.killing import Running, started
from tests.support.processes import eventually
from tests.test_console_pty import Terminal, has, running

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]
WIDTH, HEIGHT = 120, 30


def clock(lines: list[str]) -> str:
    """The time in the replay's header, else nothing."""
    found = re.search(r"(?:▸ replay \S+|samples of) (\d\d:\d\d:\d\d)", lines[0])
    return found[1] if found else ""


def cursor(lines: list[str]) -> int:
    """The cell in which the time line's cursor stands."""
    return lines[HEIGHT - 3].find("┃")


def click(terminal: Terminal, x: int, y: int) -> None:
    """The left button at a cell counted from 0, as terminals send it."""
    for end in "Mm":
        terminal.press(f"\x1b[<0;{x + 1};{y + 1}{end}")


def jump(terminal: Terminal, time: str) -> None:
    """Go to a time through the prompt."""
    terminal.press("g")
    terminal.until(lambda lines: lines[HEIGHT - 2].strip().startswith("go to"))
    terminal.press(f"{time}\r")
    terminal.until(lambda lines: lines[HEIGHT - 2].strip().startswith("$"))


def recorded(swarm: Running) -> None:
    """A session of some seconds with two marks in it."""
    run = swarm.installed.run
    run("profiler", "start", "--name", "run-1", "--interval", "0.2")
    for text in ("begin", "end"):
        held = swarm.installed.rows("profiler", "list")[0]["ticks"]
        eventually(
            lambda held=held: swarm.installed.rows("profiler", "list")[0]["ticks"],  # type: ignore[misc]
            lambda now, held=held: int(str(now)) >= int(str(held)) + 12,  # type: ignore[misc]
        )
        run("profiler", "mark", text)
    run("profiler", "stop", "run-1")


def test_a_recording_and_the_past_of_its_host(tmp_path: Path) -> None:
    with started(tmp_path) as swarm:
        swarm.agent()
        eventually(lambda: swarm.installed.rows("node", "list"), bool)
        recorded(swarm)
        env = {name: value for name, value in swarm.installed.env.items() if name != "NO_COLOR"}
        with running(Terminal(WIDTH, HEIGHT, "-m", "gswarm_tui", "--from", "run-1", **env)) as terminal:
            terminal.until(has("▸ replay run-1", "n1", "gpu0 SIM"))
            terminal.press(",")  # a step pauses, wherever it has played to
            terminal.until(has("paused"))
            jump(terminal, "+0s")
            begin = clock(terminal.until(lambda lines: bool(clock(lines)) and clock(lines) in lines[HEIGHT - 3][:11]))
            line = terminal.screen.display[HEIGHT - 3]
            assert line.count("▲") >= 1 and "┃" in line, "marks and the cursor stand on the time line"
            terminal.press("]" * 40)
            terminal.until(lambda lines: cursor(lines) > 60 and "▲" not in lines[HEIGHT - 3][cursor(lines) :])
            last = cursor(list(terminal.screen.display))
            click(terminal, WIDTH - 12, HEIGHT - 3)
            terminal.until(lambda lines: cursor(lines) >= WIDTH - 13)
            terminal.press("[")
            terminal.until(lambda lines: cursor(lines) == last)
            click(terminal, 30, HEIGHT - 3)
            terminal.until(lambda lines: 29 <= cursor(lines) <= 31)
            jump(terminal, "+0s")
            terminal.until(lambda lines: clock(lines) == begin)
            terminal.press("++ ")
            terminal.until(has("×4"))
            terminal.until(has("paused"))  # it has come to its end
            terminal.press("q")
            assert terminal.child.wait(timeout=20) == 0
        with running(Terminal(WIDTH, HEIGHT, "-m", "gswarm_tui", **env)) as terminal:
            terminal.until(has("● live", "gpu0 SIM"))
            terminal.press(",")
            shown = terminal.until(has("past samples of", "state of now"))
            terminal.press(",,,")
            terminal.until(lambda lines: clock(lines) < clock(shown))
            terminal.press("\x7f")
            terminal.until(lambda lines: "● live" in lines[0])
