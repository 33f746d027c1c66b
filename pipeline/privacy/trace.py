"""Records -> the artifacts that learnt from them, directly or through those that they were made from."""

import json
import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from data.fields import Columns, FieldError, present_columns
from data.file_kinds import FILE_FORMATS, OTHER_FILES
from data.formats.table import ALL_COLUMNS, OWN, recognise
from data.identity import ask_for
from data.records import parse_row
from data.rows import read_rows
from data.schema import KINDS, DataError, Problem, Record, RecordKind
from pipeline.privacy.lists import count_listed, list_path
from pipeline.store.artifact import Artifact, add_ancestors
from pipeline.store.disk import expand_home
from pipeline.store.store import Store
from stages.spec import ARTIFACT_KINDS, MODEL_KINDS, RANKINGS_KIND, STAGES, DataSource

_MAX_PATH_CHARS = 4095
_FILE_ENDINGS = {Path(f"a{ending}").suffix for ending in (*FILE_FORMATS, *OTHER_FILES)}
_NEEDED = 'needed a file of records that can be read; correct its name, or, if it is a text, give {"prompt": "..."}'
_CLAIMED = "an object with the columns of a record"


@dataclass(frozen=True)
class Trace:
    """What is known of one artifact.

    Args:
        artifact: The artifact.
        sets: The record sets that hold what was asked for -> how many of the hashes that were asked for.
        through: Those of its ancestors that hold it in a set of their own.
        unknown: Record sets of which no list is kept here, so that it is not known what they hold.
    """

    artifact: Artifact
    sets: dict[str, int]
    through: list[str]
    unknown: list[str]

    @property
    def learnt(self) -> bool:
        """Whether it learnt from a record, was tested on one, or stands on one that did."""
        return bool(self.sets or self.through)

    @property
    def uses(self) -> list[str]:
        """What it has to do with the records, a phrase each: `learnt from demonstrations.train`; answers and rankings hold them alone."""
        held = list(self.sets) if self.artifact.kind in (STAGES["sample"].kind, RANKINGS_KIND) else []
        tested = [name for name in self.sets if name not in held and (name.endswith(".eval") or self.artifact.kind not in MODEL_KINDS)]
        learnt = [name for name in self.sets if name not in (*held, *tested)]
        found = {"learnt from": learnt, "was tested on": tested, "holds some of": held, "stands on": self.through}
        return [f"{how} {' and '.join(names)}" for how, names in found.items() if names]


def read_asked(text: str) -> list[Record]:
    """Read the records to look for: of a file (JSONL, JSON, Parquet), of a JSON object, or of a text, which then is a prompt or document.

    A row is looked for as all kinds that it can be read as.

    Raises:
        DataError: There is no record in it, with every line that holds none.
    """
    problems: list[Problem] = []
    if (path := _find_file(text)) is not None:
        rows = read_rows(DataSource.model_validate({"path": str(path)}), ALL_COLUMNS, problems.append)
        asked = [record for where, row in rows for record in _read_row(where, row, problems)]
        return _require(asked, problems, text)
    row: object = {"prompt": text, "text": text}
    if text.lstrip().startswith(("{", "[")):
        with suppress(ValueError, RecursionError):
            row = json.loads(text)
    return _require(list(_read_row("RECORD", row, problems)), problems, text)


def _find_file(text: str) -> Path | None:
    """Find the file that is named; None where it is a text. A name that was mistyped must not be looked for, or forgotten, as a text.

    Raises:
        DataError: It names no file, and is hardly a text either.
    """
    if "\n" in text or not 0 < len(text) <= _MAX_PATH_CHARS:
        return None
    path = expand_home(text)
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:
        if path.suffix in _FILE_ENDINGS or os.path.lexists(path):
            reason = error.strerror if isinstance(error, OSError) else error
            raise DataError([Problem(text[:80], "", f"{reason}; {_NEEDED}")]) from error
        return None
    if not stat.S_ISREG(mode):
        raise DataError([Problem(text[:80], "", f"found no plain file; {_NEEDED}")])
    return path


def _require(asked: list[Record], problems: list[Problem], text: str) -> list[Record]:
    if problems or not asked:
        raise DataError(problems or [Problem(text[:80], "", f"found no record; needed {_CLAIMED}, a file of them, or a text")])
    return asked


def _read_row(where: str, row: object, problems: list[Problem]) -> Iterator[Record]:
    columns, found = present_columns(row), 0
    for kind in KINDS:
        with suppress(FieldError):
            for own in _convert(columns, kind):
                for record in parse_row(own, kind):
                    found += 1
                    yield record
    if not found:
        problems.append(Problem(where, "", f"found no record of any kind; needed {_CLAIMED}, such as prompt and completion; mend the line"))


def _convert(columns: Columns, kind: RecordKind) -> list[Columns]:
    form = recognise(columns, kind) or OWN
    return form.convert(columns, kind) if kind in form.kinds and form.gather is None else [columns]


def hash_asked(asked: list[Record], secret: bytes) -> set[bytes]:
    """Hash what is looked for."""
    return {digest for record in asked for digest in ask_for(record, secret)}


def trace(store: Store, wanted: set[bytes], secret: bytes) -> list[Trace]:
    """Find out of each artifact of a store whether it learnt from records, by their hashes; in the order of `rlhf ls`."""
    counted: dict[Path, int | None] = {}
    direct: dict[str, Trace] = {}
    for artifact in store.list():
        sets: dict[str, int] = {}
        unknown = [] if artifact.manifest.data or artifact.kind not in ARTIFACT_KINDS else ["all its data"]
        for name, fingerprint in artifact.manifest.data.items():
            path = list_path(store.root, name.partition(".")[0], fingerprint)
            if path is None:  # held out of the training records
                continue
            if path not in counted:
                counted[path] = count_listed(path, secret, wanted)
            count = counted[path]
            if count is None:
                unknown.append(name)
            elif count:
                sets[name] = count
        direct[artifact.ref] = Trace(artifact, sets, [], unknown)
    known = {ref: found.artifact for ref, found in direct.items()}
    for ref, found in direct.items():
        above = add_ancestors([ref], known) - {ref}
        found.through.extend(sorted(each for each in above if each in direct and direct[each].sets))
    return list(direct.values())
