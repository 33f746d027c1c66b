"""Who is shown what: each in an order of one's own, shared sets to all, some twice, the others once."""

import itertools
from collections import Counter

import pytest
from pydantic import ValidationError

from data.answers import AnswerSet
from data.schema import Message
from pipeline.ranking.journal import Journal, Judgement
from pipeline.ranking.ranks import list_levels, rank_levels
from pipeline.ranking.study import Settings, Study

IDS = (f"{number:032x}" for number in itertools.count())


@pytest.fixture
def make_study(tmp_path):
    def make_study(count=40, **settings):
        sets = [AnswerSet((Message("user", f"{n}?"),), tuple(f"{n}-{k}" for k in range(4))) for n in range(count)]
        return Study({each.id: each for each in sets}, Journal(tmp_path / "j.jsonl"), Settings(**settings))

    return make_study


def judge(study, annotator, assignment, **fields):
    given = {"outcome": "ranked", "ranks": (1, 2, 3, 4), **fields}
    judgement = Judgement(
        id=next(IDS), item=assignment.item, annotator=annotator, order=assignment.order, repeat=assignment.repeat, time=0.0, **given
    )
    assert study.judge(judgement)
    return judgement


def run(study, *annotators):
    """Let annotators rank in turns until nothing is left."""
    shown, waiting = {annotator: [] for annotator in annotators}, list(annotators)
    while waiting:
        for annotator in list(waiting):
            assignment = study.next(annotator)
            if assignment is None:
                waiting.remove(annotator)
                continue
            shown[annotator].append(assignment)
            judge(study, annotator, assignment)
    return shown


def test_one_ranks_all_once_and_every_tenth_is_a_repetition_in_another_order(make_study):
    shown = run(make_study(40), "ann")["ann"]
    first = {each.item: each for each in shown if not each.repeat}
    repeats = [each for each in shown if each.repeat]
    assert len(first) == 40 and sum(not each.repeat for each in shown) == 40
    assert [place for place, each in enumerate(shown) if each.repeat] == [9, 19, 29, 39]
    assert len({each.item for each in repeats}) == 4 and any(each.order != first[each.item].order for each in repeats)
    assert all(sorted(each.order) == [0, 1, 2, 3] for each in shown)


def test_what_one_skips_is_there_for_others_and_what_one_cannot_say_is_done(make_study):
    study = make_study(3, overlap=0.0, repeats=0.0)
    skipped = study.next("ann")
    judge(study, "ann", skipped, outcome="skipped", ranks=None)
    unclear = study.next("ann")
    judge(study, "ann", unclear, outcome="cannot say", ranks=None)
    assert study.progress("ann").left == 1 and study.progress("ben").left == 2
    shown = {each.item for each in run(study, "ben")["ben"]}
    assert skipped.item in shown and unclear.item not in shown and len(shown) == 2


def test_several_share_the_sets_but_for_the_overlap(make_study):
    shown = run(make_study(40, overlap=0.25), "ann", "ben")
    by = Counter(each.item for annotator in shown.values() for each in annotator if not each.repeat)
    assert len(by) == 40 and Counter(by.values()) == {1: 30, 2: 10}
    ann, ben = ([each.item for each in shown[name] if not each.repeat] for name in ("ann", "ben"))
    shared = set(ann) & set(ben)
    assert [item for item in ann if item in shared] != [item for item in ben if item in shared]


def test_every_answer_stands_at_every_place_about_as_often(make_study):
    shown = run(make_study(400), "ann")["ann"]
    first = Counter(each.order[0] for each in shown)
    assert all(70 <= first[answer] <= 150 for answer in range(4))


def test_a_restart_goes_on_where_it_was(make_study):
    study = make_study()
    for _ in range(12):
        judge(study, "ann", study.next("ann"))
    expected = study.next("ann")
    assert make_study().next("ann") == expected


def test_undo_shows_the_same_again(make_study):
    study = make_study()
    judge(study, "ann", study.next("ann"))
    assignment = study.next("ann")
    undone = judge(study, "ann", assignment)
    assert study.undo("ann") == undone
    assert study.next("ann") == assignment
    assert study.undo("ben") is None


def test_of_two_tabs_one_counts(make_study):
    study = make_study()
    assignment = study.next("ann")
    assert study.next("ann") == assignment
    judge(study, "ann", assignment)
    again = Judgement(id=next(IDS), item=assignment.item, annotator="ann", order=assignment.order, outcome="cannot say", time=0.0)
    assert not study.judge(again)
    assert study.progress("ann").done == 1


def test_two_at_once_see_different_sets(make_study):
    study = make_study(overlap=0)
    shown = [study.next(name).item for name in ("ann", "ben", "cay")]
    assert len(set(shown)) == 3
    assert [study.next(name).item for name in ("ann", "ben", "cay")] == shown


def test_levels_become_ranks():
    assert rank_levels([[1], [0]], (2, 0, 1)) == ((1, 3, 2), False)
    assert rank_levels([[0, 2], [1]], (0, 1, 2)) == ((1, 3, 1), False)
    assert rank_levels([[3]], (0, 1, 2, 3)) == ((2, 2, 2, 1), True)


@pytest.mark.parametrize("levels", [[[1], [0]], [[0, 2], [1]], [[3]], [[0, 1, 2, 3]], [[3, 1], [0]]])
@pytest.mark.parametrize("order", [(2, 0, 1, 3), (0, 1, 2, 3)])
def test_ranks_become_the_levels_that_they_were(levels, order):
    ranks, partial = rank_levels(levels, order)
    rest = sorted(set(range(4)) - {place for level in levels for place in level})
    said = levels if partial or not rest else [*levels, rest]
    assert [sorted(level) for level in list_levels(ranks, order, partial=partial)] == [sorted(level) for level in said]


@pytest.mark.parametrize("levels", [[], [[0], [0]], [[4]], [[-1]]])
def test_levels_that_are_no_ranking_are_refused(levels):
    with pytest.raises(ValueError, match="needed each at most once"):
        rank_levels(levels, (0, 1, 2, 3))


@pytest.mark.parametrize(("share", "places"), [(0.0, []), (0.05, [19, 39]), (0.25, [7, 11, 15, 19, 23, 27, 31, 35, 39, 43, 47, 51])])
def test_the_share_of_repetitions_is_a_setting(make_study, share, places):
    shown = run(make_study(40, repeats=share), "ann")["ann"]
    assert [place for place, each in enumerate(shown) if each.repeat] == places


def test_a_flag_of_a_study_is_a_name():
    for flags in (["a, b"], ["a\nb"], [" a"], ["a", "a"], [""], ["x" * 41]):
        with pytest.raises(ValidationError):
            Settings(flags=flags)
