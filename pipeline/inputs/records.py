"""Record sets -> what the pipeline needs to know of them: content hash and findings. Records are read one by one; none is held.

What was found is noted, with size, times and hash of the files. A run that finds files of the same bytes takes the note; `rlhf plan` takes
it where their size, times and inode are as noted.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from data.fingerprint import Fingerprint
from data.load import stream_records
from data.reading import SourceReport, report_on
from data.redact import COUNTED, RULES_VERSION, RedactKind
from data.schema import DataError, Problem, RecordKind
from data.treatment import FORGOTTEN, make_treatment
from data.validate import Checker, Findings
from pipeline.errors import ResourceError
from pipeline.privacy.lists import find_forgotten, list_path, name_forgotten, open_secret, write_list
from pipeline.store.disk import hash_file
from pipeline.store.parts import NOTES_DIR
from stages.lines import to_line
from stages.spec import DataSource, DataSplits

# Raised by hand when the code reads other records, or finds something else, in the same files.
_NOTES_VERSION = 4
_TELL_EVERY = 1000  # records
_TREATED = (FORGOTTEN, *COUNTED.values())

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
        treated: How many records were left out as forgotten, and what was blotted out of the others.
    """

    fingerprints: dict[str, str]
    findings: Findings
    told: tuple[str, ...] = ()
    notable: tuple[str, ...] = ()
    skipped: tuple[Problem, ...] = ()
    treated: dict[str, int] = field(default_factory=dict[str, int])


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
    redact: Sequence[RedactKind] = (),
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
        redact: Personal details to blot out.
        store_root: Where notes are kept, and what of the records was learnt from (`pipeline.privacy`).
        trust_notes: Take a note without reading a file whose size, times and inode are as noted.
        keep_note: Note what was found.
        told: Hears now and then how many records are read.

    Raises:
        DataError: With every bad line.
    """
    sources = {split: source for split, source in (("train", splits.train), ("eval", splits.eval)) if source is not None}
    files = _list_files(sources.values())
    note_path = _note_path(store_root, kind, splits, eval_fraction, skip_bad, redact)
    noted = None if files is None else recall_note(note_path)
    if files is not None and noted is not None and trust_notes and [file.status for file in noted[0]] == [_status(file) for file in files]:
        return noted[1]
    found_files = None if files is None or trust_notes else [_Noted(str(file), _status(file), hash_file(file)[1]) for file in files]
    same_files = (
        found_files and noted and [(file.path, file.sha256) for file in found_files] == [(file.path, file.sha256) for file in noted[0]]
    )
    if same_files and noted and (not keep_note or _are_listed(store_root, kind, sources, noted[1])):
        reading = noted[1]
    else:
        reading = _read(kind, sources, eval_fraction, skip_bad, redact, store_root, told, keep_lists=keep_note)
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


def _are_listed(store_root: Path, kind: str, sources: Iterable[str], reading: Reading) -> bool:
    """Whether it is known which records these sets hold: a store of an earlier version has no lists."""
    paths = [list_path(store_root, kind, reading.fingerprints[split]) for split in sources]
    return all(path is not None and path.exists() for path in paths)


def _read(
    kind: RecordKind,
    sources: dict[str, DataSource],
    eval_fraction: float,
    skip_bad: int,
    redact: Sequence[RedactKind],
    store_root: Path,
    told: Told,
    *,
    keep_lists: bool,
) -> Reading:
    secret = _find_secret(store_root, keep_lists)
    checker = Checker()
    fingerprints: dict[str, str] = {}
    reports: list[SourceReport] = []
    problems: list[Problem] = []
    count = 0
    for split, source in sources.items():
        checker.begin(split)
        content, digests = Fingerprint(), bytearray()

        def collect(found: list[bytes], digests: bytearray = digests) -> None:
            digests.extend(b"".join(found))

        treat = make_treatment(redact, find_forgotten(store_root), secret=secret, collect=collect if secret else None)
        try:
            reports.append(report_on(source))
            for _, record in stream_records(source, kind, reports[-1], skip_bad, treat):
                checker.add(split, record)
                content.add(record)
                count += 1
                if count % _TELL_EVERY == 0:
                    told(kind, count)
        except DataError as error:
            problems += error.problems
        fingerprints[split] = content.text
        if secret is not None and not problems:
            with suppress(OSError):  # a read-only store: the next run reads again
                write_list(store_root, kind, content.text, digests, secret)
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
        dict(sum((report.counts for report in reports), Counter[str]()) & Counter(dict.fromkeys(_TREATED, 2**62))),
    )


def _find_secret(store_root: Path, keep_lists: bool) -> bytes | None:
    """Return what records are hashed with, where a list of them is to be kept."""
    if not keep_lists:
        return None
    try:
        return open_secret(store_root)
    except ResourceError:  # a read-only store: the next run reads again
        return None


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
        return files, Reading(
            noted["fingerprints"], findings, tuple(noted["told"]), tuple(noted["notable"]), skipped, noted.get("treated", {})
        )
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None


def _seal(note: str) -> str:
    return hashlib.sha256(note.encode()).hexdigest()


def _note_path(store_root: Path, kind: str, splits: DataSplits, eval_fraction: float, skip_bad: int, redact: Sequence[str]) -> Path:
    """Name the note after all that it depends on, but for the files."""
    described: list[Any] = [_NOTES_VERSION, kind, splits.model_dump(mode="json"), skip_bad, None if splits.eval else eval_fraction]
    if (forgotten := name_forgotten(store_root)) or redact:
        described += [[*sorted(redact), RULES_VERSION] if redact else [], forgotten]
    digest = hashlib.sha256(json.dumps(described).encode()).hexdigest()
    return store_root / NOTES_DIR / f"{kind}-{digest[:32]}.json"
