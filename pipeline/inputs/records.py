"""Record sets -> what the pipeline needs to know of them: content hash and findings. Records are read one by one; none is held.

What was found is noted, with size, times and hash of the files. A run that finds files of the same bytes takes the note; `rlhf plan` takes
it where their size, times and inode are as noted.
"""

import hashlib
import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from data.fingerprint import Fingerprint
from data.load import stream_records
from data.reading import SourceReport, report_on
from data.schema import DataError, Problem, RecordKind
from data.validate import Checker, Findings
from pipeline.store.disk import hash_file
from stages.lines import to_line
from stages.spec import DataSource, DataSplits

NOTES_DIR = "notes"
# Raised by hand when the code reads other records, or finds something else, in the same files.
_NOTES_VERSION = 2
_TELL_EVERY = 1000  # records

Told = Callable[[str, int], None]  # kind, records read so far


@dataclass(frozen=True)
class Reading:
    """What was read of one kind.

    Args:
        fingerprints: `train` and `eval` -> content hash of that source, or what stands for held-out records that have none.
        findings: What the checks found; its counts say how many records each source has.
        told: A line for each source: its format, and what of it was joined, left out or skipped.
        notable: Those lines that say more than that a source is in our own columns.
        skipped: The bad lines that were skipped.
    """

    fingerprints: dict[str, str]
    findings: Findings
    told: tuple[str, ...] = ()
    notable: tuple[str, ...] = ()
    skipped: tuple[Problem, ...] = ()


@dataclass(frozen=True)
class _Noted:
    """A file as it was when it was read."""

    path: str
    status: list[int]
    sha256: str


def read_data(
    kind: RecordKind,
    splits: DataSplits,
    eval_fraction: float,
    *,
    skip_bad: int = 0,
    store_root: Path,
    trust_notes: bool = False,
    keep_note: bool = True,
    told: Told = lambda kind, count: None,
) -> Reading:
    """Read, check and hash the records of one kind; or recall what was found.

    Args:
        kind: What each row must hold.
        splits: The sources.
        eval_fraction: Share to hold out, where the held-out records have no source.
        skip_bad: Most bad lines to skip, of each source.
        store_root: Where notes are kept.
        trust_notes: Take a note without reading a file whose size, times and inode are as noted.
        keep_note: Note what was found.
        told: Hears now and then how many records are read.

    Raises:
        DataError: With every bad line.
    """
    sources = {split: source for split, source in (("train", splits.train), ("eval", splits.eval)) if source is not None}
    files = _list_files(sources.values())
    note_path = _note_path(store_root, kind, splits, eval_fraction, skip_bad)
    noted = None if files is None else recall_note(note_path)
    if files is not None and noted is not None and trust_notes and [file.status for file in noted[0]] == [_status(file) for file in files]:
        return noted[1]
    found_files = None if files is None or trust_notes else [_Noted(str(file), _status(file), hash_file(file)[1]) for file in files]
    if found_files and noted and [(file.path, file.sha256) for file in found_files] == [(file.path, file.sha256) for file in noted[0]]:
        reading = noted[1]
    else:
        reading = _read(kind, sources, eval_fraction, skip_bad, told)
    if (
        keep_note
        and found_files is not None
        and [file.status for file in found_files] == [_status(Path(file.path)) for file in found_files]
    ):
        with suppress(OSError):  # a read-only store: the next run reads again
            note_path.parent.mkdir(parents=True, exist_ok=True)
            draft = note_path.with_suffix(".tmp")
            note = to_line({"files": [asdict(file) for file in found_files], **asdict(reading)}).rstrip("\n")
            draft.write_text(f"{_seal(note)}\n{note}", encoding="utf-8")
            draft.replace(note_path)
    return reading


def _read(kind: RecordKind, sources: dict[str, DataSource], eval_fraction: float, skip_bad: int, told: Told) -> Reading:
    checker = Checker()
    fingerprints: dict[str, str] = {}
    reports: list[SourceReport] = []
    problems: list[Problem] = []
    count = 0
    for split, source in sources.items():
        checker.begin(split)
        content = Fingerprint()
        try:
            reports.append(report_on(source))
            for _, record in stream_records(source, kind, reports[-1], skip_bad):
                checker.add(split, record)
                content.add(record)
                count += 1
                if count % _TELL_EVERY == 0:
                    told(kind, count)
        except DataError as error:
            problems += error.problems
        fingerprints[split] = content.text
    if problems:
        raise DataError(problems)
    # Which records are held out follows from these, the seed and the length limits, and all that is in the cache key.
    fingerprints.setdefault("eval", f"{eval_fraction:g} of the conversations in train")
    return Reading(
        fingerprints,
        checker.findings(),
        tuple(report.line() for report in reports),
        tuple(report.line() for report in reports if not report.is_plain),
        tuple(bad for report in reports for bad in report.skipped),
    )


def _list_files(sources: Any) -> list[Path] | None:
    """List the files that hold the records; None where they come from a hub, or cannot be found."""
    files: list[Path] = []
    for source in sources:
        path = Path(source.path).expanduser()
        if path.is_dir():
            files += sorted(file for file in path.rglob("*") if file.is_file())
        elif path.is_file():
            files.append(path)
        else:
            return None
    return files


def _status(file: Path) -> list[int]:
    try:
        status = file.stat()
    except OSError:
        return []
    return [status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]


def recall_note(note_path: Path) -> tuple[list[_Noted], Reading] | None:
    """Read what was found in files; None where nothing is noted, or the note is damaged."""
    try:
        seal, _, note = note_path.read_text(encoding="utf-8").partition("\n")
        if seal != _seal(note):  # it was changed, or is of an earlier version
            return None
        noted: dict[str, Any] = json.loads(note)
        found = noted["findings"]
        files = [_Noted(**file) for file in noted["files"]]
        findings = Findings(found["counts"], tuple(found["errors"]), tuple(found["warnings"]))
        skipped = tuple(Problem(**bad) for bad in noted["skipped"])
        return files, Reading(noted["fingerprints"], findings, tuple(noted["told"]), tuple(noted["notable"]), skipped)
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None


def _seal(note: str) -> str:
    return hashlib.sha256(note.encode()).hexdigest()


def _note_path(store_root: Path, kind: str, splits: DataSplits, eval_fraction: float, skip_bad: int) -> Path:
    """Name the note after all that it depends on, but for the files."""
    described: list[Any] = [_NOTES_VERSION, kind, splits.model_dump(mode="json"), skip_bad, None if splits.eval else eval_fraction]
    digest = hashlib.sha256(json.dumps(described).encode()).hexdigest()
    return store_root / NOTES_DIR / f"{kind}-{digest[:32]}.json"
