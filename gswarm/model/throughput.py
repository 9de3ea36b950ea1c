"""Tokens per second of the services of a node, from the usage that their backends report with each answer."""

from __future__ import annotations

import re
import time
from collections import deque
from collections.abc import Callable

WINDOW_S = 10.0
TAIL_BYTES = 4096
"""How much of the end of an answer is kept to find its usage in; backends send it last."""
_TOKENS = re.compile(rb'"completion_tokens"\s*:\s*(\d+)')


class Throughput:
    """Counts the tokens of answers that ended within the last ten seconds; an answer under way counts when it ends."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._ended: dict[str, deque[tuple[float, int]]] = {}

    def add(self, service: str, tokens: int) -> None:
        """An answer of so many tokens has ended."""
        self._ended.setdefault(service, deque()).append((self._clock(), tokens))

    def rate(self, service: str) -> float | None:
        """Tokens per second; None for a service that has not answered yet."""
        ended = self._ended.get(service)
        if ended is None:
            return None
        while ended and ended[0][0] <= self._clock() - WINDOW_S:
            ended.popleft()
        return sum(tokens for _, tokens in ended) / WINDOW_S

    def forget(self, service: str) -> None:
        """The service has ended."""
        self._ended.pop(service, None)


class Tail:
    """The end of an answer that passes by, for the usage in it."""

    def __init__(self) -> None:
        self._kept = b""

    def feed(self, piece: bytes) -> None:
        """More of the answer."""
        self._kept = (self._kept + piece)[-TAIL_BYTES:]

    def tokens(self) -> int | None:
        """Completion tokens by the backend's own count; None when it gave none."""
        found = _TOKENS.findall(self._kept)
        return int(found[-1]) if found else None
