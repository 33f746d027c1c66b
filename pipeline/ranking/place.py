"""What answers people rank, and where their judgements go: a file and a journal beside it, or an artifact and a journal in the store.

answers.jsonl                    answers.rankings.jsonl
answers@v1                       <store>/judgements/<content id>.jsonl, as an artifact is read-only

Sets of records that were forgotten in the store are left out, whoever ranks. Answers that are withdrawn are still there for what people
said of the others: that work is not lost with one record.
"""

import errno
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from data.answers import AnswerSet, iter_answer_sets
from data.schema import Comparison, Prompt
from data.treatment import make_treatment
from pipeline.errors import StoreError
from pipeline.privacy.lists import find_forgotten
from pipeline.ranking.journal import ELSEWHERE, Judgement
from pipeline.store.artifact import Artifact
from pipeline.store.directory import open_root
from pipeline.store.disk import expand_home, writing
from pipeline.store.parts import JOURNALS_DIR
from pipeline.store.store import Store
from pipeline.text import count
from stages.spec import ANSWERS_FILE, EXIT_USAGE, EXIT_VERIFICATION, STAGES, DataSource

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
        forgotten: The sets that are left out, by id.
        withdrawn: The artifact, where it is withdrawn, and those of its ancestors that are: models, which may quote what they learnt.
    """

    sets: Mapping[str, AnswerSet]
    journal: Path
    artifact: Artifact | None = None
    store_root: Path | None = None
    forgotten: Mapping[str, AnswerSet] = field(default_factory=dict[str, AnswerSet])
    withdrawn: tuple[Artifact, ...] = ()

    def make_room(self) -> None:
        """Make the directory of a journal that lies in the store; another's is looked at, before anybody ranks.

        Raises:
            ResourceError: It cannot be made or written to, is not there, or is a link.
        """
        with writing(self.journal, elsewhere=ELSEWHERE):
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
        StoreError: There is no such file (exit 2) or artifact (exit 4), it is damaged, or all of it was forgotten (exit 3).
        DataError: With every line that is no answer set.
    """
    path = expand_home(answers)
    if not path.exists() and names_answers(answers):
        artifact = store.require_whole(store.get(str(answers)).ref)
        kept = expand_home(journal) if journal else find_journal(store, artifact)
        line = (artifact, *store.lineage(artifact.ref)) if store.find_withdrawal(artifact) else ()
        withdrawn = tuple(each for each in line if store.find_withdrawal(each))
        sets, forgotten = _read(artifact.path / ANSWERS_FILE, store.root)
        return AnswersPlace(sets, kept, artifact, None if journal else store.root, forgotten, withdrawn)
    if not path.is_file():  # never looked up on a hub, as data sources are
        found = "a directory" if path.is_dir() else "no such file"
        raise StoreError(f"{path}: {found}; a file of answers, or an artifact such as {ANSWERS_KIND}@v1, is needed; give one", EXIT_USAGE)
    beside = path.with_name(path.name.removesuffix(".gz").rpartition(".")[0] + ".rankings.jsonl")
    sets, forgotten = _read(path, store.root)
    return AnswersPlace(sets, expand_home(journal) if journal else beside, forgotten=forgotten)


def names_answers(answers: Path | str) -> bool:
    """Whether this reads as the ref of an artifact of answers."""
    return _REF.fullmatch(str(answers)) is not None


def find_journal(store: Store, answers: Artifact) -> Path:
    """Say where what is said of an artifact of answers is kept: by its content, whatever its number."""
    return store.root / JOURNALS_DIR / f"{answers.content_id[:_ID_CHARS]}.jsonl"


def tell_forgotten(place: AnswersPlace, judgements: Iterable[Judgement]) -> list[str]:
    """Say how much is left out as it was forgotten, where anything is."""
    lost = sum(each.item in place.forgotten for each in judgements)
    sets = f"{count(len(place.forgotten), 'answer set')} with {count(lost, 'judgement')}"
    return [f"left out, as records were forgotten: {sets}"] if place.forgotten else []


def list_judged(store: Store, artifacts: Iterable[Artifact]) -> list[str]:
    """List those of some artifacts that are answers of which somebody has said something."""
    return [each.ref for each in artifacts if each.kind == ANSWERS_KIND and find_journal(store, each).exists()]


def _read(path: Path, store_root: Path) -> tuple[dict[str, AnswerSet], dict[str, AnswerSet]]:
    """Read the answer sets of a file; returns those that stay, and those of records that were forgotten."""
    treat = make_treatment((), find_forgotten(store_root))
    sides: tuple[dict[str, AnswerSet], dict[str, AnswerSet]] = ({}, {})
    for each in iter_answer_sets(DataSource.model_validate({"path": str(path)})):
        # The prompt was read as one, with what was asked for with an answer; the answers are what people compare.
        records = (Prompt(each.prompt), Comparison(each.prompt, each.completions, tuple(range(len(each.completions)))))
        stays = treat is None or all(treat(record, Counter()) for record in records)
        sides[0 if stays else 1][each.id] = each
    if not sides[0]:
        found = f"{path}: found {count(len(sides[1]), 'answer set')}, none of which is left after what was forgotten"
        raise StoreError(f"{found}; needed others; sample answers to other prompts", EXIT_VERIFICATION)
    return sides
