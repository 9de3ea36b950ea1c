"""A stub libnvidia-ml.so.1, compiled from C, that child processes load instead of a driver's; a file says what it gives."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

SOURCE = Path(__file__).with_name("nvml_stub.c")
NOT_SUPPORTED, NO_PERMISSION, FUNCTION_NOT_FOUND, LOST, UNKNOWN = 3, 4, 13, 15, 999


def compiler() -> str | None:
    """The C compiler of this machine; None: there is none, and no stub."""
    return shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")


class Stub:
    """The library in a directory of its own, and the file that rules it. Rules take effect at the next call into it."""

    def __init__(self, directory: Path, *rules: str) -> None:
        self.directory = directory
        self._library = _build()
        self._file = directory / "nvml.rules"
        self.set(*rules)

    def set(self, *rules: str) -> None:
        """Replace all rules: "devices 8", "fail 3 nvmlDeviceGetFanSpeed 3", "hang 4 *", "process 0 4711 1048576"."""
        part = self._file.with_suffix(".part")
        part.write_text("".join(f"{rule}\n" for rule in rules))
        part.replace(self._file)

    @property
    def env(self) -> dict[str, str]:
        """What a child process needs to load it."""
        passed = os.environ.get("LD_LIBRARY_PATH")
        return {
            "LD_LIBRARY_PATH": os.pathsep.join(filter(None, (str(self._library.parent), passed))),
            "STUB_NVML": str(self._file),
        }


def _build() -> Path:
    """Compile once for each state of the source."""
    command = compiler()
    assert command is not None, "no C compiler"
    digest = hashlib.blake2b(SOURCE.read_bytes(), digest_size=8).hexdigest()
    directory = SOURCE.parents[2] / ".cache" / f"stub-nvml-{digest}"
    library = directory / "libnvidia-ml.so.1"
    if not library.exists():
        directory.mkdir(parents=True, exist_ok=True)
        part = directory / f".{os.getpid()}.so"
        subprocess.run(
            [
                command,
                "-shared",
                "-fPIC",
                "-O2",
                "-Wall",
                "-Wextra",
                "-Werror",
                "-o",
                str(part),
                str(SOURCE),
                "-lpthread",
            ],
            check=True,
            timeout=60,
        )
        part.replace(library)
    return library
