"""Ref -> all that the store knows of it: the artifacts that it stands on, the newest evaluation of them, runs that failed since.

What is gone, damaged or unreadable is told in `problems`, and the page is made of the rest. Texts come without secrets.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

from pydantic import ValidationError

from data.secrets import redact, redact_values
from pipeline.errors import StoreError
from pipeline.runs.listing import list_runs
from pipeline.store.artifact import Artifact
from pipeline.store.compare import place_kind
from pipeline.store.disk import read_bounded
from pipeline.store.store import Store
from stages.evaluate.results import EVALUATION_FILE, Evaluation
from stages.spec import EXIT_MISSING, STAGES

EVALUATION_KIND = STAGES["evaluate"].kind
_MAX_EVALUATION_BYTES = 32 * 1024 * 1024
_UNFINISHED = ("failed", "killed", "stopped")


@dataclass(frozen=True)
class Evidence:
    """What a report is made of.

    Args:
        subject: What the report was asked for; None where there are failed runs alone.
        tested: The artifact of the evaluation that stands on it, or the subject itself; None where there is no evaluation.
        evaluation: What that found.
        line: All artifacts that both stand on and they themselves, oldest first.
        failures: Runs of its stages that ended without an artifact and began after it was made, newest first.
        problems: What could not be read, a line each.
        withdrawn: Why the subject is withdrawn; empty where it is not.
        damaged: Those that were wanted before the subject but are damaged: ref -> why.
    """

    subject: Artifact | None
    tested: Artifact | None
    evaluation: Evaluation | None
    line: tuple[Artifact, ...]
    failures: tuple[dict[str, Any], ...] = ()
    problems: tuple[str, ...] = ()
    withdrawn: str = ""
    damaged: Mapping[str, str] = field(default_factory=dict[str, str])

    def find(self, kind: str) -> Artifact | None:
        """Return the artifact of a kind that the subject stands on, or it itself."""
        return next((artifact for artifact in reversed(self.line) if artifact.kind == kind), None)


def find_newest(store: Store) -> tuple[Artifact | None, dict[str, str]]:
    """Find the newest artifact of the last stage that left one; None in a store without any.

    An evaluation is taken by what it stands on: after a newer PPO it says nothing of that one.

    Returns:
        The artifact; and those that would have come before it but are damaged: ref -> why.
    """
    damaged: dict[str, str] = {}
    for stage, row in reversed(STAGES.items()):
        for ref in reversed(store.refs(stage)) if row.leaves_model else ():
            try:
                return store.get(ref), damaged
            except StoreError as error:
                damaged[ref] = error.message
    found = store.list()
    return found[-1] if found else None, damaged


def gather(store: Store, subject: Artifact | None, damaged: Mapping[str, str] | None = None) -> Evidence:
    """Read what stands in a store of an artifact.

    Args:
        store: The store.
        subject: The artifact; None where there is none.
        damaged: Those that were wanted before it but are damaged: ref -> why.

    Raises:
        StoreError: there is neither an artifact nor a run that failed (exit 4), or the file system refused (exit 5).
    """
    problems: list[str] = []
    failures = _find_failures(store, subject)
    unread = {ref: redact(why) for ref, why in (damaged or {}).items()}
    if subject is None:
        if not failures and not unread:
            raise StoreError(f"no artifacts in {store.root}; one is needed; `rlhf run` makes some", EXIT_MISSING)
        return Evidence(None, None, None, (), failures, damaged=unread)
    tested = subject if subject.kind == EVALUATION_KIND else _find_evaluation(store, subject)
    if tested is None:
        intact = {artifact.ref for artifact in store.list(EVALUATION_KIND)}
        lost = [ref for ref in store.refs(EVALUATION_KIND) if ref not in intact]
        problems.extend(f"{ref} is damaged, so it is not known whether it evaluated {subject.ref}; see `rlhf doctor`" for ref in lost)
    line = _walk(store, tested or subject, problems)
    if all(artifact.ref != subject.ref for artifact in line):
        line.append(subject)
    reasons = {artifact.ref: reason for artifact in line if (reason := store.find_withdrawal(artifact))}
    withdrawn = reasons.pop(subject.ref, "")
    problems.extend(f"{ref} is withdrawn: {reason}" for ref, reason in reasons.items())
    evaluation = None if tested is None else _read_evaluation(tested, problems)
    clean = tuple(_without_secrets(artifact) for artifact in line)
    named = {artifact.ref: artifact for artifact in clean}
    told = tuple(map(redact, problems))
    return Evidence(named[subject.ref], named[tested.ref] if tested else None, evaluation, clean, failures, told, withdrawn, unread)


def _find_evaluation(store: Store, subject: Artifact) -> Artifact | None:
    """Find the newest evaluation that was made from an artifact; else from one of the same content under another number."""
    same: Artifact | None = None
    for artifact in reversed(store.list(EVALUATION_KIND)):
        for parent in artifact.manifest.parents:
            if parent.content_id == subject.content_id:
                if parent.ref == subject.ref:
                    return artifact
                same = same or artifact
    return same


def _walk(store: Store, start: Artifact, problems: list[str]) -> list[Artifact]:
    """List an artifact and its ancestors, oldest first, each once; one that is gone or damaged is told."""
    found: dict[str, Artifact] = {}
    waiting = [start]
    while waiting:
        artifact = waiting.pop()
        if artifact.ref in found:
            continue
        found[artifact.ref] = artifact
        for named in artifact.manifest.parents:
            try:
                parent = store.get(named.ref)
            except StoreError as error:
                problems.append(f"{artifact.ref} was made from {named.ref}, which cannot be read: {error.message}")
                continue
            if parent.content_id == named.content_id:
                waiting.append(parent)
            else:
                problems.append(f"{artifact.ref} was made from another {named.ref} than the one that is there now")
    return sorted(found.values(), key=lambda artifact: (place_kind(artifact.kind), artifact.version))


def _read_evaluation(artifact: Artifact, problems: list[str]) -> Evaluation | None:
    try:
        found = Evaluation.model_validate_json(read_bounded(artifact.path / EVALUATION_FILE, _MAX_EVALUATION_BYTES))
        _require_finite(found.model_dump())
    except (OSError, ValidationError, ValueError) as error:
        reason = (
            error.strerror if isinstance(error, OSError) else f"{error.errors()[0]['msg']}" if isinstance(error, ValidationError) else error
        )
        problems.append(f"{artifact.ref}: {EVALUATION_FILE}: {reason}; evaluate again with this version")
        return None
    plain = found.model_dump()
    redacted = redact_values(plain)
    return found if redacted is plain else Evaluation.model_validate(redacted)


def _require_finite(value: Any, place: str = "") -> None:
    """Refuse a number that nothing can be drawn of.

    Raises:
        ValueError: with its place.
    """
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{place.removeprefix('.')}: found {value}; needed a finite number")
    if isinstance(value, dict):
        for name, part in cast("dict[str, Any]", value).items():
            _require_finite(part, f"{place}.{name}")
    elif isinstance(value, (list, tuple)):
        for index, part in enumerate(cast("Sequence[Any]", value)):
            _require_finite(part, f"{place}.{index}")


def _without_secrets(artifact: Artifact) -> Artifact:
    """Blot secrets out of the free texts of a manifest."""
    manifest = artifact.manifest
    names = ("data", "config", "packages", "device", "metrics", "facts", "counts")
    plain = {name: getattr(manifest, name) for name in names}
    redacted = redact_values(plain)
    return artifact if redacted is plain else replace(artifact, manifest=manifest.model_copy(update=redacted))


def _find_failures(store: Store, subject: Artifact | None) -> tuple[dict[str, Any], ...]:
    """List the runs that ended without an artifact since the subject was made, of the stages that follow or make it, one for each stage."""
    after = _stages_after(subject.kind if subject else None)
    since = subject.manifest.created_utc if subject else ""
    failures: dict[str, dict[str, Any]] = {}
    settled: set[str] = set()
    for row in list_runs(store):  # newest first
        if row["outcome"] == "published":
            settled.add(row["stage"])
        elif row["outcome"] in _UNFINISHED and row["stage"] in after and row["stage"] not in settled and row["start"][:19] >= since[:19]:
            failures.setdefault(row["stage"], row)
    return tuple(redact_values(list(failures.values())))


def _stages_after(kind: str | None) -> Sequence[str]:
    stages = list(STAGES)
    return stages[stages.index(kind) :] if kind in stages else [] if kind == EVALUATION_KIND else stages
