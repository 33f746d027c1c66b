"""The publish protocol: a crash at any point leaves either no artifact or a whole one.

staging -> refuse -> fsync + sha256 each file -> manifest -> fsync directories -> rename(staging, v000N) -> fsync parent -> read-only
"""

import errno
import os
import stat
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from data.system.limits import count_cores
from pipeline.errors import StoreError
from pipeline.store.directory import Directory, list_directories, list_tree, open_root
from pipeline.store.disk import hash_file, sync_descriptor, write_durably, writing
from pipeline.store.ledger import Append, describe_version, open_ledger
from pipeline.store.manifest import (
    MANIFEST_FILE,
    FileEntry,
    Manifest,
    ManifestFields,
    check_file_name,
    compute_content_id,
    parse_sealed,
    render_manifest,
)
from pipeline.store.refs import check_kind, next_version, version_directory
from pipeline.store.staging import ARTIFACTS_DIR, STAGING_DIR, Staging
from stages.spec import EXIT_VERIFICATION

_READABLE, _ENTERABLE = 0o444, 0o555


def publish_staging(root: Path, staging: Staging, fields: ManifestFields) -> tuple[Manifest, str]:
    """Turn a staging directory into the next version of its kind; nothing is copied.

    Args:
        root: Of the store.
        staging: Holds the artifact's files; gone afterwards.
        fields: What the publisher knows.

    Returns:
        The manifest as published, and its seal; by then it is durable, and stands in the ledger.

    Raises:
        StoreError: a file is refused, nothing is there, or no version number is left (exit 3).
        ResourceError: the file system refused (exit 5).
    """
    check_kind(staging.kind)
    with _open_places(root, staging) as (place, kind_directory):
        claim = partial(_claim_version, root, place, staging.path.name, kind_directory, fields)
        return _publish(place, staging.path.name, kind_directory, claim)


def publish_copy(root: Path, staging: Staging, manifest: Manifest, content: bytes) -> None:
    """Turn a staging directory into the version that a manifest from elsewhere names, byte for byte.

    Args:
        root: Of the store.
        staging: Holds the artifact's files; gone afterwards.
        manifest: Parsed.
        content: The manifest's own bytes.

    Raises:
        StoreError: a file differs from the manifest, or the version is taken (exit 3).
        ResourceError: the file system refused (exit 5).
    """
    check_kind(manifest.kind)
    with _open_places(root, staging) as (place, kind_directory):
        with place.enter(staging.path.name) as directory, suppress(FileNotFoundError):
            os.unlink(MANIFEST_FILE, dir_fd=directory.fd)  # of a process that was killed before the rename
        _publish(place, staging.path.name, kind_directory, partial(_claim_same, root, place, staging.path.name, kind_directory, content))


@contextmanager
def _open_places(root: Path, staging: Staging) -> Generator[tuple[Directory, Directory]]:
    with writing(staging.path), ExitStack() as stack:
        store = stack.enter_context(open_root(root))
        place = stack.enter_context(store.enter(STAGING_DIR))
        yield place, stack.enter_context(store.enter(f"{ARTIFACTS_DIR}/{staging.kind}", create=True))


_Claim = Callable[[list[FileEntry]], tuple[Manifest, str]]


def _publish(staging_place: Directory, name: str, kind_directory: Directory, claim: _Claim) -> tuple[Manifest, str]:
    with staging_place.enter(name) as staging:
        # Made with the umask of whoever runs this, as not all of its files are: libraries write weights that only their owner may read.
        mode = stat.S_IMODE(os.fstat(staging.fd).st_mode)
        files = _seal_files(staging, _collect_files(staging), mode & _READABLE)
        for below in sorted(list_directories(staging), reverse=True):
            with staging.enter(below) as directory:
                sync_descriptor(directory.fd)
        published = claim(files)
        # Only now, as renaming a directory takes the right to write in it.
        make_read_only(staging, mode & _ENTERABLE)
    return published


def make_read_only(top: Directory, mode: int) -> None:
    """Take write permission from the directories of a published tree: a guard against mistakes, on which nothing else relies."""
    with suppress(OSError):
        for below in sorted(list_directories(top), reverse=True):
            with top.enter(below) as directory:
                os.chmod(directory.fd, mode)  # noqa: PTH101


