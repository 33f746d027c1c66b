"""An artifact on disk: what makes one visible (a quick look at each load), and what makes one intact (every byte)."""

import errno
import os
import stat
from collections.abc import Collection, Generator, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from data.system.limits import count_cores
from pipeline.errors import StoreError
from pipeline.store.directory import Directory, list_tree
from pipeline.store.disk import advise, hash_file
from pipeline.store.manifest import MANIFEST_FILE, FileEntry, Manifest, compute_content_id, read_sealed_manifest
from pipeline.store.refs import version_directory
from stages.spec import EXIT_VERIFICATION, MERGED_DIR, MODEL_DIR


@dataclass(frozen=True)
class Artifact:
    """A published version whose manifest is intact and whose files have the right sizes."""

    path: Path
    manifest: Manifest
    seal: str  # of its manifest

    @property
    def kind(self) -> str:
        return self.manifest.kind

    @property
    def version(self) -> int:
        return self.manifest.version

    @property
    def ref(self) -> str:
        return self.manifest.ref

    @property
    def content_id(self) -> str:
        return self.manifest.content_id

    @property
    def model_path(self) -> Path:
        return self.path / MODEL_DIR

    @property
    def opened_path(self) -> Path:
        """The model that opens by itself, and that another adapter can be trained on: the merged one where there is one."""
        merged = self.path / MERGED_DIR
        return merged if merged.is_dir() else self.model_path


def add_ancestors(refs: Collection[str], artifacts: Mapping[str, Artifact]) -> set[str]:
    """Add to refs all that these were made from, as far as the artifacts say; also of what is not there any more."""
    found, pending = set(refs), list(refs)
    while pending:
        artifact = artifacts.get(pending.pop())
        parents = {parent.ref for parent in artifact.manifest.parents} - found if artifact else set[str]()
        found |= parents
        pending += parents
    return found


def load_artifact(kind_directory: Directory, version: int) -> Artifact:
    """Load a version whose manifest is intact, names itself, and matches sizes.

    Raises:
        StoreError: with the file that differs (exit 3).
    """
    with _enter_version(kind_directory, version) as directory:
        artifact = _load_manifest(directory, kind_directory.path.name, version)
        problem = next(_compare_sizes(directory, artifact.manifest.files), None)
    if problem:
        raise StoreError(problem, EXIT_VERIFICATION)
    return artifact


def find_damage(kind_directory: Directory, version: int) -> list[str]:
    """Compare every byte of a version with its manifest; return one line per problem, none when it is intact."""
    try:
        with _enter_version(kind_directory, version) as directory:
            manifest = _load_manifest(directory, kind_directory.path.name, version).manifest
            with ThreadPoolExecutor(max_workers=count_cores(), thread_name_prefix="sha256") as pool:
                problems = [problem for problem in pool.map(partial(_compare_content, directory), manifest.files) if problem]
            known = {entry.path for entry in manifest.files} | {MANIFEST_FILE}
            extra = sorted(name for name, _ in list_tree(directory) if name not in known)
    except StoreError as error:
        return [error.message]
    path = directory.path
    problems += [f"{path / name}: not in the manifest; only published files needed; remove it" for name in extra]
    if compute_content_id(manifest.files) != manifest.content_id:
        problems.append(f"{path / MANIFEST_FILE}: content_id does not follow from its files; restore the artifact")
    return problems


@contextmanager
def _enter_version(kind_directory: Directory, version: int) -> Generator[Directory]:
    name = version_directory(version)
    try:
        with kind_directory.enter(name) as directory:
            yield directory
    except OSError as error:
        place = Path(error.filename) if isinstance(error.filename, str) else kind_directory.path / name
        needed = advise(error, "an artifact's own directory needed; restore the artifact")
        raise StoreError(f"{_describe(error, place)}; {needed}", EXIT_VERIFICATION) from error


def _load_manifest(directory: Directory, kind: str, version: int) -> Artifact:
    manifest, seal = read_sealed_manifest(directory)
    if (manifest.kind, manifest.version) != (kind, version):
        found = f"{directory.path / MANIFEST_FILE}: it names {manifest.ref}"
        raise StoreError(f"{found}; its directory needs {kind}@v{version}; undo the copy or rename", EXIT_VERIFICATION)
    return Artifact(directory.path, manifest, seal)


def _compare_sizes(top: Directory, entries: Iterable[FileEntry]) -> Iterator[str]:
    """Yield a line for each file that has not the manifest's size; each directory is opened once."""
    by_directory: dict[str, list[FileEntry]] = {}
    for entry in entries:
        by_directory.setdefault(_parent(entry.path), []).append(entry)
    for below, files in by_directory.items():
        try:
            with top.enter(below) as directory:
                yield from filter(None, [_compare_size(directory, entry) for entry in files])
        except OSError as error:
            yield f"{_describe(error, top.path / below)}; {advise(error, f'{len(files)} files needed there; restore the artifact')}"


def _compare_size(directory: Directory, entry: FileEntry) -> str | None:
    name = entry.path.rpartition("/")[2]
    try:
        status = os.stat(name, dir_fd=directory.fd, follow_symlinks=False)
    except OSError as error:
        return f"{directory.path / name}: {error.strerror}; {entry.size} bytes needed; restore the artifact"
    if not stat.S_ISREG(status.st_mode):
        return f"{directory.path / name}: not a plain file; one of {entry.size} bytes needed; restore the artifact"
    if status.st_size != entry.size:
        return f"{directory.path / name}: {status.st_size} bytes; {entry.size} needed; restore the artifact"
    return None


def _compare_content(top: Directory, entry: FileEntry) -> str | None:
    path = top.path / entry.path
    try:
        with top.enter(_parent(entry.path)) as directory:
            if problem := _compare_size(directory, entry):
                return problem
            _, sha256 = hash_file(path.name, dir_fd=directory.fd)
    except OSError as error:
        return f"{_describe(error, path)}; {advise(error, 'a readable file needed; restore the artifact')}"
    except ValueError as error:
        return f"{path}: {error}; a readable file needed; restore the artifact"
    if sha256 != entry.sha256:
        return f"{path}: sha256 {sha256[:12]}; {entry.sha256[:12]} needed; restore the artifact"
    return None


def _parent(path: str) -> str:
    return path.rpartition("/")[0]


def _describe(error: OSError, path: Path) -> str:
    """Say what is wrong with a file or a directory; a link in place of a directory is named as one."""
    place = error.filename if isinstance(error.filename, str) and error.filename.startswith("/") else path
    is_link = error.errno in (errno.ENOTDIR, errno.ELOOP) and os.path.islink(place)  # noqa: PTH114
    return f"{place}: {'a link, which is not followed' if is_link else error.strerror}"
