"""Reaching a host: where it is, tokens, pinned certificates, channels."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import secrets
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from gswarm import config as settings
from gswarm.errors import ForbiddenError, GswarmError, InvalidError, UnauthenticatedError, UnreachableError, from_status

if TYPE_CHECKING:
    import grpc.aio

CERTIFICATE_NAME = "gswarm-host"
CONNECT_S = 3.0
MAX_MESSAGE = 64 << 20
ERROR_KEY = "gswarm-error-bin"
_TOKEN = re.compile(r"gsw1\.(viewer|operator|agent|infer|admin)\.([A-Za-z0-9_-]{20,})(?:\.([0-9a-f]{64}))?")


@dataclass(frozen=True, slots=True)
class Token:
    """A join token: `gsw1.<role>.<secret>[.<sha256 of the host's certificate>]`."""

    role: str
    secret: str
    fingerprint: str = ""

    def __str__(self) -> str:
        return f"gsw1.{self.role}.{self.secret}" + (f".{self.fingerprint}" if self.fingerprint else "")

    @staticmethod
    def new(role: str, fingerprint: str = "") -> Token:
        """A fresh token of a role."""
        return Token(role, secrets.token_urlsafe(32), fingerprint)

    @staticmethod
    def parse(text: str) -> Token:
        """Raises UnauthenticatedError for what is no token; the text itself is never repeated."""
        match = _TOKEN.fullmatch(text.strip())
        if match is None:
            raise UnauthenticatedError("that is not a gswarm token", why="it should look like gsw1.<role>.<secret>")
        return Token(match[1], match[2], match[3] or "")

    @property
    def digest(self) -> str:
        """What the host keeps of the secret."""
        return hashlib.sha256(self.secret.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class HostFile:
    """`host.json`: how local commands find the host of this machine."""

    pid: int
    started: float
    bind: str
    port: int
    http_port: int
    model_port: int
    tls: bool

    def alive(self) -> bool:
        """Whether that very process still runs."""
        return same_process(self.pid, self.started)

    def write(self, directory: Path) -> None:
        """Replace the file, whole or not at all."""
        write_private(directory / "host.json", json.dumps(asdict(self)))

    @staticmethod
    def read(directory: Path) -> HostFile | None:
        """What is written there, or None."""
        try:
            return HostFile(**json.loads((directory / "host.json").read_text()))
        except (OSError, ValueError, TypeError):
            return None


def same_process(pid: int, started: float) -> bool:
    """Whether `pid` runs and started at that time (seconds since the epoch; process ids are reused)."""
    with contextlib.suppress(OSError, ValueError, IndexError, StopIteration):
        # Linux, as psutil reads it; psutil itself costs every command 5 ms.
        words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        boot = next(line for line in Path("/proc/stat").read_text().splitlines() if line.startswith("btime "))
        begun = int(boot.split()[1]) + int(words[19]) / os.sysconf("SC_CLK_TCK")
        return words[0] != "Z" and abs(begun - started) < 0.05
    import psutil

    try:
        process = psutil.Process(pid)
        return abs(process.create_time() - started) < 0.05 and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def write_private(path: Path, text: str) -> None:
    """Write a file only the user can read, whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(fd, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A host to talk to, and the token to say."""

    host: str
    port: int
    token: Token | None = None

    @property
    def address(self) -> str:
        """HOST:PORT, brackets around IPv6."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_address(text: str, default_port: int = 8090) -> tuple[str, int]:
    """("host", port) of HOST, HOST:PORT or [v6]:PORT. Raises InvalidError."""
    match = re.fullmatch(r"(?:\[([0-9a-fA-F:.]+)\]|([A-Za-z0-9._-]+))(?::(\d{1,5}))?", text.strip())
    if match is None or not 0 < int(match[3] or default_port) < 65536:
        raise InvalidError(f"{text!r} is no address", next="write HOST:PORT, for example 10.0.0.5:8090", field="host")
    return match[1] or match[2], int(match[3] or default_port)


def is_loopback(host: str) -> bool:
    """Whether an address stays on this machine."""
    import ipaddress

    if host == "localhost":
        return True
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return False


def discover(address: str | None = None, token_file: Path | None = None) -> Endpoint:
    """The host to talk to: `address` > GSWARM_HOST > config > the one that runs on this machine; with its token.

    Raises UnreachableError when none is named and none runs here, UnauthenticatedError when a token is needed.
    """
    directory = settings.state_dir()
    local = HostFile.read(directory)
    named = address or os.environ.get("GSWARM_HOST") or settings.load().host.address
    if named:
        host, port = parse_address(named)
    elif local is not None and local.alive():
        host, port = ("127.0.0.1" if local.bind in ("0.0.0.0", "::") else local.bind), local.port
    else:
        raise UnreachableError(
            "no host runs on this machine and none is named",
            next="start one with gswarm up, or name one with --host HOST:8090",
        )
    return Endpoint(host, port, _token(directory, host, port, local, token_file))


def _token(directory: Path, host: str, port: int, local: HostFile | None, token_file: Path | None) -> Token | None:
    if token_file is not None:
        try:
            return Token.parse(token_file.read_text())
        except OSError as error:
            raise InvalidError(f"{token_file} cannot be read", why=error.strerror or "", field="token_file") from None
    if given := os.environ.get("GSWARM_TOKEN"):
        return Token.parse(given)
    # Over loopback the port decides which host answers; its token lies beside its host.json.
    if local is not None and local.port == port and (is_loopback(host) or host == local.bind):
        with contextlib.suppress(OSError):
            return Token.parse((directory / "host.token").read_text())
    return None


def make_certificate(directory: Path, addresses: list[str]) -> tuple[Path, Path]:
    """(certificate, key) files of a self-signed certificate named `gswarm-host`, made once and kept."""
    import datetime
    import ipaddress

    certificate, key = directory / "host.crt", directory / "host.key"
    if certificate.exists() and key.exists():
        return certificate, key
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    private = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, CERTIFICATE_NAME)])
    names: list[x509.GeneralName] = [x509.DNSName(CERTIFICATE_NAME), x509.DNSName("localhost")]
    for address in addresses:
        try:
            names.append(x509.IPAddress(ipaddress.ip_address(address)))
        except ValueError:
            names.append(x509.DNSName(address))
    now = datetime.datetime.now(datetime.UTC)
    built = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(private.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=3650))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(private, hashes.SHA256())
    )
    encoding = serialization.Encoding.PEM
    unencrypted = serialization.NoEncryption()
    write_private(key, private.private_bytes(encoding, serialization.PrivateFormat.PKCS8, unencrypted).decode())
    write_private(certificate, built.public_bytes(encoding).decode())
    return certificate, key