def _collect_files(staging: Directory) -> list[str]:
    problems: list[str] = []
    paths: list[str] = []
    for path, is_file in list_tree(staging):
        try:
            if not is_file:
                raise ValueError(f"{path!r}: links, pipes and devices are refused; write a plain file")
            paths.append(check_file_name(path))
        except ValueError as error:
            problems.append(str(error))
    if problems:
        raise StoreError("not published: " + " | ".join(sorted(problems)), EXIT_VERIFICATION)
    if not paths:
        raise StoreError(f"not published: {staging.path} has no files; at least one is needed; see the stage's log", EXIT_VERIFICATION)
    return sorted(paths)


def _seal_files(staging: Directory, paths: list[str], mode: int) -> list[FileEntry]:
    def seal(path: str) -> FileEntry:
        below, _, name = path.rpartition("/")
        with staging.enter(below) as directory:
            size, sha256 = hash_file(name, dir_fd=directory.fd, publish_mode=mode)
        return FileEntry(path=path, size=size, sha256=sha256)

    # Hashing releases the interpreter lock, so the shards of a large model keep all cores busy.
    with ThreadPoolExecutor(max_workers=count_cores(), thread_name_prefix="sha256") as pool:
        return list(pool.map(seal, paths))


def _claim_version(
    root: Path, staging_place: Directory, name: str, kind_directory: Directory, fields: ManifestFields, files: list[FileEntry]
) -> tuple[Manifest, str]:
    """Rename staging to the next free version: renaming onto a version that exists fails, so the rename is the claim."""
    with open_ledger(root) as append:
        version = next_version(kind_directory.path.name, kind_directory.names())
        while True:
            manifest = Manifest(
                **dict(fields),
                kind=kind_directory.path.name,
                version=version,
                content_id=compute_content_id(files),
                created_utc=datetime.now(UTC).isoformat(timespec="seconds"),
                files=files,
            )
            content = render_manifest(manifest)
            seal = parse_sealed(content)[1]  # never publish what cannot be read
            if _rename(append, staging_place, name, kind_directory, manifest, content, "import" if fields.imported else "publish"):
                return manifest, seal
            version += 1


def _claim_same(
    root: Path, staging_place: Directory, name: str, kind_directory: Directory, content: bytes, files: list[FileEntry]
) -> tuple[Manifest, str]:
    manifest, seal = parse_sealed(content)
    found, needed = ({entry.path: entry for entry in entries} for entries in (files, manifest.files))
    if differing := sorted(path for path in found.keys() | needed.keys() if found.get(path) != needed.get(path)):
        message = f"{staging_place.path / name / differing[0]}: not what the manifest of {manifest.ref} says"
        raise StoreError(f"{message}; its very bytes needed; pull again", EXIT_VERIFICATION)
    with open_ledger(root) as append:
        is_renamed = _rename(append, staging_place, name, kind_directory, manifest, content, "pull")
    if not is_renamed:
        place = kind_directory.path / version_directory(manifest.version)
        raise StoreError(f"{place}: already there; a free version number needed; pull into another --store", EXIT_VERIFICATION)
    return manifest, seal


def _rename(
    append: Append, staging_place: Directory, name: str, kind_directory: Directory, manifest: Manifest, content: bytes, event: str
) -> bool:
    """Write the manifest and rename staging to its version, with a line in the ledger before and after; False where that is taken."""
    ref, seal, more = manifest.ref, parse_sealed(content)[1], describe_version(manifest)
    append("claim", ref, seal, **more, **{"for": event})
    with staging_place.enter(name) as staging:
        write_durably(MANIFEST_FILE, content, dir_fd=staging.fd, mode=_READABLE)
        sync_descriptor(staging.fd)
    try:
        os.rename(name, version_directory(manifest.version), src_dir_fd=staging_place.fd, dst_dir_fd=kind_directory.fd)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise
        return False
    sync_descriptor(kind_directory.fd)
    with suppress(OSError):  # a disk that is full now: the claim stands for it
        append(event, ref, seal, **more)
    return True
