"""The artifact store: immutable versions of each kind, published whole or not at all, found by ref, content or cache key.

    <store>/artifacts/<kind>/v0001/   one artifact: manifest.json and its files, read-only
    <store>/aliases/<kind>/<name>.json
    <store>/.staging/<kind>-<uuid>/   being written

Order is by version number, never by time stamps. No index: all is read from the manifests.
"""

from contextlib import AbstractContextManager, suppress
from pathlib import Path

from pipeline.errors import ResourceError, StoreError
from pipeline.store.aliases import Alias, list_aliases, read_alias, write_alias
from pipeline.store.artifact import Artifact, find_damage, load_artifact
from pipeline.store.manifest import ManifestFields
from pipeline.store.publish import publish_directory
from pipeline.store.refs import ContentPrefix, Ref, check_kind, is_kind, parse_ref, parse_version_directory, version_directory
from pipeline.store.staging import Staging, open_staging, reap_staging
from stages.spec import EXIT_MISSING, EXIT_USAGE, EXIT_VERIFICATION

ARTIFACTS_DIR = "artifacts"


class Store:
    """A directory of artifacts that many processes may use at once.

    Args:
        root: Where it lies; created by the first write. Opening it changes nothing.
    """

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()

    # Write

    def reap(self) -> list[str]:
        """Remove what dead writers left in staging; returns its names. For commands that write; those that read leave all as it is."""
        return reap_staging(self.root)

    def staging(self, kind: str) -> AbstractContextManager[Staging]:
        """Open a directory to write an artifact in; it is locked while the block runs, and removed at its end unless published.

        Raises:
            StoreError: the kind is no safe name (exit 2), or the file system refused (exit 5).
        """
        check_kind(kind)
        return open_staging(self.root, kind)

    def publish(self, staging: Staging, fields: ManifestFields) -> Artifact:
        """Make a staging directory the next version of its kind; when this returns, the artifact is durable.

        Raises:
            StoreError: a file is refused (exit 3), or the file system refused (exit 5). Nothing is published then.
        """
        kind_directory = self._kind_directory(staging.kind)
        manifest = publish_directory(staging.path, kind_directory, fields)
        return Artifact(kind_directory / version_directory(manifest.version), manifest)

    def set_alias(self, kind: str, name: str, ref: str, by: str) -> Alias:
        """Point an alias to an artifact of its kind.

        Raises:
            StoreError: bad name or another kind (exit 2), no such artifact (exit 4), or the file system refused (exit 5).
        """
        artifact = self.get(ref)
        if artifact.kind != kind:
            message = f"{artifact.ref} is no {kind}; an alias of {kind} needs one of its versions; see `rlhf ls {kind}`"
            raise StoreError(message, EXIT_USAGE)
        return write_alias(self.root, kind, name, ref=artifact.ref, content_id=artifact.content_id, by=by)

    # Find

    def get(self, ref: str) -> Artifact:
        """Find an artifact and check its manifest and sizes.

        Raises:
            StoreError: not a ref, or an ambiguous prefix (exit 2), no such artifact (exit 4), or it is damaged (exit 3).
        """
        wanted = parse_ref(ref)
        if isinstance(wanted, ContentPrefix):
            return self._get_by_content(wanted)
        if wanted.version is not None:
            self._require_directory(wanted.kind, wanted.version)
            return load_artifact(self._kind_directory(wanted.kind), wanted.version)
        if wanted.alias is None:
            return self._get_latest(wanted.kind)
        alias = read_alias(self.root, wanted.kind, wanted.alias)
        artifact = self.get(alias.ref)
        if artifact.content_id != alias.content_id:
            found = f"{wanted} was set to {alias.ref} with content {alias.content_id[:12]}, which now is {artifact.content_id[:12]}"
            raise StoreError(f"{found}; the same content is needed; set the alias anew", EXIT_VERIFICATION)
        return artifact

    def refs(self, kind: str | None = None) -> list[str]:
        """List the ref of every version directory, damaged ones too, by kind, then version."""
        return [str(Ref(kind, version)) for kind, version in self._directories(kind)]

    def find_by_cache_key(self, kind: str, key: str) -> Artifact | None:
        """Find the newest artifact of a kind that was made from the same inputs."""
        return next((artifact for artifact in reversed(self.list(kind)) if artifact.manifest.cache_key == key), None)

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

    def verify(self, ref: str | Artifact) -> list[str]:
        """Compare every byte of an artifact with its manifest, and its parents with theirs.

        Returns:
            One line per problem; empty when it is intact. A damaged version is reported, not raised.

        Raises:
            StoreError: there is no such artifact (exit 4).
        """
        wanted = parse_ref(ref.ref if isinstance(ref, Artifact) else ref)
        if isinstance(wanted, Ref) and wanted.version is not None:
            kind, version = wanted.kind, wanted.version
            self._require_directory(kind, version)
        else:
            artifact = self.get(str(wanted))
            kind, version = artifact.kind, artifact.version
        problems = find_damage(self._kind_directory(kind), version)
        if not problems:
            try:
                self.lineage(str(Ref(kind, version)))
            except StoreError as error:
                problems.append(error.message)
        return problems

    def require_verified(self, ref: str) -> Artifact:
        """Find an artifact and check every byte of it, as a stage's input must be.

        Raises:
            StoreError: as `get`; or damaged, naming the file (exit 3).
        """
        problems = self.verify(ref)
        if problems:
            raise StoreError(f"{ref} is damaged: " + " | ".join(problems[:5]), EXIT_VERIFICATION)
        return self.get(ref)

    def _kind_directory(self, kind: str) -> Path:
        check_kind(kind)
        return self.root / ARTIFACTS_DIR / kind

    def _directories(self, kind: str | None) -> list[tuple[str, int]]:
        """Return kind and version of all version directories in order."""
        kinds = [kind] if kind is not None else sorted(filter(is_kind, _names(self.root / ARTIFACTS_DIR)))
        found: list[tuple[str, int]] = []
        for name in kinds:
            versions = (parse_version_directory(entry) for entry in _names(self._kind_directory(name)))
            found += [(name, version) for version in sorted(filter(None, versions))]
        return found

    def _require_directory(self, kind: str, version: int) -> None:
        if not (self._kind_directory(kind) / version_directory(version)).is_dir():
            known = ", ".join(f"v{known}" for _, known in self._directories(kind)[-5:]) or "none"
            raise StoreError(f"no artifact {kind}@v{version} in {self.root}; newest there: {known}; see `rlhf ls`", EXIT_MISSING)

    def _get_latest(self, kind: str) -> Artifact:
        for _, version in reversed(self._directories(kind)):
            with suppress(StoreError):
                return load_artifact(self._kind_directory(kind), version)
        raise StoreError(f"no artifact of kind {kind} in {self.root}; one is needed; run its stage first", EXIT_MISSING)

    def _get_by_content(self, prefix: ContentPrefix) -> Artifact:
        matches = [artifact for artifact in self.list() if artifact.content_id.startswith(prefix.digits)]
        if not matches:
            raise StoreError(f"no artifact has a content id that begins with {prefix}; see `rlhf ls`", EXIT_MISSING)
        if len({(artifact.kind, artifact.content_id) for artifact in matches}) > 1:
            refs = ", ".join(artifact.ref for artifact in matches[:5])
            raise StoreError(f"{prefix} is ambiguous: {refs}; one content is needed; give more characters or a ref", EXIT_USAGE)
        return matches[-1]

    def _parents(self, child: Artifact) -> list[Artifact]:
        parents: list[Artifact] = []
        for named in child.manifest.parents:
            try:
                parent = self.get(named.ref)
            except StoreError as error:
                raise StoreError(f"{child.ref}: parent {named.ref}: {error.message}", EXIT_VERIFICATION) from error
            if parent.content_id != named.content_id:
                found = f"{child.ref}: parent {named.ref} has content {parent.content_id[:12]}"
                raise StoreError(f"{found}; {named.content_id[:12]} is needed; restore that version", EXIT_VERIFICATION)
            parents.append(parent)
        return parents

    # Last in the class, as below it the name would hide the built-in in annotations.
    def list(self, kind: str | None = None) -> list[Artifact]:
        """List artifacts with intact manifests and right sizes, by kind, then version; anything else is left to `verify`."""
        artifacts: list[Artifact] = []
        for directory_kind, version in self._directories(kind):
            with suppress(StoreError):
                artifacts.append(load_artifact(self._kind_directory(directory_kind), version))
        return artifacts


def _names(directory: Path) -> list[str]:
    try:
        return [entry.name for entry in directory.iterdir()]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise ResourceError(f"{directory}: {error.strerror}; read permission needed; change its mode or owner") from error
