"""An artifact -> the tree of what it was made from: artifacts, data, the base model. What is missing or damaged is told in its place."""

from collections.abc import Iterator
from typing import Any, cast

from rich.console import Console
from rich.text import Text

from pipeline.errors import StoreError
from pipeline.store.artifact import Artifact
from pipeline.store.manifest import Manifest
from pipeline.store.store import Store
from pipeline.text import clean

_ID_CHARS = 12
_GUIDES = ("├─ ", "│  ", "└─ ", "   ")
_ASCII_GUIDES = ("|- ", "|  ", "`- ", "   ")


def lineage_data(store: Store, artifact: Artifact, seen: dict[str, str] | None = None) -> dict[str, Any]:
    """Return the tree as plain data; an artifact that stands above already has no branches again, but `above`."""
    seen = {} if seen is None else seen
    seen[artifact.ref] = artifact.content_id
    manifest = artifact.manifest
    parents: list[dict[str, Any]] = []
    for parent in manifest.parents:
        node: dict[str, Any] = {"ref": parent.ref, "content_id": parent.content_id}
        if seen.get(parent.ref) == parent.content_id:
            parents.append(node | {"above": True})
            continue
        try:
            found = store.get(parent.ref)
        except StoreError as error:
            parents.append(node | {"problem": error.message})
            continue
        if found.content_id == parent.content_id:
            parents.append(lineage_data(store, found, seen))
        else:
            needed = f"another content, {found.content_id[:_ID_CHARS]}, has its number now; restore that version"
            parents.append(node | {"problem": needed})
    return {
        "ref": artifact.ref,
        "content_id": artifact.content_id,
        "created_utc": manifest.created_utc,
        "data": manifest.data,
        **({"base_model": name_base(manifest)} if not manifest.parents else {}),
        **({"imported": manifest.imported.path} if manifest.imported else {}),
        "parents": parents,
    }


def name_base(manifest: Manifest) -> dict[str, str | None]:
    """Name the base model of an artifact without parents: as its stage knew it, and by its content or commit."""
    name, identity = manifest.facts.get("base_model"), manifest.config.get("base_model")
    return {"name": None if name is None else str(name), "identity": None if identity is None else str(identity)}


def find_problems(node: dict[str, Any]) -> list[str]:
    """List what is missing or damaged in a tree."""
    own = [f"{node['ref']}: {node['problem']}"] if "problem" in node else []
    return own + [problem for parent in node.get("parents", []) for problem in find_problems(parent)]


def print_lineage(console: Console, node: dict[str, Any]) -> None:
    """Print a tree, a line for each artifact, record set and base model."""
    ascii_only = not (console.encoding or "").lower().startswith("utf")
    for line in write_tree(node, _ASCII_GUIDES if ascii_only else _GUIDES):
        text = Text(clean(line), style="red" if "damaged: " in line else "")
        if console.is_terminal:
            text.truncate(console.width, overflow="ellipsis")
        console.print(text, soft_wrap=True)


def write_tree(node: dict[str, Any], guides: tuple[str, str, str, str] = _GUIDES) -> Iterator[str]:
    """Write a tree line by line."""
    yield _describe(node)
    branches = [*_list_sources(node), *cast("list[dict[str, Any]]", node.get("parents", []))]
    for place, branch in enumerate(branches):
        mark, below = guides[2:] if place == len(branches) - 1 else guides[:2]
        if isinstance(branch, str):
            yield mark + branch
        else:
            for number, line in enumerate(write_tree(branch, guides)):
                yield (below if number else mark) + line


def _describe(node: dict[str, Any]) -> str:
    words = [node["ref"], str(node["content_id"])[:_ID_CHARS]]
    if "problem" in node:
        return "  ".join([*words, f"damaged: {node['problem']}"])
    if node.get("above"):
        return "  ".join([*words, "(above)"])
    made = [str(node["created_utc"])[:16].replace("T", " ")]
    return "  ".join([*words, *made, *([f"imported from {node['imported']}"] if "imported" in node else [])])


def _list_sources(node: dict[str, Any]) -> list[str]:
    """List the record sets of a node, and its base model where nothing else stands below it."""
    sources = [f"{name}  {_shorten(value)}" for name, value in node.get("data", {}).items()]
    base = node.get("base_model")
    if base and any(base.values()):
        sources.append("  ".join(filter(None, ("base model", _shorten(base["identity"] or ""), base["name"]))))
    return sources


def _shorten(identity: str) -> str:
    """Shorten a content hash; a hub's name and commit stay."""
    kind, colon, digits = identity.partition(":")
    return digits[:_ID_CHARS] if colon and kind == "sha256" else identity
