"""The publish protocol: a crash at any point leaves either no artifact or a whole one.

staging -> refuse -> fsync + sha256 each file -> manifest -> fsync directories -> rename(staging, v000N) -> fsync parent -> read-only
"""

import errno
import os
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from pipeline.errors import StoreError
from pipeline.store.disk import hash_file, make_directories, sync_directory, write_durably, writing
from pipeline.store.manifest import (
    MANIFEST_FILE,
    FileEntry,
    Manifest,
    ManifestFields,
    check_file_name,
    compute_content_id,
    parse_manifest,
    render_manifest,
)
from pipeline.store.refs import parse_version_directory, version_directory
from stages.spec import EXIT_VERIFICATION


def publish_directory(staging: Path, kind_directory: Path, fields: ManifestFields) -> Manifest:
    """Turn a staging directory into the next version of its kind; nothing is copied.

    Args:
        staging: Holds the artifact's files; gone afterwards.
        kind_directory: `artifacts/<kind>`, on the same file system; its name is the kind.
        fields: What the publisher knows.

    Returns:
        The manifest as published; by then it is durable.

    Raises:
        StoreError: a file is refused, or nothing is there (exit 3).
        ResourceError: the file system refused (exit 5).
    """
    paths = _collect_files(staging)
    with writing(kind_directory):
        files = _seal_files(staging, paths)
        _sync_directories(staging)
        make_directories(kind_directory)
        manifest = _claim_version(staging, kind_directory, fields, files)
        sync_directory(kind_directory)
    make_read_only(kind_directory / version_directory(manifest.version))
    return manifest


def list_tree(directory: Path) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """Yield relative path and entry of all below a directory but plain directories; links are not followed."""
    pending = [""]
    while pending:
        prefix = pending.pop()
        with os.scandir(directory / prefix) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                if entry.is_dir(follow_symlinks=False):
                    pending.append(f"{prefix}{entry.name}/")
                else:
                    yield f"{prefix}{entry.name}", entry


def make_read_only(directory: Path) -> None:
    """Take write permission from a published tree: a guard against mistakes, on which nothing else relies."""
    with suppress(OSError):
        for parent, _, names in os.walk(directory, topdown=False):
            for path in (*(Path(parent, name) for name in names), Path(parent)):
                path.chmod(stat.S_IMODE(path.stat().st_mode) & ~0o222)


def _collect_files(staging: Path) -> list[str]:
    problems: list[str] = []
    paths: list[str] = []
    with writing(staging):
        for path, entry in list_tree(staging):
            try:
                if not entry.is_file(follow_symlinks=False):
                    raise ValueError(f"{path!r}: links, pipes and devices are refused; write a plain file")
                paths.append(check_file_name(path))
            except ValueError as error:
                problems.append(str(error))
    if problems:
        raise StoreError("not published: " + " | ".join(sorted(problems)), EXIT_VERIFICATION)
    if not paths:
        raise StoreError(f"not published: {staging} has no files; at least one is needed; see the stage's log", EXIT_VERIFICATION)
    return sorted(paths)


def _seal_files(staging: Path, paths: list[str]) -> list[FileEntry]:
    def seal(path: str) -> FileEntry:
        size, sha256 = hash_file(staging / path, sync=True)
        return FileEntry(path=path, size=size, sha256=sha256)

    # Hashing releases the interpreter lock, so the shards of a large model keep all cores busy.
    with ThreadPoolExecutor(max_workers=os.cpu_count() or 1, thread_name_prefix="sha256") as pool:
        return list(pool.map(seal, paths))


def _sync_directories(staging: Path) -> None:
    for parent, _, _ in os.walk(staging, topdown=False):
        sync_directory(Path(parent))


def _claim_version(staging: Path, kind_directory: Path, fields: ManifestFields, files: list[FileEntry]) -> Manifest:
    """Rename staging to the next free version: renaming onto a version that exists fails, so the rename is the claim."""
    version = 1 + max((parse_version_directory(entry.name) or 0 for entry in kind_directory.iterdir()), default=0)
    while True:
        manifest = Manifest(
            **dict(fields),
            kind=kind_directory.name,
            version=version,
            content_id=compute_content_id(files),
            created_utc=datetime.now(UTC).isoformat(timespec="seconds"),
            files=files,
        )
        content = render_manifest(manifest)
        parse_manifest(content)  # never publish what cannot be read
        write_durably(staging / MANIFEST_FILE, content)
        sync_directory(staging)
        try:
            staging.rename(kind_directory / version_directory(version))
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise
            version += 1
        else:
            return manifest