def fingerprint(pem: str) -> str:
    """sha256 of a certificate's DER form, hex."""
    import ssl

    return hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem)).hexdigest()


def fetch_pinned(host: str, port: int, expected: str) -> str:
    """PEM of the certificate that answers there, if it is the expected one. Blocks for up to 3 s.

    Raises UnreachableError, or ForbiddenError when another certificate answers.
    """
    import socket
    import ssl

    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        with socket.create_connection((host, port), CONNECT_S) as raw, context.wrap_socket(raw) as sock:
            der = sock.getpeercert(binary_form=True) or b""
    except (OSError, ssl.SSLError) as error:
        raise unreachable(f"{host}:{port}", str(error)) from None
    if hashlib.sha256(der).hexdigest() != expected:
        raise ForbiddenError(
            f"{host}:{port} is not the host this token belongs to",
            why="its certificate is another one",
            next="make a new token on that host (gswarm token create), or check the address",
        )
    return ssl.DER_cert_to_PEM_cert(der)


def unreachable(address: str, why: str = "") -> UnreachableError:
    """The error of a host that does not answer."""
    return UnreachableError(
        f"no gswarm host answers at {address}", why=why, next="check the address, or start one with gswarm up"
    )


async def pinned_channel(endpoint: Endpoint) -> grpc.aio.Channel:
    """A channel to the host; with a fingerprint in the token over TLS, after a look at the certificate that answers."""
    import asyncio

    if endpoint.token is None or not endpoint.token.fingerprint:
        return channel(endpoint)
    # Only the look blocks: a channel belongs to the loop that it is made on.
    pem = await asyncio.to_thread(fetch_pinned, endpoint.host, endpoint.port, endpoint.token.fingerprint)
    return channel(endpoint, pem)


def channel(endpoint: Endpoint, certificate: str = "") -> grpc.aio.Channel:
    """A channel to the host that connects lazily: over TLS to the holder of this certificate (PEM), else plain."""
    import grpc.aio

    options: list[tuple[str, str | int]] = [
        ("grpc.max_reconnect_backoff_ms", 1000),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 100),
        ("grpc.max_receive_message_length", MAX_MESSAGE),
        ("grpc.max_send_message_length", MAX_MESSAGE),
        ("grpc.enable_http_proxy", 0),
        # Channels of one process must not share a broken connection's backoff.
        ("grpc.use_local_subchannel_pool", 1),
    ]
    if not certificate:
        return grpc.aio.insecure_channel(endpoint.address, options)
    credentials = grpc.ssl_channel_credentials(certificate.encode())
    return grpc.aio.secure_channel(
        endpoint.address, credentials, [*options, ("grpc.ssl_target_name_override", CERTIFICATE_NAME)]
    )


def bearer(token: Token | str | None) -> tuple[tuple[str, str], ...]:
    """Call metadata that says who asks."""
    return (("authorization", f"Bearer {token}"),) if token else ()


def pack_error(error: GswarmError) -> bytes:
    """An error for trailing metadata, so that the other side raises the very same."""
    return json.dumps([error.what, error.why, error.next, error.field]).encode()


def raise_error(error: grpc.aio.AioRpcError, address: str) -> NoReturn:
    """Raise what a failed call means to a person."""
    import grpc

    status = error.code().name
    for key, value in error.trailing_metadata() or ():
        if key == ERROR_KEY and isinstance(value, bytes):
            what, why, next_step, name = json.loads(value)
            known = from_status(status, what)
            raise type(known)(what, why=why, next=next_step, field=name) from None
    if error.code() is grpc.StatusCode.UNAVAILABLE:
        told = error.details() or ""
        why = (
            "no such name"
            if "Domain name not found" in told or "DNS resolution failed" in told
            else "it refused or dropped the connection"
        )
        raise unreachable(address, why) from None
    if error.code() is grpc.StatusCode.UNIMPLEMENTED:
        raise GswarmError(
            "the host does not know this request", why="it runs another version", next="upgrade it"
        ) from None
    raise from_status(status, error.details() or status) from None
