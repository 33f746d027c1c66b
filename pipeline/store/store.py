"""The artifact store: immutable versions of each kind, published whole or not at all, found by ref, content or cache key.

    <store>/artifacts/<kind>/v0001/   one artifact: manifest.json and its files, read-only
    <store>/aliases/<kind>/<name>.json
    <store>/.staging/<kind>-<uuid>/   being written

Order is by version number, never by time stamps. No index: all is read from the manifests.
"""

import os
import stat
from collections.abc import Generator, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

from pipeline.errors import StoreError
from pipeline.store.aliases import Alias, list_aliases, read_alias, write_alias
from pipeline.store.artifact import Artifact, find_damage, load_artifact
from pipeline.store.directory import Directory
from pipeline.store.ledger import Entry
from pipeline.store.manifest import ManifestFields
from pipeline.store.parts import hold_artifacts
from pipeline.store.publish import publish_staging
from pipeline.store.refs import ContentPrefix, Ref, check_alias, check_kind, parse_ref, version_directory
from pipeline.store.staging import ARTIFACTS_DIR, Staging, open_staging, reap_staging
from pipeline.store.standing import Standing
from pipeline.store.versions import list_kinds, list_versions, load_each, open_kind
from pipeline.store.withdrawn import name_maker
from stages.spec import EXIT_MISSING, EXIT_USAGE, EXIT_VERIFICATION


