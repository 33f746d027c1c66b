"""An artifact on disk: what makes one visible (a quick look at each load), and what makes one intact (every byte)."""

import os
import stat
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pipeline.errors import StoreError
from pipeline.store.disk import hash_file
from pipeline.store.manifest import MANIFEST_FILE, FileEntry, Manifest, compute_content_id, read_manifest
from pipeline.store.publish import list_tree
from pipeline.store.refs import version_directory
from stages.spec import EXIT_VERIFICATION, MODEL_DIR


@dataclass(frozen=True)
class Artifact:
    """A published version whose manifest is intact and whose files have the right sizes."""

    path: Path
    manifest: Manifest

    @property
    def kind(self) -> str:
        return self.manifest.kind

    @property
    def version(self) -> int:
        return self.manifest.version

    @property
    def ref(self) -> str:
        return f"{self.kind}@v{self.version}"

    @property
    def content_id(self) -> str:
        return self.manifest.content_id

    @property
    def model_path(self) -> Path:
        return self.path / MODEL_DIR


def load_artifact(kind_directory: Path, version: int) -> Artifact:
    """Load a version whose manifest is intact, names itself, and matches sizes.

    Raises:
        StoreError: with the file that differs (exit 3).
    """
    artifact = _load_manifest(kind_directory, version)
    for entry in artifact.manifest.files:
        if problem := _compare_size(artifact.path, entry):
            raise StoreError(problem, EXIT_VERIFICATION)
    return artifact


def find_damage(kind_directory: Path, version: int) -> list[str]:
    """Compare every byte of a version with its manifest; return one line per problem, none when it is intact."""
    try:
        artifact = _load_manifest(kind_directory, version)
    except StoreError as error:
        return [error.message]
    path, manifest = artifact.path, artifact.manifest
    with ThreadPoolExecutor(max_workers=os.cpu_count() or 1, thread_name_prefix="sha256") as pool:
        problems = [problem for problem in pool.map(partial(_compare_content, path), manifest.files) if problem]
    known = {entry.path for entry in manifest.files} | {MANIFEST_FILE}
    extra = sorted(name for name, _ in list_tree(path) if name not in known)
    problems += [f"{path / name}: not in the manifest; only published files needed; remove it" for name in extra]
    if compute_content_id(manifest.files) != manifest.content_id:
        problems.append(f"{path / MANIFEST_FILE}: content_id does not follow from its files; restore the artifact")
    return problems


def _load_manifest(kind_directory: Path, version: int) -> Artifact:
    kind, path = kind_directory.name, kind_directory / version_directory(version)
    manifest = read_manifest(path)
    if (manifest.kind, manifest.version) != (kind, version):
        found = f"{path / MANIFEST_FILE}: it names {manifest.kind}@v{manifest.version}"
        raise StoreError(f"{found}; its directory needs {kind}@v{version}; undo the copy or rename", EXIT_VERIFICATION)
    return Artifact(path, manifest)


def _compare_size(directory: Path, entry: FileEntry) -> str | None:
    path = directory / entry.path
    try:
        status = path.lstat()
    except OSError as error:
        return f"{path}: {error.strerror}; {entry.size} bytes needed; restore the artifact"
    if not stat.S_ISREG(status.st_mode):
        return f"{path}: not a plain file; one of {entry.size} bytes needed; restore the artifact"
    if status.st_size != entry.size:
        return f"{path}: {status.st_size} bytes; {entry.size} needed; restore the artifact"
    return None


def _compare_content(directory: Path, entry: FileEntry) -> str | None:
    if problem := _compare_size(directory, entry):
        return problem
    path = directory / entry.path
    try:
        _, sha256 = hash_file(path)
    except (OSError, ValueError) as error:
        return f"{path}: {error}; a readable file needed; restore the artifact"
    if sha256 != entry.sha256:
        return f"{path}: sha256 {sha256[:12]}; {entry.sha256[:12]} needed; restore the artifact"
    return None
