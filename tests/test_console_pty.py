"""The console in a real pseudo-terminal: what a terminal emulator shows, with the frame-diff layer and without."""

from __future__ import annotations

import fcntl
import os
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pyte
import pytest

ROOT = Path(__file__).resolve().parent.parent
CHILD = """
import asyncio, sys
from gswarm_tui.app import Console
from tests.support.swarm import FakeFeed, FakeSwarm
Console(FakeFeed(FakeSwarm(1, 4, tasks=12)), theme=sys.argv[1]).run()
"""


class Terminal:
    """A child in a pseudo-terminal of its own session, and an emulator that shows what it wrote."""

    def __init__(self, width: int, height: int, *arguments: str, **env: str) -> None:
        self.screen = pyte.Screen(width, height)
        self.stream = pyte.ByteStream(self.screen)
        self.master, slave = os.openpty()
        self.resize(width, height)
        path = os.pathsep.join([str(ROOT), str(ROOT / "tui")])
        settings = {"TERM": "xterm-256color", "COLORTERM": "truecolor", "PYTHONPATH": path, **env}
        clean = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "GSWARM_DIFF")}
        self.child = subprocess.Popen(
            [sys.executable, *arguments],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env={**clean, **settings},
            start_new_session=True,
        )
        os.close(slave)

    def resize(self, width: int, height: int) -> None:
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))

    def press(self, keys: str) -> None:
        os.write(self.master, keys.encode())

    def until(self, seen: Callable[[list[str]], bool], seconds: float = 20.0) -> list[str]:
        """Read until the screen is as it should be."""
        end = time.monotonic() + seconds
        while not seen(self.screen.display):
            if time.monotonic() > end:
                raise AssertionError("\n".join(self.screen.display))
            if not self.read(0.1):
                break
        return list(self.screen.display)

    def read(self, seconds: float) -> bool:
        """Show what the child writes within so long; False when it has gone."""
        if select.select([self.master], [], [], seconds)[0]:
            try:
                data = os.read(self.master, 1 << 16)
            except OSError:
                return False
            # pyte knows no private-mode queries; they draw nothing
            self.stream.feed(data.replace(b"\x1b[>25u", b"").replace(b"\x1b[<u", b""))
        return True


@contextmanager
def console(width: int = 100, height: int = 30, theme: str = "gswarm-dark", **env: str) -> Iterator[Terminal]:
    with running(Terminal(width, height, "-c", CHILD, theme, **env)) as terminal:
        yield terminal


@contextmanager
def running(terminal: Terminal) -> Iterator[Terminal]:
    try:
        yield terminal
    finally:
        if terminal.child.poll() is None:
            terminal.child.kill()
        terminal.child.wait()
        os.close(terminal.master)


def has(*words: str) -> Callable[[list[str]], bool]:
    return lambda lines: all(any(word in line for line in lines) for word in words)


@pytest.mark.parametrize("diff", ["1", "0"])
def test_it_opens_zooms_filters_and_leaves(diff: str) -> None:
    with console(GSWARM_DIFF=diff) as terminal:
        terminal.until(has("gswarm", "live", "1 Devices and plan", "2 Models", "q quit"))
        terminal.press("2")
        terminal.until(lambda lines: has("2 Models", "whisper")(lines) and not has("Devices and plan")(lines))
        terminal.press("/phi\r")
        terminal.until(lambda lines: has("/phi 1 of", "phi-4")(lines) and not has("whisper")(lines))
        terminal.press("\x1b")
        terminal.until(has("whisper"))
        terminal.press("q")
        assert terminal.child.wait(timeout=20) == 0


def test_what_is_typed_in_one_go_reaches_its_fields() -> None:
    with console() as terminal:
        terminal.until(has("live", "q quit"))
        terminal.press("2")
        terminal.until(lambda lines: not has("Devices and plan")(lines))
        terminal.press("d")
        terminal.until(has("model download", "what will happen", "needed"))
        terminal.press("llama\tfile:///models/llama\r")
        terminal.until(has("$ gswarm model download llama --source file:///models/llama", "y copies"))


def test_both_ways_of_writing_end_in_the_same_screen() -> None:
    with console(GSWARM_DIFF="1") as changes, console(GSWARM_DIFF="0") as whole:
        for terminal in (changes, whole):
            terminal.until(has("live", "q quit"))
            terminal.press("2?")
            terminal.until(has("keys that work here"))
            terminal.press("\x1b")
            terminal.until(lambda lines: not has("keys that work here")(lines))
            terminal.press("0")
            terminal.until(has("1 Devices and plan", "4 Queue", "q quit", "$ gswarm device"))
        # Either may have been looked at in the middle of a frame: what counts is where they come to rest.
        end = time.monotonic() + 20
        while changes.screen.display != whole.screen.display and time.monotonic() < end:
            changes.read(0.1)
            whole.read(0.1)
        assert changes.screen.display == whole.screen.display


def test_in_the_ansi_theme_it_uses_the_terminals_own_colours() -> None:
    with console(theme="gswarm-ansi") as terminal:
        terminal.until(has("live", "q quit"))
        colours = {terminal.screen.buffer[y][x].fg for y in range(30) for x in range(100)}
        assert all(len(c) != 6 or not all(d in "0123456789abcdef" for d in c) for c in colours), colours
