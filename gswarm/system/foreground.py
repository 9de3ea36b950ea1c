"""What a host or agent in the foreground writes: its log on standard error, plainly."""

from __future__ import annotations

import logging
import sys


def say_more() -> None:
    """Log from now on, a line an entry, times in UTC."""
    import time

    handler = logging.StreamHandler(sys.stderr)
    formatter = logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%dT%H:%M:%SZ")
    formatter.converter = time.gmtime
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("gswarm").setLevel(logging.INFO)
