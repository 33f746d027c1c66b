"""Two artifacts, or two lines of ancestors -> what changed between them (configuration, data, code) and what that did to the figures."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

from pipeline.store.manifest import Manifest
from stages.spec import ARTIFACT_KINDS

_ID_CHARS = 12
Part = Literal["config", "data", "parent", "code", "package", "machine"]


@dataclass(frozen=True)
class Change:
    """One thing that differs; None on the side that does not have it."""

    part: Part
    name: str
    old: Any
    new: Any

    @property
    def words(self) -> str:
        """The change as a phrase: `ppo.kl_coef changed 0.05 -> 0.0`."""
        if self.part == "config":
            return describe_change(self.name, self.old, self.new)
        if self.part == "data":
            named = [_say(value).removeprefix("sha256:")[:_ID_CHARS] for value in (self.old, self.new)]
            return f"{self.name} changed {' -> '.join(named)}"
        return f"{self.name} changed {_say(self.old)} -> {_say(self.new)}"


@dataclass(frozen=True)
class Figure:
    """A final figure on both sides; None where it was not measured."""

    name: str
    old: float | None
    new: float | None


@dataclass(frozen=True)
class Difference:
    """How two artifacts of a kind differ. A side that is not there is None, and then nothing else is said of it.

    Args:
        kind: Of both; of the one that there is.
        old: Ref of the first.
        new: Ref of the second.
        same_content: Every byte that counts is equal.
        changes: What they were made from and with.
        figures: Final figures of either.
        counts: Records read, used, cut and dropped, as far as they differ.
    """

    kind: str
    old: str | None
    new: str | None
    same_content: bool = False
    changes: tuple[Change, ...] = ()
    figures: tuple[Figure, ...] = ()
    counts: tuple[Figure, ...] = ()


def compare_manifests(old: Manifest, new: Manifest) -> Difference:
    """Compare two artifacts; of different kinds as well, as SFT with PPO."""
    changes = [Change("config", name, *values) for name, *values in changed_leaves(old.config, new.config)]
    changes += [Change("data", name, *values) for name, *values in _changed(old.data, new.data)]
    changes += [Change("parent", name, *values) for name, *values in _changed(_name_parents(old), _name_parents(new))]
    changes += [Change("code", name, *values) for name, *values in _changed(_name_code(old), _name_code(new))]
    changes += [Change("package", name, *values) for name, *values in _changed(old.packages, new.packages)]
    changes += [Change("machine", name, *values) for name, *values in _changed(_name_machine(old), _name_machine(new))]
    names = list(dict.fromkeys([*old.metrics, *new.metrics]))
    return Difference(
        new.kind,
        _name(old),
        _name(new),
        old.content_id == new.content_id,
        tuple(changes),
        tuple(Figure(name, old.metrics.get(name), new.metrics.get(name)) for name in names),
        tuple(Figure(*row) for row in _changed(old.counts, new.counts)),
    )


def compare_lines(old: Sequence[Manifest], new: Sequence[Manifest]) -> list[Difference]:
    """Compare two artifacts with their ancestors, kind by kind, oldest first, so that a change is found where it was made.

    Two of different kinds are compared by themselves, in what both have.

    Args:
        old: The first artifact, then its ancestors, nearest first.
        new: The second one and its.
    """
    if old[0].kind != new[0].kind:
        return [_keep_shared(compare_manifests(old[0], new[0]))]
    by_kind = [{manifest.kind: manifest for manifest in reversed(line)} for line in (old, new)]
    differences: list[Difference] = []
    for kind in sorted({*by_kind[0], *by_kind[1]}, key=place_kind):
        first, second = by_kind[0].get(kind), by_kind[1].get(kind)
        if first is not None and second is not None:
            differences.append(compare_manifests(first, second))
        else:
            differences.append(Difference(kind, _name(first), _name(second)))
    return differences


def _keep_shared(difference: Difference) -> Difference:
    """Keep what both have, of two kinds; the version of a stage says nothing of another's."""
    changes = (c for c in difference.changes if c.old is not None and c.new is not None and c.name != "stage_version")
    figures, counts = (
        tuple(figure for figure in found if figure.old is not None and figure.new is not None)
        for found in (difference.figures, difference.counts)
    )
    return replace(difference, changes=tuple(changes), figures=figures, counts=counts)


def place_kind(kind: str) -> tuple[int, str]:
    """Where a kind stands in the order of stages; kinds of no stage come last."""
    return ARTIFACT_KINDS.index(kind) if kind in ARTIFACT_KINDS else len(ARTIFACT_KINDS), kind


def changed_leaves(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Yield the leaves of nested blocks that differ, by name; of a judge that changed its code is not told as well.

    A block that was null or becomes null, as `lora`, is one change.
    """
    before, after = dict(flatten(old)), dict(flatten(new))
    for whole, parts in ((before, after), (after, before)):
        for block in whole.keys() - parts.keys():
            if leaves := [name for name in parts if name.startswith(f"{block}.")]:
                parts[block] = {name.removeprefix(f"{block}."): parts.pop(name) for name in leaves}
    for name, *values in _changed(before, after):
        if not (name == "judge_code" and before.get("judge") != after.get("judge")):
            yield name, *values


def describe_change(name: str, old: Any, new: Any) -> str:
    """Say how a leaf of the configuration changed."""
    if name == "base_model":
        both_of_hub = all(str(identity).startswith("hub:") for identity in (old, new))
        return "the base model changed" + (f" {old} -> {new}" if both_of_hub else "")
    if name == "probes_code":
        return "the probes' code changed"
    if name == "judge_code":
        return "the judge's code changed" if old else "the judge's code counts now, of which the newest artifact says nothing"
    if name == "stage_version":
        return f"the stage's code changed (version {old} -> {new})"
    return f"{name} changed {json.dumps(old)} -> {json.dumps(new)}"


def flatten(block: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the leaves of nested blocks with dotted names; an empty block has none."""
    for name, value in block.items():
        if isinstance(value, dict):
            yield from flatten(cast("dict[str, Any]", value), f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _changed(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    return [(name, old.get(name), new.get(name)) for name in sorted(old.keys() | new.keys()) if old.get(name) != new.get(name)]


def _name_parents(manifest: Manifest) -> dict[str, str]:
    """Name the parents by kind; equal content under another number is no change."""
    return {parent.kind: parent.content_id[:_ID_CHARS] for parent in manifest.parents}


def _name_code(manifest: Manifest) -> dict[str, str]:
    commit = (manifest.code.commit or "no git checkout")[:15]
    return {"code": commit + (" with changes" if manifest.code.dirty else "")}


def _name_machine(manifest: Manifest) -> dict[str, Any]:
    return {"device": manifest.device, "precision": manifest.precision, "processes": manifest.world_size}


def _name(manifest: Manifest | None) -> str | None:
    return None if manifest is None else manifest.ref


def _say(value: Any) -> str:
    return "none" if value is None else str(value)
