"""A node's models: every file kept once under its BLAKE3 digest, every version a directory of hard links to them."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import shutil
import threading
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

from gswarm.errors import ExhaustedError, GswarmError, InvalidError, NotFoundError
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
    if not path.parts or path.is_absolute() or ".." in path.parts or "\\" in text:
        raise InvalidError(f"{text!r} cannot be a model's file", why="it would lie outside the model", field="path")
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in text):  # NUL too; Cs: no UTF-8
        raise InvalidError(f"{text!r} cannot be a model's file", why="it has unprintable characters", field="path")
    return path


def version_digest(files: list[ModelFile]) -> str:
    """Identity of a version: BLAKE3 over its sorted paths and digests."""
    from blake3 import blake3

    lines = sorted(f"{file.path}\0{file.digest}\n" for file in files)
    return blake3("".join(lines).encode()).hexdigest()


class ModelStore:
    """Blobs and versions under one directory. All methods block: call them in a thread.

    A blob's link count says how many versions use it; at one (its own name) it is garbage. What a version under way
    has so far is linked in its directory below `incoming`, beside the files that are not whole yet.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._blobs, self._versions, self._incoming = root / "blobs", root / "versions", root / "incoming"
        for directory in (self._blobs, self._versions, self._incoming):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock = threading.Lock()
        """Between finding a blob and linking it, and between counting its links and deleting it."""

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

    def making(self, model: str, version: str) -> Path:
        """The directory of a version under way; what an earlier try left is still there."""
        directory = self._under_way(model, version)
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        return directory

    def _under_way(self, model: str, version: str) -> Path:
        return self._incoming / check_name(model, "model name") / check_name(version, "version")

    def hold(self, digest: str, making: Path) -> bool:
        """Whether a blob is here and undamaged; if so it stays at least as long as the version under way."""
        held, path = making / digest, self._blob_path(digest)
        with self._lock:
            held.unlink(missing_ok=True)
            if not path.exists():
                return False
            os.link(path, held)
        if self._sound(digest):
            return True
        held.unlink()
        return False

    def _sound(self, digest: str) -> bool:
        """Whether a blob's bytes have its digest; one that does not loses its name and so can be brought anew."""
        path = self._blob_path(digest)
        if hash_file(path) == digest:
            return True
        path.unlink(missing_ok=True)
        return False

    def adopt(self, path: Path, digest: str, making: Path) -> bool:
        """Make a finished file in `making`, whose bytes have that digest, a blob; False when it was here already."""
        if self.hold(digest, making):
            path.unlink()
            return False
        target, held = self._blob_path(digest), making / digest
        target.parent.mkdir(mode=0o700, exist_ok=True)
        path.chmod(0o444)
        with path.open("rb") as file:
            os.fsync(file.fileno())
        path.rename(held)
        with self._lock:
            if new := not target.exists():
                os.link(held, target)
            else:  # another version brought it just now
                held.unlink()
                os.link(target, held)
        _sync(target.parent)
        return new

    def copy_in(self, source: Path, digest: str, making: Path, progress: Callable[[int], None]) -> bool:
        """Copy a file in, verified; False when it was here already. Raises InvalidError when it changed meanwhile."""
        if self.hold(digest, making):
            return False
        part = making / f"copy-{secrets.token_hex(8)}"
        try:
            with self.writing():
                self.need(source.stat().st_size)
                with source.open("rb") as reader, part.open("wb") as writer:
                    done = 0
                    while count := os.sendfile(writer.fileno(), reader.fileno(), done, PIECE * 4):
                        done += count
                        progress(done)
                if hash_file(part) != digest:
                    raise InvalidError(f"{source} changed while it was copied", next="download it again")
                return self.adopt(part, digest, making)
        finally:
            part.unlink(missing_ok=True)

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Around writes into the store: a full disk becomes an ExhaustedError."""
        try:
            yield
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise ExhaustedError(
                "the model store's disk is full", why=f"under {self.root}", next="delete models, or free space there"
            ) from None

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
        """Make a version's directory out of blobs that are all here; what was there stays if that fails."""
        directory, making = self.directory(model, version), self.making(model, version)
        building, manifest = making / "files", making / "files.json"
        shutil.rmtree(building, ignore_errors=True)  # of an agent that was killed
        with self.writing():
            building.mkdir()
            for file in files:
                target = building / check_path(file.path)
                target.parent.mkdir(parents=True, exist_ok=True)
                os.link(self.blob(file.digest), target)
            described = [{"path": f.path, "size_bytes": f.size_bytes, "digest": f.digest} for f in files]
            manifest.write_text(json.dumps(described))
            directory.parent.mkdir(parents=True, exist_ok=True)
        # There is never a directory without a manifest: by that it is found, and deleted.
        manifest.rename(self._manifest(model, version))
        shutil.rmtree(directory, ignore_errors=True)
        building.rename(directory)
        _sync(directory.parent)
        shutil.rmtree(making)
        return directory

    def directory(self, model: str, version: str) -> Path:
        """Where a version's files lie, for a backend to load."""
        return self._versions / check_name(model, "model name") / check_name(version, "version")

    def _manifest(self, model: str, version: str) -> Path:
        directory = self.directory(model, version)
        return directory.with_name(f"{directory.name}.json")

    def check(self, model: str, version: str, *, read: bool = False) -> ModelVersion:
        """What is stored of a version; with `read` its bytes are read again too.

        Raises NotFoundError when there is nothing, GswarmError that names a file when it is not whole; a damaged blob
        loses its name then, so that the next download brings it anew.
        """
        directory = self.directory(model, version)
        wrong = {"next": "delete it on this node, then download it again"}
        try:
            files = [ModelFile(**entry) for entry in json.loads(self._manifest(model, version).read_text())]
        except FileNotFoundError:
            raise NotFoundError(f"{model}@{version} is not on this node", **wrong) from None
        except (OSError, ValueError, TypeError):
            raise GswarmError(
                f"{model}@{version} is not whole on this node", why="its manifest is damaged", **wrong
            ) from None
        for file in files:
            if why := self._wrong(directory / check_path(file.path), file, read=read):
                raise GswarmError(f"{model}@{version} is not whole on this node", why=f"{file.path} {why}", **wrong)
        return ModelVersion(
            version=version, digest=version_digest(files), size_bytes=sum(f.size_bytes for f in files), files=files
        )

    def _wrong(self, path: Path, file: ModelFile, *, read: bool) -> str:
        try:
            if not path.samefile(self._blob_path(file.digest)):
                return "was damaged"  # its blob was brought anew since
            if path.stat().st_size == file.size_bytes and (not read or self._sound(file.digest)):
                return ""
            return "is damaged"
        except FileNotFoundError:
            return "is missing"

    def versions(self) -> list[tuple[str, str]]:
        """(model, version) of all that lies here, whole or under way."""
        found = {(path.parent.name, path.stem) for path in self._versions.glob("*/*.json")}
        return sorted(found | {(path.parent.name, path.name) for path in self._incoming.glob("*/*") if path.is_dir()})

    def delete_version(self, model: str, version: str) -> None:
        """Remove a version, whole or under way, and the blobs that only it used."""
        shutil.rmtree(self._under_way(model, version), ignore_errors=True)
        shutil.rmtree(self.directory(model, version), ignore_errors=True)
        self._manifest(model, version).unlink(missing_ok=True)
        self.collect()

    def give_up(self, model: str, version: str) -> None:
        """After a failure: let go of what a version under way holds; files half downloaded stay, to be resumed."""
        for path in self._under_way(model, version).glob("*"):
            if path.is_dir():
                shutil.rmtree(path)
            elif not path.name.startswith("part-"):
                path.unlink()
        self.collect()

    def collect(self) -> int:
        """Delete blobs that no version links to, made or under way; the bytes freed."""
        freed = 0
        for path in self._blobs.glob("*/*"):
            with self._lock, contextlib.suppress(FileNotFoundError):
                stat = path.stat()
                if stat.st_nlink == 1:
                    path.unlink()
                    freed += stat.st_size
        return freed

    def clear_incoming(self) -> None:
        """Remove what a killed agent left that cannot be gone on with; partial downloads stay, they are resumed."""
        for path in self._incoming.glob("*/*/copy-*"):
            path.unlink()

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


def _sync(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
