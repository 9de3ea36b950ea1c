"""Entry point of the gswarm command."""

from __future__ import annotations

import gc
import os
import sys


def main() -> None:
    """Run the command line of this process."""
    if "_GSWARM_COMPLETE" in os.environ:
        from gswarm.completion import complete

        sys.exit(complete())
    # A command makes no garbage worth looking for while it imports, nor at its end; that is a tenth of its time.
    gc.set_threshold(50_000)
    try:
        from gswarm.cli import run

        code = run(sys.argv[1:])
    except KeyboardInterrupt:  # while it was still starting
        code = 130
    gc.freeze()
    sys.exit(code)


if __name__ == "__main__":
    main()
