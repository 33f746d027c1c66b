"""Push: an artifact with all its ancestors -> another store, parents first.

claim the version -> data files -> manifest: of two pushers one gets the claim, and no manifest is ever there without its data. A push
that was killed goes on by the same command: files that are there with the right hash are not sent again.
"""

from collections.abc import Generator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from pipeline.errors import ResourceError, StoreError
from pipeline.remotes.hub import commit_version
from pipeline.remotes.remote import HUB, Remote
from pipeline.remotes.transfers import ID_CHARS, View, in_parallel, order_parents_first
from pipeline.store.directory import open_root
from pipeline.store.disk import read_bounded, tell_state
from pipeline.store.ledger import LEDGER_FILE, describe_version, open_ledger
from pipeline.store.manifest import MANIFEST_FILE, MAX_MANIFEST_BYTES, FileEntry, Manifest, parse_sealed
from pipeline.store.refs import Ref, version_directory
from pipeline.store.staging import ARTIFACTS_DIR
from pipeline.store.store import Store
from stages.spec import EXIT_VERIFICATION


def push(store: Store, ref: str, remote: Remote, view: View) -> dict[str, bool]:
    """Bring an artifact and its ancestors to another store.

    Returns:
        Ref -> whether something had to be sent, parents first.

    Raises:
        StoreError: no such artifact (exit 4), it is damaged, or the version holds another content there (exit 3), or the remote refused
            (exit 5).
    """
    artifact = store.get(ref)
    manifests = {each.ref: each.manifest for each in (artifact, *store.lineage(artifact.ref))}
    return {name: _push_version(store, remote, manifests[name], view) for name in order_parents_first(manifests)}


def _push_version(store: Store, remote: Remote, manifest: Manifest, view: View) -> bool:
    ref = Ref(manifest.kind, manifest.version)
    content, directory = _read_own(store, ref)
    if remote.protocol == HUB:
        view.started(f"push {ref}", 0)
        compare = partial(_is_same, remote, ref, manifest, content)
        return commit_version(remote, ref, manifest, content, directory, compare, partial(store.require_verified, str(ref)))
    there = remote.find_manifest(ref)
    if there is not None and not _is_same(remote, ref, manifest, content, there):
        return False
    missing = _list_missing(remote, ref, manifest, by_size=there is not None)
    if there is not None and not missing:
        remote.remove(remote.claim_path(ref))  # where that failed after the manifest was written
        return False
    store.require_verified(str(ref))
    if there is None and not _claim(remote, ref, manifest, content):
        return False
    view.started(f"push {ref}", sum(entry.size for entry in missing))
    in_parallel(lambda entry, moved: remote.put(directory / entry.path, ref, entry, moved), missing, view)
    if lost := _list_missing(remote, ref, manifest, by_size=True):
        raise ResourceError(f"{remote.shown}: {ref}: {lost[0].path} went away while the rest was sent; its place needed; push again")
    with _note_in_ledger(remote, manifest, content):
        if not remote.create(f"{remote.place(ref)}/{MANIFEST_FILE}", content):
            _is_same(remote, ref, manifest, content, remote.find_manifest(ref) or b"")
    remote.remove(remote.claim_path(ref))
    return True


@contextmanager
def _note_in_ledger(remote: Remote, manifest: Manifest, content: bytes) -> Generator[None]:
    """Write in the ledger of a store that is used here too (file://) what is pushed there; a mere copy of a store has none."""
    root = Path(remote.root)
    if remote.protocol != "file" or not tell_state(root, LEDGER_FILE):
        yield
        return
    line = (manifest.ref, parse_sealed(content)[1])
    with open_ledger(root) as append:
        append("claim", *line, **describe_version(manifest), **{"for": "push"})
        yield
        append("push", *line, **describe_version(manifest))


def _is_same(remote: Remote, ref: Ref, manifest: Manifest, content: bytes, there: bytes) -> bool:
    """Compare a version's manifest with the one at the remote; the same content may have come out of another run.

    Returns:
        Whether it is the very same manifest.

    Raises:
        StoreError: the version holds another content there, or its manifest is damaged (exit 3).
    """
    if there == content:
        return True
    theirs = remote.check_manifest(ref, there).content_id
    if theirs != manifest.content_id:
        found = f"{remote.shown}: {ref} there holds content {theirs[:ID_CHARS]}; ours is {manifest.content_id[:ID_CHARS]}"
        raise StoreError(f"{found}; a version is never written again; push to another address", EXIT_VERIFICATION)
    return False


def _claim(remote: Remote, ref: Ref, manifest: Manifest, content: bytes) -> bool:
    """Become the one who may write a version's files; False where the same content has got there meanwhile."""
    path = remote.claim_path(ref)
    is_ours = remote.create(path, content)
    there = remote.find_manifest(ref)  # of a pusher who ended, and gave up the claim, after we looked first
    if there is not None:
        if is_ours:
            remote.remove(path)
        _is_same(remote, ref, manifest, content, there)
        return False
    if not is_ours:
        try:
            holds = parse_sealed(remote.find(path) or b"")[0].content_id[:ID_CHARS]
        except ValueError:
            holds = "of unknown id"
        found = f"{remote.shown}: {ref} is being pushed from elsewhere with content {holds}; ours is {manifest.content_id[:ID_CHARS]}"
        todo = f"wait for it; if nobody goes on with it, remove {path.removeprefix(remote.root).lstrip('/')} there"
        raise ResourceError(f"{found}; one pusher of a version needed; {todo}")
    return True


def _list_missing(remote: Remote, ref: Ref, manifest: Manifest, *, by_size: bool) -> list[FileEntry]:
    sizes = remote.sizes(ref)
    return [entry for entry in manifest.files if sizes.get(entry.path) != entry.size or not (by_size or remote.has(ref, entry))]


def _read_own(store: Store, ref: Ref) -> tuple[bytes, Path]:
    assert ref.version is not None
    with open_root(store.root) as root, root.enter(f"{ARTIFACTS_DIR}/{ref.kind}/{version_directory(ref.version)}") as directory:
        return read_bounded(MANIFEST_FILE, MAX_MANIFEST_BYTES, dir_fd=directory.fd), directory.path
