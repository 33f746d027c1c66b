"""What annotators have said: a file of lines that only grows, each on the disk before the annotator sees the next item.

A line is a `Judgement`, or an `Undo` of one. Several processes may write: each line is written whole under a lock. A line that a killed
writer left torn is the last one, and is closed off before the next is written.
"""

import fcntl
import hashlib
import os
import secrets
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter, ValidationError, field_validator

from pipeline.errors import StoreError
from pipeline.store.disk import write_all, writing
from stages.blocks import Closed
from stages.lines import to_line
from stages.spec import EXIT_USAGE

Outcome = Literal["ranked", "cannot say", "skipped"]


_MAX_NAME = 100
ELSEWHERE = "give --journal FILE, with what was said so far copied there"  # where a journal cannot be written


class Judgement(Closed):
    """What one annotator said of one answer set, once."""

    kind: Literal["judgement"] = "judgement"
    id: str = Field(pattern=r"^[0-9a-f]{32}$", description="Made by the page: the same one sent twice counts once.")
    item: str = Field(max_length=64, description="`AnswerSet.id`.")
    annotator: str = Field(min_length=1, max_length=_MAX_NAME)
    order: tuple[int, ...] = Field(
        max_length=9, description="The answers in the order in which they were shown; empty: not known, or in both."
    )
    outcome: Outcome
    ranks: tuple[int, ...] | None = Field(None, description="Of the answers in the file's order: 1 is best, equal ones are ties.")
    partial: bool = Field(False, description="Answers that were not named share the last rank: the rest is worse.")
    grade: Annotated[int, Field(ge=1, le=7)] | None = Field(None, description="Of the best answer, 7 is best.")
    grades: tuple[Annotated[int, Field(ge=1, le=7)] | None, ...] | None = Field(
        None, max_length=9, description="Of each answer in the file's order, where a study asks for them."
    )
    flags: dict[Annotated[str, Field(min_length=1, max_length=1000)], tuple[int, ...]] = Field(
        default_factory=dict, description="Flag -> the answers that have it, each once."
    )
    reason: str = Field("", max_length=1000, description="Why it was skipped.")
    note: str = Field("", max_length=10_000)
    seconds: float = Field(0.0, ge=0, le=1e6, description="For which the page was looked at.")
    repeat: bool = Field(False, description="The annotator has ranked it before: for agreement with oneself.")
    model: str = Field("", max_length=200, description="The language model that judged; empty: a person did.")
    pairs: dict[str, int] = Field(default_factory=dict, description="By a model: how many pairs it `agreed` on in both orders, and so on.")
    judge: str = Field("", max_length=64, description="By a model: a hash of what its verdicts depend on: guidelines, address, request.")
    cost: float = Field(0.0, ge=0, description="By a model: what its replies cost, in the currency of the prices given.")
    tool: str = Field("", max_length=40, description="From whose export it was imported; empty: it was said here.")
    key: str = Field("", max_length=64, description="In the first line of a journal: random, from which pseudonyms follow; never shown.")
    time: float

    @field_validator("flags")
    @classmethod
    def _flags_mark_once(cls, flags: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
        return {flag: tuple(dict.fromkeys(marked)) for flag, marked in flags.items()}


def check_annotators(names: Sequence[str]) -> None:
    """Look at who is to rank, before anybody does.

    Raises:
        StoreError: A name is none that a journal keeps, or stands there twice.
    """
    for place, name in enumerate(names):
        if not name.isprintable() or name != name.strip() or not 1 <= len(name) <= _MAX_NAME:
            needed = f"needed one of 1 to {_MAX_NAME} characters in a line, without blanks around it; write it so"
            raise StoreError(f"--annotator: found the name {name[:40]!r} of {len(name)} characters; {needed}", EXIT_USAGE)
        if name in names[:place]:
            raise StoreError(f"--annotator: found {name} twice; needed each once; leave one away", EXIT_USAGE)


class Undo(Closed):
    """Takes a judgement back."""

    kind: Literal["undo"] = "undo"
    id: str
    annotator: str
    time: float


_LINE: TypeAdapter[Judgement | Undo] = TypeAdapter(Annotated[Judgement | Undo, Field(discriminator="kind")])


class Journal:
    """A journal that is open to be read on and added to.

    Args:
        path: The file; made at the first line.

    Raises:
        StoreError: It holds a line that is none of a journal.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.judgements: dict[str, Judgement] = {}  # that stand, by id, as they came
        self._read_to, self._line, self._key = 0, 0, ""
        self.read()

    def read(self) -> list[Judgement | Undo]:
        """Read what others have added since; a line that is not whole yet stays for the next time."""
        if not self.path.exists():
            return []
        if self.path.is_dir():
            raise StoreError(f"{self.path}: found a directory; needed a file of judgements; give another --journal", EXIT_USAGE)
        with self.path.open("rb") as stream:
            stream.seek(self._read_to)
            added = list(self._take(stream.read()))
        return added

    def list_of(self, items: Collection[str]) -> list[Judgement]:
        """List the judgements of these sets that stand, as they came."""
        return [each for each in self.judgements.values() if each.item in items]

    def name_secretly(self, name: str) -> str:
        """Give an annotator a pseudonym, the same in all that is ever said of this journal.

        Its key is random and stands in the journal alone: names cannot be found by trying them. (Ids of judgements stand in exports, and
        those of a model or of an import follow from what they say.)
        """
        key = self._key or next(iter(self.judgements))  # a journal that began without a key, and was not written to since
        return "#" + hashlib.sha256(f"{key}\0{name}".encode()).hexdigest()[:8]

    def add(self, line: Judgement | Undo, refuse: Callable[[], bool] = lambda: False) -> bool:
        """Write a line to the disk.

        Args:
            line: What to write.
            refuse: Asked once all that others have written is known, and nobody else can write.

        Returns:
            False where it was refused, stands there already, or takes back what does not stand.

        Raises:
            ResourceError: The disk is full, or may not be written to.
        """
        with self._writing() as descriptor:
            if (line.id in self.judgements) == isinstance(line, Judgement) or refuse():
                return False
            _append(descriptor, self._with_key([line]))
        self.read()
        return True

    def add_all(self, lines: Sequence[Judgement | Undo]) -> None:
        """Write lines to the disk in one piece, all or none.

        Raises:
            ResourceError: The disk is full, or may not be written to.
        """
        if lines:
            with self._writing() as descriptor:
                _append(descriptor, self._with_key(lines))
            self.read()

    @contextmanager
    def hold(self) -> Generator[None]:
        """Inside, nobody else writes, nor holds it: of two that publish what stands here, one comes after the other.

        It is there, and need not be writable.
        """
        with writing(self.path, elsewhere=ELSEWHERE):
            descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            with suppress(OSError):  # a network's file system may lock nothing that is only read
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _with_key(self, lines: Sequence[Judgement | Undo]) -> Sequence[Judgement | Undo]:
        """Give the first judgement of a journal the key."""
        first, *rest = lines
        if self._key or not isinstance(first, Judgement):
            return lines
        return [first.model_copy(update={"key": secrets.token_hex(16)}), *rest]

    @contextmanager
    def _writing(self) -> Generator[int]:
        """Inside, nobody else writes, and all that others have written is known: of two tabs one wins."""
        with writing(self.path, elsewhere=ELSEWHERE):
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                self.read()
                yield descriptor
            finally:
                os.close(descriptor)

    def _take(self, data: bytes) -> Iterator[Judgement | Undo]:
        whole, newline, _ = data.rpartition(b"\n")
        self._read_to += len(whole) + len(newline)
        for content in whole.split(b"\n") if newline else ():
            self._line += 1
            if not content.strip():
                continue
            try:
                line = _LINE.validate_json(content)
            except ValidationError as error:
                where, what = f"{self.path}:{self._line}", error.errors()[0]
                if what["type"] == "json_invalid" and "EOF" in what["msg"]:  # its writer was killed
                    continue
                raise StoreError(f"{where}: found no judgement ({what['msg']}); needed lines of a journal; mend it", EXIT_USAGE) from error
            if isinstance(line, Judgement):
                self._key = self._key or line.key
                line = line.model_copy(update={"key": ""}) if line.key else line
                self.judgements[line.id] = line
            else:
                self.judgements.pop(line.id, None)
            yield line


def _append(descriptor: int, lines: Sequence[Judgement | Undo]) -> None:
    size = os.fstat(descriptor).st_size
    torn = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
    content = "".join(to_line(line.model_dump(exclude_defaults=True) | {"kind": line.kind}) for line in lines)
    _write_whole(descriptor, b"\n" * torn + content.encode(), size)


def _write_whole(descriptor: int, content: bytes, size: int) -> None:
    """Append and flush to the disk; where not all of it went in, nothing stays."""
    try:
        write_all(descriptor, content)
        os.fsync(descriptor)
    except OSError:
        os.ftruncate(descriptor, size)
        raise
