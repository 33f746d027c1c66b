"""What answers people rank, and where their judgements go: a file and a journal beside it, or an artifact and a journal in the store.

answers.jsonl                    answers.rankings.jsonl
answers@v1                       <store>/judgements/<content id>.jsonl, as an artifact is read-only
"""

import errno
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from data.answers import AnswerSet, iter_answer_sets
from pipeline.errors import StoreError
from pipeline.store.artifact import Artifact
from pipeline.store.directory import open_root
from pipeline.store.disk import expand_home, writing
from pipeline.store.parts import JOURNALS_DIR
from pipeline.store.store import Store
from stages.spec import ANSWERS_FILE, EXIT_USAGE, STAGES, DataSource

ANSWERS_KIND = STAGES["sample"].kind
_REF = re.compile(rf"{ANSWERS_KIND}(@.+)?")
_ID_CHARS = 16


@dataclass(frozen=True)
class AnswersPlace:
    """Answers, and the journal of what is said of them.

    Args:
        sets: By id, in the order of the file.
        journal: Made at the first judgement.
        artifact: The answers, where they are one.
        store_root: Of the store that keeps the journal; None: it lies beside the answers.
    """

    sets: Mapping[str, AnswerSet]
    journal: Path
    artifact: Artifact | None = None
    store_root: Path | None = None

    def make_room(self) -> None:
        """Make the directory of a journal that lies in the store; another's is looked at, before anybody ranks.

        Raises:
            ResourceError: It cannot be made or written to, is not there, or is a link.
        """
        with writing(self.journal):
            if self.store_root is not None:
                with open_root(self.store_root, create=True) as store, store.enter(JOURNALS_DIR, create=True):
                    return
            place = self.journal if self.journal.exists() else self.journal.parent
            if not os.access(place, os.W_OK):
                code = errno.EACCES if place.exists() else errno.ENOENT
                raise OSError(code, os.strerror(code), str(self.journal))


def find_answers(store: Store, answers: Path | str, journal: Path | None = None) -> AnswersPlace:
    """Find answers by file or by ref; a file of that name comes first.

    Args:
        store: Where refs are looked up.
        answers: As it was typed.
        journal: Another place for judgements.

    Raises:
        StoreError: There is no such file (exit 2) or artifact (exit 4), or it is damaged or withdrawn (exit 3).
        DataError: With every line that is no answer set.
    """
    path = expand_home(answers)
    if not path.exists() and names_answers(answers):
        artifact = store.require_verified(store.get(str(answers)).ref)
        kept = expand_home(journal) if journal else find_journal(store, artifact)
        return AnswersPlace(_read(artifact.path / ANSWERS_FILE), kept, artifact, None if journal else store.root)
    if not path.is_file():  # never looked up on a hub, as data sources are
        found = "a directory" if path.is_dir() else "no such file"
        raise StoreError(f"{path}: {found}; a file of answers, or an artifact such as {ANSWERS_KIND}@v1, is needed; give one", EXIT_USAGE)
    beside = path.with_name(path.name.removesuffix(".gz").rpartition(".")[0] + ".rankings.jsonl")
    return AnswersPlace(_read(path), expand_home(journal) if journal else beside)


def names_answers(answers: Path | str) -> bool:
    """Whether this reads as the ref of an artifact of answers."""
    return _REF.fullmatch(str(answers)) is not None


def find_journal(store: Store, answers: Artifact) -> Path:
    """Say where what is said of an artifact of answers is kept: by its content, whatever its number."""
    return store.root / JOURNALS_DIR / f"{answers.content_id[:_ID_CHARS]}.jsonl"


def _read(path: Path) -> dict[str, AnswerSet]:
    return {each.id: each for each in iter_answer_sets(DataSource.model_validate({"path": str(path)}))}
