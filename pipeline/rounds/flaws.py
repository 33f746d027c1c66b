"""Good answers of all rounds -> copies with one flaw each -> which of them the reward model of each round sees.

The answers are the best of the held-out lists, from which no reward model learnt, and the same for all: so their figures compare.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import chain, zip_longest

import numpy as np

from data.load import load_records
from data.schema import Comparison, Demonstration
from pipeline.errors import StoreError
from pipeline.launch.dialogue import ask_all
from pipeline.rounds.publish import EVAL_FILE
from pipeline.score import score
from pipeline.store.artifact import Artifact
from stages.evaluate.card import ProbePairs, judge_probes
from stages.evaluate.results import Probe
from stages.spec import DataSource
from stages.statistics.intervals import Floats

MOST_ANSWERS = 200
Edits = dict[str, tuple[str, str]]  # name -> (copy, what was done)
Told = Callable[[int, int], None]


@dataclass(frozen=True)
class Flaw:
    """One edit, and which reward models see it.

    Args:
        name: Of the edit.
        description: What it does.
        seen: Ref of a reward model -> in how many pairs the answer without it scores higher; none where too few answers can have it.
    """

    name: str
    description: str
    seen: dict[str, Probe] = field(default_factory=dict[str, Probe])


def measure_flaws(
    models: Sequence[Artifact], rankings: Sequence[Artifact], probes: str | None, directory: str | None, told: Told
) -> tuple[list[Flaw], list[str]]:
    """Ask the reward models of rounds of flawed copies of the best held-out answers; those that the first one sees least come first.

    Args:
        models: The reward models, in order.
        rankings: Whose held-out lists give the answers, as many of each as there are, up to `MOST_ANSWERS` in all.
        probes: `evaluate.probes`: the task's own flaws; None: only those of every task.
        directory: In which its module may lie.
        told: Hears how many of how many answers are scored.

    Returns:
        (the flaws; what could not be told).

    Raises:
        StoreError: A reward model cannot be asked.
    """
    originals, missing = list_best(rankings), list[str]()
    try:
        edits = _edit(originals, probes, directory)
    except StoreError as error:
        if probes is None:
            raise
        edits, missing = _edit(originals, None, None), [f"whether the reward models see the task's own flaws: {error.message}"]
    answers = [
        *originals,
        *(Demonstration(of.prompt, text) for of, found in zip(originals, edits, strict=True) for text, _ in found.values()),
    ]
    flaws: dict[str, Flaw] = {}
    too_few: list[str] = []
    for place, model in enumerate(models):

        def tell(done: int, total: int, before: int = place * len(answers)) -> None:
            told(before + done, len(models) * total)

        heard = score(model, [({}, answer) for answer in answers], tell)
        scores_N = np.array([math.nan if row["score"] is None else row["score"] for row in heard.rows])
        originals_P, copies_N = scores_N[: len(originals)], scores_N[len(originals) :]
        found, too_few = judge_probes(_pair(edits, originals_P, copies_N), originals_P, copies_N)
        for probe in found:
            flaws.setdefault(probe.name, Flaw(probe.name, probe.description)).seen[model.ref] = probe
    return list(flaws.values()), missing + too_few


def list_best(rankings: Sequence[Artifact]) -> list[Demonstration]:
    """List the best answers of held-out lists, one of each in turn, each prompt once."""
    lists: list[list[Demonstration]] = []
    for artifact in rankings:
        source = DataSource.model_validate({"path": str(artifact.path / EVAL_FILE)})
        records = (record for record in load_records(source, "comparisons") if isinstance(record, Comparison) and record.has_pair)
        lists.append([Demonstration(each.prompt, each.completions[each.ranks.index(min(each.ranks))]) for each in records])
    by_prompt: dict[object, Demonstration] = {}
    for each in chain.from_iterable(zip_longest(*lists)):
        if each is not None and each.completion.strip():
            by_prompt.setdefault(each.prompt, each)
    return list(by_prompt.values())[:MOST_ANSWERS]


def _edit(originals: Sequence[Demonstration], probes: str | None, directory: str | None) -> list[Edits]:
    questions = [{"probes": probes, "directory": directory}]
    questions += [{"prompt": each.prompt[-1].content, "answer": each.completion} for each in originals]
    heard = ask_all("stages.evaluate.edits", questions)
    return [{name: (copy, does) for name, (copy, does) in each["edits"].items()} for each in heard]


def _pair(edits: Sequence[Edits], originals_P: Floats, copies_N: Floats) -> dict[str, ProbePairs]:
    """Pair answers with their copies, by edit; what has no finite score is left out."""
    pairs: dict[str, ProbePairs] = {}
    places = ((answer, name, does) for answer, found in enumerate(edits) for name, (_, does) in found.items())
    for copy, (answer, name, does) in enumerate(places):
        if np.isfinite(originals_P[answer]) and np.isfinite(copies_N[copy]):
            pair = pairs.setdefault(name, ProbePairs(does))
            pair.prompts.append(answer)
            pair.copies.append(copy)
    return pairs
