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
from data.schema import RecordKind
from data.validate import Findings, check
from stages.spec import DataSplits

NOTES_DIR = "notes"


@dataclass(frozen=True)
class Reading:
    """What was read of one kind: the content hash of each split, and what the checks found."""

    fingerprints: dict[str, str]
    findings: Findings


def read_data(
    kind: RecordKind,
    splits: DataSplits,
    eval_fraction: float,
    seed: int,
    *,
    store_root: Path,
    trust_notes: bool = False,
    keep_note: bool = True,
) -> Reading:
    """Read, split, check and hash the records of one kind.

    Raises:
        DataError: With every bad line.
    """
    note_path = _note_path(store_root, kind, splits, eval_fraction, seed)
    if trust_notes and note_path is not None and (noted := _recall(note_path)):
        return noted
    train, held_out = load_and_split(splits.train, splits.eval, kind, eval_fraction=eval_fraction, seed=seed)
    reading = Reading({"train": fingerprint(train), "eval": fingerprint(held_out)}, check({"train": train, "eval": held_out}))
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
        return Reading(noted["fingerprints"], Findings(found["counts"], tuple(found["errors"]), tuple(found["warnings"])))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _note_path(store_root: Path, kind: str, splits: DataSplits, eval_fraction: float, seed: int) -> Path | None:
    """Name the note after all that it depends on; None where that is not files alone."""
    described: list[Any] = [kind] if splits.eval else [kind, eval_fraction, seed]
    for source in filter(None, (splits.train, splits.eval)):
        try:
            status = Path(source.path).stat()
        except OSError:
            return None
        if not Path(source.path).is_file():
            return None
        described.append([source.path, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns])
    digest = hashlib.sha256(json.dumps(described).encode()).hexdigest()
    return store_root / NOTES_DIR / f"{kind}-{digest[:32]}.json"
