"""A node's models: every file kept once under its BLAKE3 digest, every version a directory of hard links to them."""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from gswarm.errors import ExhaustedError, InvalidError, NotFoundError
from gswarm.names import check_name
from gswarm.v1.models_pb2 import ModelFile, ModelVersion

PIECE = 4 << 20


def hash_file(path: Path, progress: Callable[[int], None] = lambda done: None) -> str:
    """BLAKE3 of a file, hex. Blocks."""
    from blake3 import blake3

    hasher = blake3(max_threads=blake3.AUTO)
    done = 0
    with path.open("rb") as file:
        buffer = bytearray(PIECE)
        view = memoryview(buffer)
        while count := file.readinto(buffer):
            hasher.update(view[:count])
            done += count
            progress(done)
    return hasher.hexdigest()


def check_path(text: str) -> PurePosixPath:
    """A file's place inside a model, as a source named it. Raises InvalidError for anything that could leave it."""
    path = PurePosixPath(text)
    if (
        not text
        or path.is_absolute()
        or any(part in ("..", ".", "") or part.startswith("\0") for part in path.parts)
        or "\\" in text
    ):
        raise InvalidError(f"{text!r} cannot be a model's file", why="it would lie outside the model", field="path")
    return path


def version_digest(files: list[ModelFile]) -> str:
    """Identity of a version: BLAKE3 over its sorted paths and digests."""
    from blake3 import blake3

    lines = sorted(f"{file.path}\0{file.digest}\n" for file in files)
    return blake3("".join(lines).encode()).hexdigest()


