"""Where alerts are told: a webhook, a command. Both get one JSON object; both end within their time."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

from gswarm import __version__, net
from gswarm.config import AlertingConfig
from gswarm.errors import GswarmError, InvalidError

HEADERS_VARIABLE = "GSWARM_ALERT_HEADERS"
_HEADER = re.compile(r"([A-Za-z0-9!#$%&'*+.^_`|~-]+):[ \t]*([\x20-\x7e]*)")
_NEVER_PASSED = frozenset({"GSWARM_TOKEN", HEADERS_VARIABLE})
_TRY_AGAIN = frozenset({408, 425, 429})


class DeliveryError(GswarmError):
    """It did not arrive. `is_final`: trying again is of no use."""

    def __init__(self, what: str, *, is_final: bool = False) -> None:
        super().__init__(what)
        self.is_final = is_final


class Sink(Protocol):
    """One place to tell."""

    @property
    def name(self) -> str:
        """Short name, unique among sinks."""

    async def send(self, body: bytes) -> None:
        """Deliver one JSON object. Raises DeliveryError."""


def sinks(config: AlertingConfig) -> list[Sink]:
    """What config.yaml asks for. Raises InvalidError for what can never work."""
    found: list[Sink] = []
    if config.webhook:
        found.append(Webhook(config.webhook, headers(config.headers_file), config.timeout_s))
    if config.command:
        found.append(Command(config.command, config.timeout_s))
    return found


def headers(path: str) -> dict[str, str]:
    """The webhook's headers, from GSWARM_ALERT_HEADERS or a private file. Raises InvalidError; no value is ever shown."""
    text, where = os.environ.get(HEADERS_VARIABLE, ""), HEADERS_VARIABLE
    if path:
        file = Path(path).expanduser()
        try:
            if file.stat().st_mode & 0o077:
                raise InvalidError(
                    f"{file} may be read by others",
                    next=f"make it private: chmod 600 {file}",
                    field="alerting.headers_file",
                )
            text, where = file.read_text(), str(file)
        except (OSError, UnicodeDecodeError) as error:
            why = getattr(error, "strerror", None) or "it is not text"
            raise InvalidError(f"{file} cannot be read", why=why, field="alerting.headers_file") from None
    found: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            match = _HEADER.fullmatch(line.strip())
            if match is None:
                raise InvalidError(
                    f"line {number} of {where} is no header", next="write Name: value", field="alerting.headers_file"
                )
            found[match[1]] = match[2]
    return found


class Webhook:
    """Posts to a URL. Redirects are not followed: headers are meant for one place only."""

    name = "webhook"

    def __init__(self, url: str, headers: Mapping[str, str], timeout_s: float) -> None:
        """Raises InvalidError for a URL that is none, or that would carry headers in the clear."""
        try:
            parts = urlsplit(url)
            host, _ = parts.hostname or "", parts.port
        except ValueError:
            host, parts = "", urlsplit("")
        if parts.scheme not in ("http", "https") or not host:
            raise InvalidError("alerting.webhook is no http or https URL", field="alerting.webhook")
        if parts.scheme == "http" and headers and not net.is_loopback(host):
            raise InvalidError(
                "alerting.webhook would carry its headers in the clear", next="use https", field="alerting.webhook"
            )
        # The rest of a URL is often a secret of its own.
        self.place = f"{parts.scheme}://{host}"
        self._url, self._timeout_s = url, timeout_s
        self._headers = {"Content-Type": "application/json", "User-Agent": f"gswarm/{__version__}", **headers}

    async def send(self, body: bytes) -> None:
        import aiohttp

        timeout = aiohttp.ClientTimeout(total=self._timeout_s)
        try:
            # Alerts are rare: a connection kept between two of them would be closed by the other side anyway.
            async with (
                aiohttp.ClientSession(timeout=timeout) as session,
                session.post(self._url, data=body, headers=self._headers, allow_redirects=False) as answer,
            ):
                status = answer.status
        except TimeoutError:
            raise DeliveryError(f"{self.place} did not answer within {self._timeout_s:g} s") from None
        except (aiohttp.ClientError, OSError) as error:
            reason = getattr(getattr(error, "os_error", error), "strerror", None) or type(error).__name__
            raise DeliveryError(f"{self.place} cannot be reached: {reason}") from None
        if status >= 300:
            final = status < 500 and status not in _TRY_AGAIN
            raise DeliveryError(f"{self.place} answered {status}", is_final=final)


class Command:
    """Runs a program of the host's own config: no shell, a session of its own, ended whole when its time is over."""

    name = "command"

    def __init__(self, argv: tuple[str, ...], timeout_s: float) -> None:
        """Raises InvalidError when there is no such program."""
        program = shutil.which(argv[0])
        if program is None:
            raise InvalidError(f"alerting.command: {argv[0]} is no program here", field="alerting.command")
        self._argv, self._timeout_s = (program, *argv[1:]), timeout_s

    async def send(self, body: bytes) -> None:
        environment = {name: value for name, value in os.environ.items() if name not in _NEVER_PASSED}
        try:
            process = await asyncio.create_subprocess_exec(
                *self._argv,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.DEVNULL,
                env=environment,
                start_new_session=True,
            )
        except OSError as error:
            raise DeliveryError(f"{self._argv[0]} cannot be started: {error.strerror}") from None
        try:
            async with asyncio.timeout(self._timeout_s):
                await process.communicate(body)
        except TimeoutError:
            raise DeliveryError(f"{self._argv[0]} did not end within {self._timeout_s:g} s") from None
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                await process.wait()
        if process.returncode:
            raise DeliveryError(f"{self._argv[0]} ended with {process.returncode}")
