"""Names that people and peers give: what they may contain, and which one was probably meant."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

from gswarm.errors import InvalidError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,127}")
_LABEL = re.compile(r"[^/\x00-\x1f\x7f-\x9f\u2028\u2029]{1,200}")


def check_name(name: str, field: str, *, spaces: bool = False) -> str:
    """`name` itself, if it is safe as a key, a file name and a word on a command line.

    With `spaces` a label for people is checked instead (never used as a path). Raises InvalidError naming `field`.
    """
    if spaces:
        pattern, rule = _LABEL, f"a {field} is at most 200 characters on one line, without /"
    else:
        pattern, rule = _NAME, f"a {field} starts with a letter or digit and has only letters, digits and . _ @ -"
    if not pattern.fullmatch(name) or (not spaces and ".." in name):
        shown = name if len(name) <= 60 else f"{name[:57]}..."
        raise InvalidError(
            f"{shown!r} cannot be the {field}", why=rule if name else "it is empty", next="choose another", field=field
        )
    return name


def near(name: str, known: Iterable[str]) -> str:
    """A hint for an error's `next`: the closest known names, or all of a few; empty when there are none."""
    names = sorted(set(known))
    if close := difflib.get_close_matches(name, names, n=3, cutoff=0.6):
        return f"did you mean {' or '.join(close)}?"
    if names and len(names) <= 8:
        return f"there are: {', '.join(names)}"
    return ""
