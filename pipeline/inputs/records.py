"""Record sets -> what the pipeline needs to know of them: content hash and findings.

A run always reads the files, and notes what it found. `rlhf plan` trusts those notes where the files' size, times and inode are as noted.
"""

import hashlib
import json
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from data.fingerprint import fingerprint
from data.load import load_and_split
from data.reading import SourceReport
from data.schema import Problem, RecordKind
from data.validate import Findings, check
from stages.spec import DataSplits

NOTES_DIR = "notes"


@dataclass(frozen=True)
class Reading:
    """What was read of one kind.

    Args:
        fingerprints: Split -> content hash.
        findings: What the checks found.
        told: A line for each source: its format, and what of it was joined, left out or skipped.
        notable: Those lines that say more than that a source is in our own columns.
        skipped: The bad lines that were skipped.
    """

    fingerprints: dict[str, str]
    findings: Findings
    told: tuple[str, ...] = ()
    notable: tuple[str, ...] = ()
    skipped: tuple[Problem, ...] = ()


def read_data(
    kind: RecordKind,
    splits: DataSplits,
    eval_fraction: float,
    seed: int,
    *,
    skip_bad: int = 0,
    store_root: Path,
    trust_notes: bool = False,
    keep_note: bool = True,
) -> Reading:
    """Read, split, check and hash the records of one kind.

    Raises:
        DataError: With every bad line.
    """
    note_path = _note_path(store_root, kind, splits, eval_fraction, seed, skip_bad)
    if trust_notes and note_path is not None and (noted := _recall(note_path)):
        return noted
    reports: list[SourceReport] = []
    train, held_out = load_and_split(
        splits.train, splits.eval, kind, eval_fraction=eval_fraction, seed=seed, skip_bad=skip_bad, reports=reports
    )
    reading = Reading(
        {"train": fingerprint(train), "eval": fingerprint(held_out)},
        check({"train": train, "eval": held_out}),
        tuple(report.line() for report in reports),
        tuple(report.line() for report in reports if not report.is_plain),
        tuple(bad for report in reports for bad in report.skipped),
    )
    if keep_note and note_path is not None:
        with suppress(OSError):  # a read-only store: the next plan reads again
            note_path.parent.mkdir(parents=True, exist_ok=True)
            draft = note_path.with_suffix(".tmp")
            draft.write_text(json.dumps(asdict(reading)), encoding="utf-8")
            draft.replace(note_path)
    return reading


def _recall(note_path: Path) -> Reading | None:
    try:
        noted: dict[str, Any] = json.loads(note_path.read_text(encoding="utf-8"))
        found = noted["findings"]
        findings = Findings(found["counts"], tuple(found["errors"]), tuple(found["warnings"]))
        skipped = tuple(Problem(**bad) for bad in noted["skipped"])
        return Reading(noted["fingerprints"], findings, tuple(noted["told"]), tuple(noted["notable"]), skipped)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _note_path(store_root: Path, kind: str, splits: DataSplits, eval_fraction: float, seed: int, skip_bad: int) -> Path | None:
    """Name the note after all that it depends on; None where that is not files alone."""
    described: list[Any] = [kind, skip_bad] if splits.eval else [kind, skip_bad, eval_fraction, seed]
    for source in filter(None, (splits.train, splits.eval)):
        try:
            status = Path(source.path).stat()
        except OSError:
            return None
        if not Path(source.path).is_file():
            return None
        described.append(
            [source.path, source.format, source.columns, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]
        )
    digest = hashlib.sha256(json.dumps(described).encode()).hexdigest()
    return store_root / NOTES_DIR / f"{kind}-{digest[:32]}.json"
