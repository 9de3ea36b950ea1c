"""`gswarm-tui [HOST:8090] [--from RECORDING]`: the console, or a clear word about why it cannot open."""

from __future__ import annotations

import argparse
import gc
import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .app import Console

THEMES = ("dark", "light", "contrast", "ansi", "mono")


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="gswarm-tui", description="gswarm's console: see every GPU, model, chunk and task, and act."
    )
    made.add_argument("host", nargs="?", help="HOST:PORT; by default the host that runs here")
    made.add_argument("--from", dest="recording", metavar="RECORDING", help="replay a recording instead")
    made.add_argument("--theme", choices=THEMES, default=os.environ.get("GSWARM_THEME", "dark"), help="colours")
    made.add_argument("--ascii", action="store_true", help="draw with ASCII only")
    made.add_argument("--token-file", metavar="FILE", help="file that holds the token")
    made.add_argument("--screenshot", metavar="FILE", help="draw one screen to an SVG file and leave")
    made.add_argument("--size", default="120x40", help="of the screenshot, in cells (default %(default)s)")
    made.add_argument("--keys", default="", help="keys pressed before the screenshot, with commas between")
    return made


def main(argv: list[str] | None = None) -> int:
    """The console's entry point; returns the exit code."""
    options = parser().parse_args(argv)
    if not options.screenshot and not (sys.stdin.isatty() and sys.stdout.isatty()):
        sys.stderr.write(
            "gswarm-tui: needs a terminal, and standard input or output is none. "
            "Without one, `gswarm status` prints the same (`gswarm --help` for all).\n"
        )
        return 2
    from gswarm.errors import GswarmError

    try:
        app = _console(options)
    except GswarmError as error:
        sys.stderr.write(f"gswarm-tui: {error}\n")
        return int(error.code)
    if options.screenshot:
        return _screenshot(app, options)
    # A frame makes thousands of objects and no cycles among them: walking all of Textual's for each would cost as much again.
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)
    app.run()
    return app.return_code or 0


def _console(options: argparse.Namespace) -> Console:
    from .app import Console
    from .feed import open_feed

    feed = open_feed(options.host, options.recording, token_file=options.token_file)
    return Console(feed, theme=f"gswarm-{options.theme}", is_ascii=options.ascii)


def plain_svg(svg: str) -> str:
    """The picture without fonts from elsewhere, and with its blanks kept by every renderer."""
    import re

    svg = re.sub(r"@font-face\s*\{.*?\}", "", svg, flags=re.DOTALL)
    svg = svg.replace("font-family: Fira Code", "font-family: JetBrains Mono, DejaVu Sans Mono, Menlo, Consolas")
    return svg.replace("<svg ", '<svg xml:space="preserve" ', 1)


def _screenshot(app: Console, options: argparse.Namespace) -> int:
    import asyncio
    from pathlib import Path

    try:
        width, _, height = options.size.partition("x")
        size = (int(width), int(height))
    except ValueError:
        sys.stderr.write(f"gswarm-tui: --size {options.size} is not WIDTHxHEIGHT\n")
        return 2

    async def draw() -> str:
        async with app.run_test(size=size) as pilot:
            try:
                await asyncio.wait_for(app.has_data.wait(), 10)
            except TimeoutError:
                sys.stderr.write("gswarm-tui: the host has not answered within 10 s; the picture says so\n")
            await asyncio.sleep(2.5)  # a few ticks, so that numbers and histories are there
            for key in filter(None, options.keys.split(",")):
                await pilot.press(key)
                await pilot.pause(0.3)
            return plain_svg(app.export_screenshot(title="gswarm"))

    Path(options.screenshot).write_text(asyncio.run(draw()), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
