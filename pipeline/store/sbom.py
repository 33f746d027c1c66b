"""A manifest -> a bill of materials in CycloneDX: the files, what the artifact was made from, by which packages."""

from collections.abc import Iterator, Sequence
from datetime import datetime
from importlib import import_module
from typing import Any
from uuid import NAMESPACE_URL, uuid5

from pipeline.errors import StoreError
from pipeline.store.artifact import Artifact
from pipeline.store.manifest import Manifest
from stages.spec import EXIT_USAGE


class _Library:
    """CycloneDX's library, which states no types that a checker understands."""

    def __init__(self) -> None:
        try:
            self.model: Any = import_module("cyclonedx.model")
            self.bom: Any = import_module("cyclonedx.model.bom")
            self.component: Any = import_module("cyclonedx.model.component")
            self.json: Any = import_module("cyclonedx.output.json")
            self.purl: Any = import_module("packageurl")
        except ImportError as missing:
            message = "cyclonedx-python-lib: not installed; it is needed for a bill of materials; `pip install 'rlhf[sbom]'`"
            raise StoreError(message, EXIT_USAGE) from missing

    def make(self, kind: str, name: str, ref: str, *, sha256: str | None = None, **more: Any) -> Any:
        """Make a component of a kind of theirs, such as FILE."""
        hashes = [self.model.HashType(alg=self.model.HashAlgorithm.SHA_256, content=sha256)] if sha256 else []
        return self.component.Component(type=self.component.ComponentType[kind], name=name, bom_ref=ref, hashes=hashes, **more)

    def describe(self, **values: str | None) -> list[Any]:
        """Make properties in our own name space, of what is known."""
        return [self.model.Property(name=f"rlhf:{name}", value=value) for name, value in values.items() if value is not None]


def make_bill(artifact: Artifact, lineage: Sequence[Artifact]) -> str:
    """Write an artifact's bill of materials as CycloneDX 1.6 in JSON; the same artifact gives the same text.

    Args:
        artifact: The artifact.
        lineage: All its ancestors.
    """
    library, manifest = _Library(), artifact.manifest
    root = _describe_model(library, artifact)
    root.components.update(
        library.make("FILE", entry.path, f"{artifact.ref}/{entry.path}", sha256=entry.sha256) for entry in manifest.files
    )
    models = {artifact.ref: root} | {parent.ref: _describe_model(library, parent) for parent in lineage}
    known: dict[str, Any] = {}  # a package that several were made with stands once
    bom = library.bom.Bom(
        serial_number=uuid5(NAMESPACE_URL, f"rlhf:{artifact.ref}:{artifact.seal}"),
        metadata=library.bom.BomMetaData(timestamp=datetime.fromisoformat(manifest.created_utc), component=root),
    )
    for each in (artifact, *lineage):
        materials = {str(found.bom_ref): found for found in _list_materials(library, each.manifest)}
        known = materials | known
        above = [models[parent.ref] for parent in each.manifest.parents]
        bom.register_dependency(models[each.ref], [*above, *(known[ref] for ref in materials)])
    bom.components.update([*(models[parent.ref] for parent in lineage), *known.values()])
    return library.json.JsonV1Dot6(bom).output_as_string(indent=1)


def _describe_model(library: _Library, artifact: Artifact) -> Any:
    manifest, code = artifact.manifest, artifact.manifest.code
    properties = library.describe(
        content_id=manifest.content_id,
        created=manifest.created_utc,
        commit=f"{code.commit}{' and changes' if code.dirty else ''}" if code.commit else None,
        seed=None if manifest.seed is None else str(manifest.seed),
        imported=manifest.imported.path if manifest.imported else None,
    )
    version = f"v{manifest.version}"
    return library.make("MACHINE_LEARNING_MODEL", manifest.kind, artifact.ref, version=version, properties=properties)


def _list_materials(library: _Library, manifest: Manifest) -> Iterator[Any]:
    """Yield the packages, the record sets, and the base model that something was made with."""
    for name, version in manifest.packages.items():
        purl = library.purl.PackageURL("generic" if name == "python" else "pypi", name=name, version=version)
        yield library.make("LIBRARY", name, purl.to_string(), version=version, purl=purl)
    for name, fingerprint in manifest.data.items():
        ref, sha256 = f"data:{name}:{fingerprint}", fingerprint.removeprefix("sha256:")
        if sha256 != fingerprint:
            yield library.make("DATA", name, ref, sha256=sha256)
        else:  # held out of the training records: it says how
            yield library.make("DATA", name, ref, properties=library.describe(source=fingerprint))
    base, identity = manifest.facts.get("base_model"), manifest.config.get("base_model")
    if isinstance(base, str) and isinstance(identity, str):
        yield library.make("MACHINE_LEARNING_MODEL", base, f"base:{identity}", properties=library.describe(identity=identity))
