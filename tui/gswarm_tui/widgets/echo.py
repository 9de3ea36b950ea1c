"""The CLI line that does what the screen would do; `y` copies it."""

from __future__ import annotations

from .line import Line


class Echo(Line):
    """`$ gswarm model serve sdxl --device n2:gpu1`, and how to copy it."""

    text = ""

    def say(self, text: str) -> None:
        """Show the CLI line `text`."""
        self.text = text
        if text:
            self.put((("$ ", "dim"), (text, "text")), (("y copies", "faint"),))
        else:
            self.put(())
