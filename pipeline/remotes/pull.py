"""Pull: an artifact with all its ancestors from another store, parents first, under their own version numbers.

manifests -> refuse what is unsafe or conflicts -> files into staging, hashed -> rename, as every artifact is published. A pull that was
killed or failed goes on by the same command: files that are in staging with the right hash are not fetched again.
"""

import hashlib
import os
from collections.abc import Callable, Iterable
from contextlib import suppress

from pipeline.errors import ResourceError, StoreError
from pipeline.remotes.remote import Remote
from pipeline.remotes.transfers import ID_CHARS, View, in_parallel, list_refs, order_parents_first
from pipeline.store.directory import Directory, list_tree, open_root
from pipeline.store.disk import free_bytes, hash_file, writing
from pipeline.store.manifest import FileEntry, Manifest
from pipeline.store.parts import hold_artifacts, require_own_parts
from pipeline.store.publish import publish_copy
from pipeline.store.refs import ContentPrefix, Ref, parse_ref
from pipeline.store.staging import STAGING_DIR
from pipeline.store.store import Store
from stages.spec import EXIT_MISSING, EXIT_RESOURCE, EXIT_USAGE, EXIT_VERIFICATION

_MAX_ANCESTORS = 1000


def pull(store: Store, ref: str, remote: Remote, view: View) -> dict[str, bool]:
    """Bring an artifact and its ancestors from another store, under their own version numbers.

    Returns:
        Ref -> whether it had to be fetched, parents first.

    Raises:
        StoreError: no such artifact (exit 4); a manifest or file is damaged or unsafe, or the version holds another content here (exit 3);
            or the remote or the disk refused (exit 5).
    """
    require_own_parts(store.root)
    found = _collect(remote, _resolve(remote, ref))
    order = order_parents_first({name: manifest for name, (manifest, _) in found.items()})
    absent = [name for name in order if not _is_here(store, found[name][0])]
    _require_space(store, [found[name] for name in absent])
    fetched: dict[str, bool] = {}
    for name in order:
        manifest, content = found[name]
        fetched[name] = name in absent and _pull_version(store, remote, manifest, content, view)
        if not fetched[name] and (problems := store.verify(name)):
            todo = f"`rlhf rm {name}`, then pull again"
            raise StoreError(f"{name} is here, but damaged: {problems[0]}; or {todo}", EXIT_VERIFICATION)
    return fetched


def find_content(remote: Remote, ref: Ref) -> Manifest | StoreError:
    """Read a version's manifest, or what is wrong with it.

    Raises:
        StoreError: the remote does not answer (exit 5).
    """
    try:
        return remote.read_manifest(ref)[0]
    except StoreError as error:
        if error.exit_code == EXIT_RESOURCE:
            raise
        return error


def _resolve(remote: Remote, text: str) -> Ref:
    """Find the version at a remote that a ref means there."""
    wanted = parse_ref(text)
    if isinstance(wanted, ContentPrefix):
        for ref in reversed(list_refs(remote)):
            manifest = find_content(remote, ref)
            if isinstance(manifest, Manifest) and manifest.content_id.startswith(wanted.digits):
                return ref
    elif wanted.version is not None:
        return wanted
    elif wanted.alias is not None:
        raise StoreError(f"{wanted}: names are of each store, none is at a remote; needed kind@v3; `rlhf ls {remote.shown}`", EXIT_USAGE)
    else:
        for ref in reversed(list_refs(remote, wanted.kind)):
            if isinstance(find_content(remote, ref), Manifest):
                return ref
    raise StoreError(f"no artifact {wanted} in {remote.shown}; `rlhf ls {remote.shown}` shows what there is", EXIT_MISSING)


def _collect(remote: Remote, start: Ref) -> dict[str, tuple[Manifest, bytes]]:
    """Read the manifests of a version and of its ancestors, each of which must be what its children were made from."""
    found = {str(start): remote.read_manifest(start)}
    pending = [found[str(start)][0]]
    while pending:
        child = pending.pop()
        for parent in child.parents:
            if parent.ref not in found:
                kind, _, version = parent.ref.partition("@v")
                found[parent.ref] = remote.read_manifest(Ref(kind, int(version)))
                pending.append(found[parent.ref][0])
            if (content_id := found[parent.ref][0].content_id) != parent.content_id:
                message = f"{remote.shown}: {child.ref}: parent {parent.ref} has content {content_id[:ID_CHARS]}"
                raise StoreError(f"{message}; {parent.content_id[:ID_CHARS]} needed; push both from one store", EXIT_VERIFICATION)
        if len(found) > _MAX_ANCESTORS:
            raise StoreError(f"{remote.shown}: {start} has more than {_MAX_ANCESTORS} ancestors; fewer needed", EXIT_VERIFICATION)
    return found


