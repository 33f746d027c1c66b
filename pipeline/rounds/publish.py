"""Judgements -> an artifact of kind `rankings`: what a reward model trains and is tested on, with its figures and its line to the policy.

    train.jsonl       comparisons (our own columns), to train on
    eval.jsonl        those of the conversations that are held out, now and in all later rounds
    judgements.jsonl  what each annotator said, by pseudonym, without what was written by hand
    summary.json      agreement and the rest, as `rlhf rankings --json` says it

A conversation has its place by a hash that is the same for all rankings: what one round holds out, no other trains on.

Of answers that are withdrawn the sets that remain are published. Such rankings name no parent: all records that they hold are listed as
their own, and the answers may go.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from data.fingerprint import fingerprint
from data.holdout import find_places
from data.mix import split_comparisons
from data.records import parse_row
from data.schema import Comparison, DataError, Problem
from data.treatment import FORGOTTEN
from pipeline.errors import StoreError
from pipeline.inputs.records import read_data
from pipeline.privacy.forget import withdraw_forgotten
from pipeline.ranking.journal import Journal, Judgement
from pipeline.ranking.place import ANSWERS_KIND, AnswersPlace, list_judged, tell_forgotten
from pipeline.ranking.summary import By, Summary, make_comparisons
from pipeline.store.artifact import Artifact
from pipeline.store.disk import writing
from pipeline.store.manifest import ManifestFields, Parent
from pipeline.store.provenance import code_state, package_versions
from pipeline.store.store import Store
from pipeline.text import count
from stages.lines import name_numbers, to_line
from stages.result import Interval
from stages.spec import EXIT_VERIFICATION, RANKINGS_KIND, DataSource, DataSplits
from stages.statistics.bootstrap import Estimate

TRAIN_FILE, EVAL_FILE, _SAID_FILE = "train.jsonl", "eval.jsonl", "judgements.jsonl"
_SPLIT_SEED = 0  # the same for all rankings, see above
_BY_HAND = {"id", "kind", "note", "reason", "time", "annotator"}


@dataclass(frozen=True)
class PublishedRankings:
    """The artifact, and whether it was there already, as nothing was said since."""

    artifact: Artifact
    is_old: bool
    forgotten: tuple[str, ...] = ()  # what is left out, and what that means, in words


def publish_rankings(
    store: Store, place: AnswersPlace, journal: Journal, summary: Summary, by: By, names: bool, held_out: float
) -> PublishedRankings:
    """Publish what was ranked as the next version of `rankings`, unless the same is there.

    Args:
        store: Where to.
        place: What was ranked.
        journal: Of it.
        summary: Of what stands there, with pseudonyms unless `names`.
        by: Whose rankings count.
        names: Name the annotators.
        held_out: Share of conversations to hold out.

    Raises:
        DataError: Too little is ranked for a training and a held-out side.
        StoreError: With its exit code.
    """
    judgements = journal.list_of(place.sets)
    if lack := find_lack(place, judgements, by):
        raise DataError([Problem(str(place.journal), "", f"{lack}; rank more, or see --by")])
    with journal.hold():
        rows = {_parse(row): row for row in make_comparisons(place.sets, judgements, by)}
        train, eval_side = split_comparisons(list(rows), held_out, _SPLIT_SEED, str(place.journal))
        sides: dict[str, Sequence[Comparison]] = {TRAIN_FILE: train, EVAL_FILE: eval_side}
        said = [_describe(each, journal, names) for each in judgements]
        files = {name: _to_lines(rows[record] for record in side) for name, side in sides.items()} | {_SAID_FILE: _to_lines(said)}
        fields = _make_fields(place, rows.values(), summary, sides, {"by": by, "held_out": held_out, "names": names})
        forgotten = (*tell_forgotten(place, journal.judgements.values()), *_tell_withdrawn(place))
        if old := next((each for each in reversed(store.list(RANKINGS_KIND)) if _is_same(each, fields, files, store)), None):
            return PublishedRankings(old, is_old=True, forgotten=forgotten)
        files["summary.json"] = json.dumps(name_numbers(asdict(summary)), indent=1, ensure_ascii=False) + "\n"
        with store.staging(RANKINGS_KIND) as staging:
            with writing(staging.path):
                for name, text in files.items():
                    (staging.path / name).write_text(text, encoding="utf-8")
            _list_records(store, staging.path)  # before they are there: who is killed in between leaves no rankings that nobody can trace
            published = store.publish(staging, fields)
        withdraw_forgotten(store)
        return PublishedRankings(published, is_old=False, forgotten=forgotten)


def _tell_withdrawn(place: AnswersPlace) -> list[str]:
    """Say what it means that answers are withdrawn."""
    if not place.withdrawn:
        return []
    answers, *above = place.withdrawn
    told = [f"{answers.ref} is withdrawn, so the rankings name no parent: `rlhf gc --remove` may take it"]
    asked = {parent.ref for parent in answers.manifest.parents if parent.kind != "rm"}
    if policies := [each.ref for each in above if each.ref in asked]:
        advice = "look at them, or do without the rankings"
        told.append(f"withdrawn as well: {', '.join(policies)}, whose answers may quote what was forgotten; {advice}")
    return told


def find_unpublished(store: Store) -> list[str]:
    """Find answers that stand, of which somebody has said something, and of which no rankings stand."""
    standing = [each for each in store.list(RANKINGS_KIND) if not store.find_withdrawal(each)]
    published = {parent.content_id for each in standing for parent in each.manifest.parents}
    answers = [each for each in store.list(ANSWERS_KIND) if each.content_id not in published and not store.find_withdrawal(each)]
    return list_judged(store, answers)


def find_lack(place: AnswersPlace, judgements: Sequence[Judgement], by: By = "all") -> str:
    """Say what is missing in what was said of answers, for rankings to be published; empty where nothing is."""
    records = [_parse(row) for row in make_comparisons(place.sets, judgements, by)]
    usable = np.array([record.has_pair for record in records], np.bool_)
    if len(np.unique(find_places([record.prompt for record in records], _SPLIT_SEED)[usable])) > 1:
        return ""
    outcomes = Counter(judgement.outcome for judgement in judgements if judgement.outcome != "ranked")
    others = "".join(f", {number:,} x {outcome}" for outcome, number in sorted(outcomes.items()))
    found = f"found {count(len(records), 'ranking')}{others}; {usable.sum() or 'none'} of them prefers an answer to another"
    return f"{found}; needed such rankings of two conversations at least, to train on one and hold one out"


def tell_published(published: PublishedRankings) -> list[str]:
    """Say what was published, what is left out, and how it is used."""
    artifact, counts = published.artifact, published.artifact.manifest.counts
    told = f"{counts['comparisons_train']} to train on, {counts['comparisons_eval']} held out"
    done = "is there already, with the same rankings" if published.is_old else "published"
    return [f"{artifact.ref}: {done}: {told}; use it as data.comparisons.train: [..., {{ref: {artifact.ref}}}]", *published.forgotten]


def _parse(row: Mapping[str, object]) -> Comparison:
    (record,) = parse_row(dict(row), "comparisons")
    assert isinstance(record, Comparison)
    return record


def _to_lines(rows: Iterable[Mapping[str, object]]) -> str:
    return "".join(to_line(row, ascii_only=False) for row in rows)


def _make_fields(
    place: AnswersPlace,
    rows: Iterable[Mapping[str, object]],
    summary: Summary,
    sides: Mapping[str, Sequence[Comparison]],
    config: dict[str, object],
) -> ManifestFields:
    metrics, intervals = _measure(summary)
    rows = list(rows)
    return ManifestFields(
        parents=[Parent(ref=place.artifact.ref, content_id=place.artifact.content_id)] if place.artifact and not place.withdrawn else [],
        data={f"comparisons.{name.partition('.')[0]}": fingerprint(side) for name, side in sides.items()},
        cache_key=None,
        precision=None,
        world_size=1,
        duration_s=None,
        run_id=None,
        config=config | _name_models(rows, summary) | ({"of_withdrawn": place.artifact.ref} if place.artifact and place.withdrawn else {}),
        code=code_state(),
        packages=package_versions(),
        counts=_count(summary, sides) | _count_by_model(rows) | ({"sets_forgotten": len(place.forgotten)} if place.forgotten else {}),
        metrics=metrics,
        intervals=intervals,
    )


def _is_same(artifact: Artifact, fields: ManifestFields, files: Mapping[str, str], store: Store) -> bool:
    """Whether an artifact was made in the same way from the same answers and judgements, to the last flag, and stands."""
    old = artifact.manifest
    if [parent.content_id for parent in old.parents] != [parent.content_id for parent in fields.parents] or old.config != fields.config:
        return False
    kept = {entry.path: entry.sha256 for entry in old.files}
    same = all(kept.get(name) == hashlib.sha256(text.encode()).hexdigest() for name, text in files.items())
    return same and not store.find_withdrawal(artifact)


def _describe(judgement: Judgement, journal: Journal, names: bool) -> dict[str, object]:
    """Say what somebody said, without what may name them: their name, free text, when it was."""
    who = judgement.annotator if names else journal.name_secretly(judgement.annotator)
    return {"annotator": who, **judgement.model_dump(mode="json", exclude_defaults=True, exclude=_BY_HAND)}


def _name_models(rows: Iterable[Mapping[str, object]], summary: Summary) -> dict[str, object]:
    """Name the language models whose rankings are among the comparisons; nothing where people made them all."""
    return {"judged_by_models": sorted(model.name for model in summary.models)} if _count_by_model(rows) else {}


def _count_by_model(rows: Iterable[Mapping[str, object]]) -> dict[str, int]:
    number = sum(str(row["judged_by"]) != "people" for row in rows)
    return {"comparisons_by_model": number} if number else {}


def _count(summary: Summary, sides: Mapping[str, Sequence[Comparison]]) -> dict[str, int]:
    own = {f"comparisons_{name.partition('.')[0]}": len(side) for name, side in sides.items()}
    tied = sum(not record.has_pair for side in sides.values() for record in side)
    return {"sets": summary.sets, "judgements": summary.judgements, "annotators": len(summary.annotators), **own, "all_tied": tied}


def _measure(summary: Summary) -> tuple[dict[str, float], dict[str, Interval]]:
    """Take the figures that have one number: value and interval."""
    found: dict[str, Estimate | None] = {
        "agreement": summary.alpha,
        "agreement_with_oneself": summary.with_self,
        "first_shown_is_better": summary.position_bias,
    }
    found |= {f"agreement_of_people_with_{model.name}": model.with_people for model in summary.models}
    metrics = {name: each.value for name, each in found.items() if each is not None}
    intervals = {
        name: Interval(low=each.low, high=each.high, n=each.num_clusters)
        for name, each in found.items()
        if each is not None and each.low is not None and each.high is not None
    }
    return metrics, intervals


def _list_records(store: Store, directory: Path) -> None:
    """List which records both sides hold, so that `rlhf trace` and `forget` find them."""
    train, held_out = (DataSource.model_validate({"path": str(directory / name)}) for name in (TRAIN_FILE, EVAL_FILE))
    found = read_data("comparisons", DataSplits(train=train, eval=held_out), 0.5, store_root=store.root)
    if found.treated.get(FORGOTTEN):  # after the answers were read: what they hold would be listed as what is left of them
        raise StoreError("found a record that was forgotten just now; needed rankings without it; publish again", EXIT_VERIFICATION)
