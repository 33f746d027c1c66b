"""An artifact on disk: what makes one visible (a quick look at each load), and what makes one intact (every byte)."""

import os
import stat
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from pipeline.disk import hash_file
from pipeline.errors import StoreError
from pipeline.manifest import MANIFEST_FILE, FileEntry, Manifest, compute_content_id, read_manifest
from pipeline.publish import list_tree
from pipeline.refs import version_directory
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
    kind, path = kind_directory.name, kind_directory / version_directory(version)
    manifest = read_manifest(path)
    if (manifest.kind, manifest.version) != (kind, version):
        found = f"{path / MANIFEST_FILE}: it names {manifest.kind}@v{manifest.version}"
        raise StoreError(f"{found}; its directory needs {kind}@v{version}; undo the copy or rename", EXIT_VERIFICATION)
    for entry in manifest.files:
        _check_size(path, entry)
    return Artifact(path, manifest)


def _check_size(directory: Path, entry: FileEntry) -> None:
    path = directory / entry.path
    try:
        status = os.lstat(path)
    except OSError as error:
        raise StoreError(f"{path}: {error.strerror}; {entry.size} bytes needed; restore the artifact", EXIT_VERIFICATION) from error
    if not stat.S_ISREG(status.st_mode):
        raise StoreError(f"{path}: not a plain file; one of {entry.size} bytes needed; restore the artifact", EXIT_VERIFICATION)
    if status.st_size != entry.size:
        raise StoreError(f"{path}: {status.st_size} bytes; {entry.size} needed; restore the artifact", EXIT_VERIFICATION)


def compare_files(artifact: Artifact) -> list[str]:
    """Hash every file and look for files that the manifest does not know."""
    manifest = artifact.manifest

    def compare(entry: FileEntry) -> str | None:
        path = artifact.path / entry.path
        try:
            _, sha256 = hash_file(path)
        except (OSError, ValueError) as error:
            return f"{path}: {error}; a readable file needed; restore the artifact"
        if sha256 != entry.sha256:
            return f"{path}: sha256 {sha256[:12]}; {entry.sha256[:12]} needed; restore the artifact"
        return None

    with ThreadPoolExecutor(max_workers=os.cpu_count() or 1, thread_name_prefix="sha256") as pool:
        problems = [problem for problem in pool.map(compare, manifest.files) if problem]
    known = {entry.path for entry in manifest.files} | {MANIFEST_FILE}
    extra = sorted(path for path, _ in list_tree(artifact.path) if path not in known)
    problems += [f"{artifact.path / path}: not in the manifest; only published files needed; remove it" for path in extra]
    if compute_content_id(manifest.files) != manifest.content_id:
        problems.append(f"{artifact.path / MANIFEST_FILE}: content_id does not follow from its files; restore the artifact")
    return problems
