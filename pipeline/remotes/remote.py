"""A store at another place: s3://, gs:// and file:// by fsspec, the Hugging Face Hub by its own client (`pipeline.remotes.hub`).

    <url>/artifacts/<kind>/v0001/   the store's own layout: data files first, manifest.json last
    <url>/.staging/                 claims of versions that are being pushed, and drafts of files

Nothing that comes from there is trusted: names are matched, reads are bounded, no message shows a password of an address.
"""

import hashlib
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import IO, Any, cast

from pipeline.errors import StoreError
from pipeline.remotes.directory import copy_file, create_file, open_file
from pipeline.remotes.errors import CHUNK_BYTES, asking, first_line, name_tag
from pipeline.store.manifest import MANIFEST_FILE, MAX_MANIFEST_BYTES, FileEntry, Manifest, check_layout, compute_content_id, parse_sealed
from pipeline.store.refs import Ref, is_kind, parse_version_directory, version_directory
from pipeline.store.staging import ARTIFACTS_DIR, STAGING_DIR
from stages.spec import EXIT_MISSING, EXIT_VERIFICATION

HUB = "hf"


@dataclass(frozen=True)
class Remote:
    """A store at another place.

    Args:
        shown: Its address, for messages.
        protocol: s3, gs, file, memory or hf.
        files: The fsspec file system that reaches them; fsspec knows no types.
        root: Its path there; on the Hub the repository.
    """

    shown: str
    protocol: str
    files: Any
    root: str

    # Find

    def place(self, ref: Ref) -> str:
        """Name the directory of a version; on the Hub at its tag, so that nothing that came later is read."""
        assert ref.version is not None
        revision = f"@{name_tag(ref)}" if self.protocol == HUB else ""
        return f"{self.root}{revision}/{ARTIFACTS_DIR}/{ref.kind}/{version_directory(ref.version)}"

    def address(self, ref: Ref) -> str:
        """Name the directory of a version for messages."""
        return self.shown + self.place(ref).removeprefix(self.root)

    def versions(self, kind: str | None = None) -> list[Ref]:
        """List the versions that have a directory, in no order; see `pipeline.remotes.transfers.list_refs`."""
        kinds = [kind] if kind else self._names(f"{self.root}/{ARTIFACTS_DIR}")
        names = [(name, version) for name in filter(is_kind, kinds) for version in self._names(f"{self.root}/{ARTIFACTS_DIR}/{name}")]
        return [Ref(name, version) for name, directory in names if (version := parse_version_directory(directory))]

    def find_manifest(self, ref: Ref) -> bytes | None:
        """Read the bytes of a version's manifest; None where it has none, which means that it is not there yet."""
        return self.find(f"{self.place(ref)}/{MANIFEST_FILE}")

    def read_manifest(self, ref: Ref) -> tuple[Manifest, bytes]:
        """Read and check a version's manifest.

        Raises:
            StoreError: there is none (exit 4), or it is no manifest of this version (exit 3).
        """
        content = self.find_manifest(ref)
        if content is None:
            raise StoreError(f"no artifact {ref} in {self.shown}; `rlhf ls {self.shown}` shows what there is", EXIT_MISSING)
        return self.check_manifest(ref, content), content

    def check_manifest(self, ref: Ref, content: bytes) -> Manifest:
        """Parse what claims to be a version's manifest.

        Raises:
            StoreError: it is none, is of another version, or names a path that is not safe (exit 3).
        """
        try:
            manifest = parse_sealed(content)[0]
            check_layout(manifest.files)
            if (manifest.kind, manifest.version) != (ref.kind, ref.version):
                raise ValueError(f"it names {manifest.kind:.40}@v{manifest.version}")
            if compute_content_id(manifest.files) != manifest.content_id:
                raise ValueError("its content_id does not follow from its files")
        except ValueError as error:
            found = f"{self.shown}: manifest of {ref}: {first_line(error)}"
            raise StoreError(f"{found}; an intact one needed; nothing was taken; push the artifact elsewhere", EXIT_VERIFICATION) from error
        return manifest

    def find(self, path: str) -> bytes | None:
        """Read a small file; None where there is none."""
        with self._asking(path):
            try:
                with self.open(path) as stream:
                    return stream.read(MAX_MANIFEST_BYTES + 1)
            except (FileNotFoundError, NotADirectoryError):
                return None
            except ValueError as error:  # of file://, where somebody put a pipe or a directory
                message = (
                    f"{self.shown}: {path.removeprefix(self.root).lstrip('/')}: {error}; a plain file needed; push the artifact elsewhere"
                )
                raise StoreError(message, EXIT_VERIFICATION) from error

    def open(self, path: str) -> IO[bytes]:
        """Open a file to read; for whoever handles its errors."""
        if self.protocol == "file":
            return open_file(Path(self.root), path)
        return cast("IO[bytes]", self.files.open(path, "rb", block_size=4 * CHUNK_BYTES))

    def read(self, path: str) -> Iterator[bytes]:
        """Yield a data file in pieces.

        Raises:
            StoreError: it is not there (exit 3), or the remote does not answer (exit 5).
        """
        with self._asking(path):
            try:
                with self.open(path) as stream:
                    while chunk := stream.read(CHUNK_BYTES):
                        yield chunk
            except (FileNotFoundError, NotADirectoryError) as error:
                message = f"{self.shown}: {path.removeprefix(self.root).lstrip('/')}: not there, though the manifest names it"
                raise StoreError(f"{message}; push the artifact again from where it is whole", EXIT_VERIFICATION) from error

    def sizes(self, ref: Ref) -> dict[str, int]:
        """List the files of a version and their sizes."""
        place = self.place(ref)
        with self._asking(place):
            try:
                found = cast("dict[str, dict[str, Any]]", self.files.find(place, detail=True))
            except FileNotFoundError:
                return {}
        return {path.split(f"{place.lstrip('/')}/", 1)[-1]: int(info.get("size") or 0) for path, info in found.items()}

    def has(self, ref: Ref, entry: FileEntry) -> bool:
        """Tell whether a file of this size has the right content too: by the hash that S3 keeps with it, else by reading it."""
        path = f"{self.place(ref)}/{entry.path}"
        with self._asking(path):
            if self.protocol == "s3" and (kept := self.files.metadata(path).get("sha256")):
                return kept == entry.sha256
            with self.open(path) as stream:
                digest = hashlib.sha256()
                while chunk := stream.read(CHUNK_BYTES):
                    digest.update(chunk)
        return digest.hexdigest() == entry.sha256

    # Write

    def put(self, source: Path, ref: Ref, entry: FileEntry, told: Callable[[int], None]) -> None:
        """Write a data file of a version; a crash leaves it whole or not at all."""
        path = f"{self.place(ref)}/{entry.path}"
        with self._asking(path):
            if self.protocol == "file":
                copy_file(Path(self.root), source, path, told)
                return
            extra: dict[str, Any] = {"Metadata": {"sha256": entry.sha256}} if self.protocol == "s3" else {}
            self.files.put_file(str(source), path, callback=_make_callback(told), **extra)

    def create(self, path: str, content: bytes) -> bool:
        """Write a file that is not there yet, whole; of all that try with different contents, one is told True."""
        with self._asking(path):
            try:
                if self.protocol == "file":
                    create_file(Path(self.root), path, content)
                else:
                    self.files.pipe_file(path, content, mode="create")
            except Exception:
                # A client that asked twice, as the first answer was lost, is refused by its own file.
                there = self.find(path)
                if there is None:
                    raise
                return there == content
            return True

    def remove(self, path: str) -> None:
        """Remove a file of ours that nobody needs any more; left where that is not allowed."""
        with suppress(Exception):
            self.files.rm_file(path)

    def claim_path(self, ref: Ref) -> str:
        """Name the file that says who is pushing a version."""
        assert ref.version is not None
        return f"{self.root}/{STAGING_DIR}/{ref.kind}-{version_directory(ref.version)}.json"

    def _names(self, path: str) -> list[str]:
        with self._asking(path):
            try:
                entries = cast("list[dict[str, Any]]", self.files.ls(path, detail=True))
            except (FileNotFoundError, NotADirectoryError):
                return []
        return [str(entry["name"]).rstrip("/").rpartition("/")[2] for entry in entries if entry.get("type") == "directory"]

    @contextmanager
    def _asking(self, path: str) -> Generator[None]:
        with asking(f"{self.shown}: {path.removeprefix(self.root).lstrip('/')}"):
            yield


def _make_callback(told: Callable[[int], None]) -> Any:
    """Make what fsspec tells how many bytes it has sent."""
    callback = import_module("fsspec.callbacks").Callback()
    callback.relative_update = lambda inc=1: told(inc)
    return callback