class ModelStore:
    """Blobs and versions under one directory. All methods block: call them in a thread.

    A blob's link count says how many versions use it; at one (its own name) it is garbage.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._blobs, self._versions, self.incoming = root / "blobs", root / "versions", root / "incoming"
        for directory in (self._blobs, self._versions, self.incoming):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)

    def blob(self, digest: str) -> Path:
        """Where a blob lies. Raises NotFoundError, InvalidError for what is no digest."""
        path = self._blob_path(digest)
        if not path.exists():
            raise NotFoundError(f"there is no blob {digest[:16]} on this node")
        return path

    def _blob_path(self, digest: str) -> Path:
        if len(digest) != 64 or any(c not in "0123456789abcdef" for c in digest):
            raise InvalidError(f"{digest!r} is no BLAKE3 digest", field="digest")
        return self._blobs / digest[:2] / digest

    def has(self, digest: str) -> bool:
        """Whether a blob is here."""
        return self._blob_path(digest).exists()

    def partial(self, key: str) -> Path:
        """A file to download into; the same key finds what an earlier try left there."""
        return self.incoming / check_name(key, "download key")

    def adopt(self, path: Path, digest: str) -> Path:
        """Make a finished file in `incoming` a blob; returns where. The bytes must have that digest already."""
        target = self._blob_path(digest)
        target.parent.mkdir(mode=0o700, exist_ok=True)
        if target.exists():
            path.unlink()
            return target
        path.chmod(0o444)
        with path.open("rb") as file:
            os.fsync(file.fileno())
        path.rename(target)
        _sync(target.parent)
        return target

    def copy_in(self, source: Path, digest: str, progress: Callable[[int], None]) -> Path:
        """Copy a file into the store, verified; one that is here already is not copied. Raises InvalidError when it changed."""
        target = self._blob_path(digest)
        if target.exists():
            return target
        part = self.incoming / f"copy-{secrets.token_hex(8)}"
        try:
            self.need(source.stat().st_size)
            with source.open("rb") as reader, part.open("wb") as writer:
                done = 0
                while count := os.sendfile(writer.fileno(), reader.fileno(), done, PIECE * 4):
                    done += count
                    progress(done)
            if hash_file(part) != digest:
                raise InvalidError(f"{source} changed while it was copied", next="download it again")
            return self.adopt(part, digest)
        except OSError as error:
            raise _disk(error, self.root) from None
        finally:
            part.unlink(missing_ok=True)

    def need(self, size: int) -> None:
        """Raise ExhaustedError unless so many bytes (and a little more) are free."""
        free = self.free_bytes()
        if size + (64 << 20) > free:
            raise ExhaustedError(
                "the model store's disk is too full",
                why=f"{size} bytes are needed, {free} are free under {self.root}",
                next="delete models, or free space there",
            )

    def put_version(self, model: str, version: str, files: list[ModelFile]) -> Path:
        """Make a version's directory out of blobs that are all here; atomic."""
        directory = self.directory(model, version)
        if directory.exists():
            shutil.rmtree(directory)
        building = self.incoming / f"version-{secrets.token_hex(8)}"
        try:
            building.mkdir()
            for file in files:
                target = building / check_path(file.path)
                target.parent.mkdir(parents=True, exist_ok=True)
                os.link(self.blob(file.digest), target)
            described = [{"path": f.path, "size_bytes": f.size_bytes, "digest": f.digest} for f in files]
            manifest = building.with_suffix(".json")
            manifest.write_text(json.dumps(described))
            directory.parent.mkdir(parents=True, exist_ok=True)
            building.rename(directory)
            manifest.rename(self._manifest(model, version))
            _sync(directory.parent)
        finally:
            shutil.rmtree(building, ignore_errors=True)
        return directory

    def directory(self, model: str, version: str) -> Path:
        """Where a version's files lie, for a backend to load."""
        return self._versions / check_name(model, "model name") / check_name(version, "version")

    def _manifest(self, model: str, version: str) -> Path:
        directory = self.directory(model, version)
        return directory.with_name(f"{directory.name}.json")

    def version(self, model: str, version: str) -> ModelVersion | None:
        """What is stored of a version; None unless all of it is here."""
        try:
            files = [ModelFile(**entry) for entry in json.loads(self._manifest(model, version).read_text())]
        except (OSError, ValueError, TypeError):
            return None
        if not self.directory(model, version).is_dir() or not all(self.has(file.digest) for file in files):
            return None
        return ModelVersion(
            version=version, digest=version_digest(files), size_bytes=sum(f.size_bytes for f in files), files=files
        )

    def versions(self) -> list[tuple[str, str]]:
        """(model, version) of every version with a manifest."""
        return [(path.parent.name, path.stem) for path in self._versions.glob("*/*.json")]

    def delete_version(self, model: str, version: str) -> None:
        """Remove a version and the blobs that only it used."""
        self._manifest(model, version).unlink(missing_ok=True)
        shutil.rmtree(self.directory(model, version), ignore_errors=True)
        self.collect()

    def collect(self) -> int:
        """Delete blobs that no version links to; the bytes freed."""
        freed = 0
        for path in self._blobs.glob("*/*"):
            stat = path.stat()
            if stat.st_nlink == 1:
                path.unlink()
                freed += stat.st_size
        return freed

    def clear_incoming(self) -> None:
        """Remove half-made copies and versions of a killed agent; partial downloads stay, they are resumed."""
        for path in self.incoming.iterdir():
            if path.name.startswith(("copy-", "version-")):
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def free_bytes(self) -> int:
        """Room left on the store's file system."""
        return shutil.disk_usage(self.root).free


def facts(directory: Path) -> dict[str, str]:
    """What the files say of a model: architecture, parameters, format. Empty when they say nothing."""
    found: dict[str, str] = {}
    try:
        config = json.loads((directory / "config.json").read_text())
        if architectures := config.get("architectures"):
            found["architecture"] = str(architectures[0])
        for key in ("model_type", "torch_dtype", "dtype"):
            if isinstance(config.get(key), str):
                found[key] = config[key]
    except (OSError, ValueError, AttributeError):
        pass
    weights = sorted(directory.glob("**/*.safetensors"))
    if weights:
        found["format"] = "safetensors"
        parameters = sum(_parameters(path) for path in weights)
        if parameters:
            found["parameters"] = str(parameters)
    elif any(directory.glob("**/*.gguf")):
        found["format"] = "gguf"
    return found


def _parameters(path: Path) -> int:
    """Elements in a safetensors file, from its header; 0 when it has none that can be read."""
    import math

    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            if size > 100 << 20:
                return 0
            header = json.loads(file.read(size))
        return sum(math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")
    except (OSError, ValueError, KeyError, TypeError):
        return 0


def _disk(error: OSError, root: Path) -> Exception:
    import errno

    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ExhaustedError(
            "the model store's disk is full", why=f"under {root}", next="delete models, or free space there"
        )
    return error


def _sync(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
