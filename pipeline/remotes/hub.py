"""The Hugging Face Hub as a remote: data in the first commits, the manifest in the last, then the tag by which it is pulled.

The manifest's commit names the commit that it stands on, in which all data was compared with it: where another pusher committed in
between, the Hub refuses, and all is compared anew. The tag is made once; who comes second is refused. So a tag always holds whole
artifacts, whatever happens to the branch later.
"""

import hashlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from pipeline.errors import ResourceError
from pipeline.remotes.errors import asking, name_tag
from pipeline.remotes.remote import Remote
from pipeline.store.manifest import MANIFEST_FILE, FileEntry, Manifest
from pipeline.store.refs import Ref, is_kind, parse_version_directory, version_directory
from pipeline.store.staging import ARTIFACTS_DIR

if TYPE_CHECKING:
    from huggingface_hub import HfApi

_TAG = re.compile(r"(.+)-(v[0-9]{4,9})")
_ATTEMPTS = 5
_MOVED, _TAKEN, _MISSING = 412, 409, 404  # HTTP


def open_files() -> Any:
    """Open the Hub's repositories as files."""
    from huggingface_hub import HfFileSystem

    return HfFileSystem(use_listings_cache=False, skip_instance_cache=True)


def open_api() -> "HfApi":
    """Open the Hub's client; token and endpoint are its own affair."""
    from huggingface_hub import HfApi

    return HfApi()


def list_tags(remote: Remote) -> list[Ref]:
    """List the versions that have a tag; a repository that is not there has none."""
    with asking(remote.shown):
        try:
            names = [tag.name for tag in open_api().list_repo_refs(remote.root).tags]
        except Exception as error:
            if _status(error) != _MISSING:
                raise
            return []
    matches = [match for name in names if (match := _TAG.fullmatch(name)) and is_kind(match[1])]
    return [Ref(match[1], version) for match in matches if (version := parse_version_directory(match[2]))]


def commit_version(
    remote: Remote,
    ref: Ref,
    manifest: Manifest,
    content: bytes,
    directory: Path,
    is_same: Callable[[bytes], bool],
    verify: Callable[[], object],
) -> bool:
    """Commit an artifact and tag it.

    Args:
        remote: The Hub.
        ref: Of the artifact.
        manifest: Parsed.
        content: The manifest's own bytes.
        directory: Where the artifact lies.
        is_same: Compares the manifest with the one that is there; raises where its content is another one.
        verify: Compares every byte of the artifact with its manifest; raises where one differs.

    Returns:
        Whether something had to be sent.

    Raises:
        StoreError: the version holds another content there (exit 3), or the Hub refused (exit 5).
    """
    api, repository = open_api(), remote.root
    there = remote.find_manifest(ref)  # at the tag
    if there is not None:
        is_same(there)
        return False
    verify()
    folder = f"{ARTIFACTS_DIR}/{ref.kind}/{version_directory(manifest.version)}"
    for _ in range(_ATTEMPTS):
        with asking(remote.shown):
            api.create_repo(repository, private=True, exist_ok=True)  # samples hold real prompts; whoever owns it may open it
            head = str(api.repo_info(repository).sha)
        there = remote.find(f"{repository}@{head}/{folder}/{MANIFEST_FILE}")
        if there is not None and not is_same(there):
            return False
        with asking(remote.shown):
            if _find_differing(api, repository, head, folder, manifest, directory):
                message = f"{ref}: data"
                api.upload_folder(
                    repo_id=repository, folder_path=directory, path_in_repo=folder, ignore_patterns=[MANIFEST_FILE], commit_message=message
                )
                continue
            oid = head if there is not None else _commit_manifest(api, repository, f"{folder}/{MANIFEST_FILE}", content, head, str(ref))
            if oid is not None:
                return _tag(api, remote, ref, oid, is_same)
    raise ResourceError(f"{remote.shown}: {ref}: others kept changing it while we looked; one pusher needed; push again")


def _commit_manifest(api: "HfApi", repository: str, path: str, content: bytes, head: str, message: str) -> str | None:
    """Commit the manifest on top of a commit; None where the branch is not there any more."""
    from huggingface_hub import CommitOperationAdd

    operation = CommitOperationAdd(path_in_repo=path, path_or_fileobj=content)
    try:
        return str(api.create_commit(repository, [operation], commit_message=message, parent_commit=head).oid)
    except Exception as error:
        if _status(error) not in (_MOVED, _TAKEN):
            raise
        return None


def _tag(api: "HfApi", remote: Remote, ref: Ref, oid: str, is_same: Callable[[bytes], bool]) -> bool:
    try:
        api.create_tag(remote.root, tag=name_tag(ref), revision=oid)
    except Exception as error:
        there = remote.find_manifest(ref) if _status(error) == _TAKEN else None
        if there is None:
            raise
        return is_same(there)
    return True


def _find_differing(api: "HfApi", repository: str, head: str, folder: str, manifest: Manifest, directory: Path) -> list[str]:
    """List the files that are not at a commit as the manifest says."""
    try:
        entries = cast("list[Any]", list(api.list_repo_tree(repository, folder, recursive=True, revision=head)))
    except Exception as error:
        if _status(error) != _MISSING:
            raise
        entries = []
    found = {entry.path.removeprefix(f"{folder}/"): entry for entry in entries if hasattr(entry, "blob_id")}
    return [entry.path for entry in manifest.files if not _is_equal(found.get(entry.path), entry, directory / entry.path)]


def _is_equal(found: Any, entry: FileEntry, path: Path) -> bool:
    if found is None or found.size != entry.size:
        return False
    return found.lfs.sha256 == entry.sha256 if found.lfs else found.blob_id == _hash_blob(path, entry.size)


def _hash_blob(path: Path, size: int) -> str:
    """Hash a file as git does, which is how the Hub names what is no large file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)).hexdigest()


def _status(error: Exception) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)