def _is_here(store: Store, manifest: Manifest) -> bool:
    ref = str(Ref(manifest.kind, manifest.version))
    if ref not in store.refs(manifest.kind):
        return False
    try:
        content_id = store.get(ref).content_id
    except StoreError as error:
        raise StoreError(f"{error.message}; or `rlhf rm {ref}`, then pull again", error.exit_code) from error
    if content_id != manifest.content_id:
        found = f"{store.root}: {ref} here holds content {content_id[:ID_CHARS]}; there it is {manifest.content_id[:ID_CHARS]}"
        raise StoreError(f"{found}; a version is never written again; pull into another --store", EXIT_VERIFICATION)
    return True


def _pull_version(store: Store, remote: Remote, manifest: Manifest, content: bytes, view: View) -> bool:
    ref = Ref(manifest.kind, manifest.version)
    with store.staging(manifest.kind, _staging_key(content)) as staging:
        if _is_here(store, manifest):  # by another pull, for which we waited
            return False
        view.started(f"pull {ref}", sum(entry.size for entry in manifest.files))
        with writing(staging.path), open_root(store.root) as root, root.enter(f"{STAGING_DIR}/{staging.path.name}") as top:
            _remove_strangers(top, {entry.path for entry in manifest.files})
            in_parallel(lambda entry, moved: _fetch(remote, ref, top, entry, moved), manifest.files, view)
        with hold_artifacts(store.root):
            for parent in manifest.parents:
                if store.get(parent.ref).content_id != parent.content_id:
                    raise StoreError(f"{parent.ref} was replaced while {ref} was pulled; its parent needed; pull again", EXIT_VERIFICATION)
            publish_copy(store.root, staging, manifest, content)
    return True


def _fetch(remote: Remote, ref: Ref, top: Directory, entry: FileEntry, moved: Callable[[int], None]) -> None:
    below, _, name = entry.path.rpartition("/")
    with writing(top.path / entry.path, entry.size), top.enter(below, create=True) as directory:
        if _is_whole(directory, name, entry):
            moved(entry.size)
            return
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        digest, size = hashlib.sha256(), 0
        with open(os.open(name, flags, 0o666, dir_fd=directory.fd), "wb") as stream:  # noqa: PTH123
            for chunk in remote.read(f"{remote.place(ref)}/{entry.path}"):
                size += len(chunk)
                if size > entry.size:
                    break
                digest.update(chunk)
                stream.write(chunk)
                moved(len(chunk))
        if size != entry.size or digest.hexdigest() != entry.sha256:
            os.unlink(name, dir_fd=directory.fd)
            found = f"more than {entry.size} bytes" if size > entry.size else f"{size} bytes, sha256 {digest.hexdigest()[:ID_CHARS]}"
            message = f"{remote.shown}: {ref}: {entry.path}: {found}; {entry.size} bytes, {entry.sha256[:ID_CHARS]} needed"
            raise StoreError(f"{message}; nothing was published; restore it there, or push elsewhere", EXIT_VERIFICATION)


def _is_whole(directory: Directory, name: str, entry: FileEntry) -> bool:
    """Tell whether an earlier try left a file as it should be; one that is not is removed."""
    try:
        if hash_file(name, dir_fd=directory.fd) == (entry.size, entry.sha256):
            return True
    except FileNotFoundError:
        return False
    except (OSError, ValueError):
        pass
    os.unlink(name, dir_fd=directory.fd)
    return False


def _remove_strangers(top: Directory, names: set[str]) -> None:
    """Remove what an earlier try left in staging that is no file of the artifact."""
    for path, is_file in list(list_tree(top)):
        if path not in names or not is_file:
            below, _, name = path.rpartition("/")
            with top.enter(below) as directory:
                os.unlink(name, dir_fd=directory.fd)


def _staging_key(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:32]


def _require_space(store: Store, wanted: Iterable[tuple[Manifest, bytes]]) -> None:
    """Refuse to begin a pull that the disk cannot hold; what an earlier try left counts as there."""
    need = 0
    for manifest, content in wanted:
        staged = store.root / STAGING_DIR / f"{manifest.kind}-{_staging_key(content)}"
        for entry in manifest.files:
            need += entry.size
            with suppress(OSError):
                need -= min(entry.size, (staged / entry.path).lstat().st_size)
    if need > (free := free_bytes(store.root)):
        raise ResourceError(f"{store.root}: {need:,} bytes needed, {free:,} bytes free; free space, or pull into another --store")