class Store:
    """A directory of artifacts that many processes may use at once.

    Args:
        root: Where it lies; created by the first write. Opening it changes nothing.
    """

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self._standing = Standing(self.root)

    # Write

    def reap(self) -> list[str]:
        """Remove what dead writers left in staging; returns its names. For commands that write; those that read leave all as it is."""
        return reap_staging(self.root)

    def staging(self, kind: str, key: str | None = None) -> AbstractContextManager[Staging]:
        """Open a directory to write an artifact in; it is locked while the block runs, and removed at its end unless published.

        With a key, a block that failed leaves it to the next one with the same key.

        Raises:
            StoreError: the kind is no safe name (exit 2), or the file system refused (exit 5).
        """
        check_kind(kind)
        return open_staging(self.root, kind, key)

    def publish(self, staging: Staging, fields: ManifestFields) -> Artifact:
        """Make a staging directory the next version of its kind; when this returns, the artifact is durable.

        Raises:
            StoreError: a file is refused (exit 3), or the file system refused (exit 5). Nothing is published then.
        """
        manifest, seal = publish_staging(self.root, staging, fields)
        return Artifact(self.root / ARTIFACTS_DIR / staging.kind / version_directory(manifest.version), manifest, seal)

    def set_alias(self, kind: str, name: str, ref: str, by: str) -> Alias:
        """Point an alias to an artifact of its kind.

        Raises:
            StoreError: bad name or another kind (exit 2), no such artifact (exit 4), or the file system refused (exit 5).
        """
        if self.get(ref).kind != kind:
            raise StoreError(f"{ref} is no {kind}; an alias of {kind} needs one of its versions; see `rlhf ls {kind}`", EXIT_USAGE)
        check_alias(name)
        with hold_artifacts(self.root):
            artifact = self.get(ref)  # again: now nobody removes it
            return write_alias(self.root, kind, name, ref=artifact.ref, content_id=artifact.content_id, by=by)

    def require_there(self, artifacts: Iterable[Artifact]) -> None:
        """Refuse to rely on an artifact that was removed, or replaced by another one of its number, since it was found.

        Raises:
            StoreError: it was (exit 4).
        """
        for artifact in artifacts:
            if self.get(artifact.ref).content_id != artifact.content_id:
                raise StoreError(f"{artifact.ref} was removed and its number given again; run again to find what is there", EXIT_MISSING)

    # Find

    def get(self, ref: str) -> Artifact:
        """Find an artifact and check its manifest and sizes, and that it is the one that was published.

        Raises:
            StoreError: not a ref, or an ambiguous prefix (exit 2), no such artifact (exit 4), or it is damaged or forged (exit 3).
        """
        wanted = parse_ref(ref)
        if isinstance(wanted, ContentPrefix):
            return self._get_by_content(wanted)
        if wanted.version is not None:
            with self._open_version(wanted.kind, wanted.version) as kind_directory:
                return self._standing.require_listed(load_artifact(kind_directory, wanted.version))
        if wanted.alias is None:
            return self._get_latest(wanted.kind)
        alias = read_alias(self.root, wanted.kind, wanted.alias)
        artifact = self.get(alias.ref)
        if artifact.kind != wanted.kind:
            raise StoreError(f"{wanted} was set to {artifact.ref}; a {wanted.kind} is needed; set the alias anew", EXIT_VERIFICATION)
        if artifact.content_id != alias.content_id:
            found = f"{wanted} was set to {alias.ref} with content {alias.content_id[:12]}, which now is {artifact.content_id[:12]}"
            raise StoreError(f"{found}; the same content is needed; set the alias anew", EXIT_VERIFICATION)
        return artifact

    def refs(self, kind: str | None = None) -> list[str]:
        """List the ref of every version directory, damaged ones too, by kind, then version."""
        kinds = list_kinds(self.root) if kind is None else [kind]
        return [str(Ref(name, version)) for name in kinds for version in list_versions(self.root, name)]

    def survey(self, kind: str | None = None, *, newest_first: bool = False) -> Iterator[tuple[str, Artifact | StoreError]]:
        """Yield each version, by kind, then version: its ref, and what `get` would return or raise for it."""
        for ref, found in load_each(self.root, kind, newest_first=newest_first):
            try:
                yield ref, self._standing.require_listed(found) if isinstance(found, Artifact) else found
            except StoreError as error:
                yield ref, error

    def newest_first(self, kind: str) -> Iterator[Artifact]:
        """Yield the artifacts of a kind that `list` lists, the newest first; each is read only when it is asked for."""
        check_kind(kind)
        return (found for _, found in load_each(self.root, kind, newest_first=True) if isinstance(found, Artifact))

    def find_by_cache_key(self, kind: str, key: str) -> Artifact | None:
        """Find the newest artifact of a kind that was made from the same inputs, and is not withdrawn.

        Raises:
            StoreError: it is not the one that was published (exit 3).
        """
        same = (artifact for artifact in self.newest_first(kind) if artifact.manifest.cache_key == key)
        found = next((artifact for artifact in same if not self.find_withdrawal(artifact)), None)
        return self._standing.require_listed(found) if found else None

    def find_withdrawal(self, artifact: Artifact) -> str:
        """Say why an artifact is withdrawn; empty where it is not."""
        return self._standing.find_withdrawal(artifact)

    def has_withdrawals(self) -> bool:
        """Tell whether any artifact is withdrawn."""
        return self._standing.has_withdrawals()

    def find_lost(self) -> dict[str, Entry]:
        """Find the versions that were published and are gone without `rlhf rm`: ref -> the ledger's last word on each.

        Raises:
            StoreError: the ledger was changed by hand (exit 3).
        """
        # The ledger first, as what is published meanwhile is not lost; and again, as what is removed has its line before it is deleted.
        gone = self._standing.list_published().keys() - set(self.refs())
        gone -= self._standing.list_taken_away() if gone else set()
        return {ref: entry for ref, entry in self._standing.list_published().items() if ref in gone} if gone else {}

    def aliases(self, kind: str) -> dict[str, Alias]:
        """Read the aliases of a kind by name."""
        check_kind(kind)
        return list_aliases(self.root, kind)

    def lineage(self, ref: str) -> list[Artifact]:
        """Return all ancestors of an artifact, nearest first, each once.

        Raises:
            StoreError: an ancestor is missing, has other content than the manifest says, or descends from itself (exit 3).
        """
        ancestors: dict[str, Artifact] = {}
        start = self.get(ref)
        level = [start]
        while level:
            parents: dict[str, Artifact] = {}
            for child in level:
                for parent in self._parents(child):
                    parents[parent.ref] = parent
            if start.ref in parents:
                raise StoreError(f"{start.ref} descends from itself; parents must be older; remove the forged manifest", EXIT_VERIFICATION)
            level = [parent for parent in parents.values() if parent.ref not in ancestors]
            ancestors.update((parent.ref, parent) for parent in level)
        return list(ancestors.values())

    # Verify

    def verify(self, ref: str) -> list[str]:
        """Compare every byte of an artifact with its manifest, and its parents with theirs.

        Returns:
            One line per problem; empty when it is intact. A damaged version is reported, not raised.

        Raises:
            StoreError: there is no such artifact (exit 4).
        """
        wanted = parse_ref(ref)
        if isinstance(wanted, Ref) and wanted.version is not None:
            kind, version = wanted.kind, wanted.version
        else:
            artifact = self.get(str(wanted))
            kind, version = artifact.kind, artifact.version
        with self._open_version(kind, version) as kind_directory:
            problems = find_damage(kind_directory, version)
        if not problems:
            try:
                self.lineage(str(Ref(kind, version)))
            except StoreError as error:
                problems.append(error.message)
        return problems

    def require_verified(self, ref: str) -> Artifact:
        """Find an artifact and check every byte of it, as a stage's input must be, and what goes to others.

        Raises:
            StoreError: as `get`; or damaged, naming the file, or withdrawn (exit 3).
        """
        artifact = self.require_whole(ref)
        if reason := self.find_withdrawal(artifact):
            maker = name_maker(artifact.kind)
            raise StoreError(f"{ref} is withdrawn: {reason}; one without them is needed; {maker} makes it", EXIT_VERIFICATION)
        return artifact

    def require_whole(self, ref: str) -> Artifact:
        """The same of one that may be withdrawn: for who leaves out what was forgotten."""
        if problems := self.verify(ref):
            raise StoreError(f"{ref} is damaged: " + " | ".join(problems[:5]), EXIT_VERIFICATION)
        return self.get(ref)

    @contextmanager
    def _open_version(self, kind: str, version: int) -> Generator[Directory]:
        """Open the directory of a kind that has a version.

        Raises:
            StoreError: it has none of that number (exit 4).
        """
        with suppress(FileNotFoundError), open_kind(self.root, kind) as kind_directory:
            status = os.stat(version_directory(version), dir_fd=kind_directory.fd, follow_symlinks=False)
            if stat.S_ISDIR(status.st_mode) or stat.S_ISLNK(status.st_mode):  # of a link it is told that it is one
                yield kind_directory
                return
        known = ", ".join(f"v{known}" for known in list_versions(self.root, kind)[-5:]) or "none"
        ref = str(Ref(kind, version))
        found = f"no artifact {ref} in {self.root}{self._standing.tell_lost(ref)}"
        raise StoreError(f"{found}; newest there: {known}; see `rlhf ls`", EXIT_MISSING)

    def _get_latest(self, kind: str) -> Artifact:
        problem = ""
        for _, found in self.survey(kind, newest_first=True):
            if isinstance(found, Artifact):
                return found
            problem = problem or found.message
        if problem:
            raise StoreError(f"no {kind} in {self.root} is intact; the newest: {problem}", EXIT_VERIFICATION)
        there = ", ".join(name for name in list_kinds(self.root) if list_versions(self.root, name)) or "none"
        raise StoreError(f"no artifact of kind {kind} in {self.root}; kinds there: {there}; run its stage first", EXIT_MISSING)

    def _get_by_content(self, prefix: ContentPrefix) -> Artifact:
        matches = [artifact for artifact in self.list() if artifact.content_id.startswith(prefix.digits)]
        if not matches:
            raise StoreError(f"no artifact has a content id that begins with {prefix}; see `rlhf ls`", EXIT_MISSING)
        if len({(artifact.kind, artifact.content_id) for artifact in matches}) > 1:
            refs = ", ".join(artifact.ref for artifact in matches[:5])
            raise StoreError(f"{prefix} is ambiguous: {refs}; one content is needed; give more characters or a ref", EXIT_USAGE)
        return self._standing.require_listed(matches[-1])

    def _parents(self, child: Artifact) -> Iterator[Artifact]:
        for named in child.manifest.parents:
            try:
                parent = self.get(named.ref)
            except StoreError as error:
                raise StoreError(f"{child.ref}: parent {named.ref}: {error.message}", EXIT_VERIFICATION) from error
            if parent.content_id != named.content_id:
                found = f"{child.ref}: parent {named.ref} has content {parent.content_id[:12]}"
                raise StoreError(f"{found}; {named.content_id[:12]} is needed; restore that version", EXIT_VERIFICATION)
            yield parent

    # Last in the class, as below it the name would hide the built-in in annotations.
    def list(self, kind: str | None = None) -> list[Artifact]:
        """List artifacts with intact manifests and right sizes, by kind, then version; anything else is left to `verify`."""
        return [found for _, found in load_each(self.root, kind) if isinstance(found, Artifact)]
