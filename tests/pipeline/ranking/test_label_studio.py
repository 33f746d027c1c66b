"""Label Studio's exports in the forms that it documents come in; bad ones are told with their place."""

import copy
import json

import pytest

ITEMS = [
    {"id": "blog", "title": "Blog", "body": "ten tips"},
    {"id": "mdn", "title": "MDN", "body": "arrow functions"},
    {"id": "wiki", "body": "arrows"},
]


RANKER = "annotations[0].result[0].value.ranker: "


def value_of(task):
    return task["annotations"][0]["result"][0]["value"]


def make_task(ranker, *, annotation=None, **task):
    result = {"from_name": "rank", "to_name": "results", "type": "ranker", "value": {"ranker": ranker}, "id": "x1", "origin": "manual"}
    said = {
        "id": 7,
        "completed_by": 3,
        "result": [result],
        "was_cancelled": False,
        "lead_time": 12.5,
        "created_at": "2026-11-20T10:00:00.000000Z",
    }
    data = {"prompt": "What is an arrow?", "items": copy.deepcopy(ITEMS)}
    return {"id": 1, "data": data, "annotations": [said | (annotation or {})], "drafts": [], "predictions": [], **task}


def test_a_list_in_a_new_order(bring_in):
    heard = bring_in([make_task(["mdn", "wiki", "blog"])])
    assert heard.told.returncode == 0 and "label-studio: 1 judgement of 1 answer set by 1 annotator imported from export.json" in heard.out
    assert heard.sets == [
        {"prompt": [{"role": "user", "content": "What is an arrow?"}], "completions": ["ten tips", "arrow functions", "arrows"]}
    ]
    (said,) = heard.said
    assert (said.ranks, said.order, said.annotator, said.seconds, said.tool) == ((3, 1, 2), (0, 1, 2), "user 3", 12.5, "label-studio")
    assert not said.partial and said.time == 1795168800.0


@pytest.mark.parametrize(
    ("ranker", "options", "ranks", "partial"),
    [
        ({"rank": ["mdn", "wiki", "blog"]}, (), (3, 1, 2), False),
        ({"rank 2": ["blog"], "rank 1": ["mdn", "wiki"]}, (), (3, 1, 1), False),
        ({"2nd": ["blog"], "10th": ["wiki"], "1st": ["mdn"]}, (), (2, 1, 3), False),
        ({"bad": ["wiki"], "good": ["blog"]}, ("--buckets", "good,bad"), (1, 3, 2), False),
        ({"1": ["mdn"], "_": ["blog", "wiki"]}, (), (2, 1, 2), True),
    ],
)
def test_buckets_are_ranks_by_their_numbers_or_as_the_user_says(bring_in, ranker, options, ranks, partial):
    (said,) = bring_in([make_task(ranker)], *options).said
    assert (said.ranks, said.partial) == (ranks, partial)


def test_pairs_are_rankings_of_two(bring_in):
    result = {"from_name": "comparison", "to_name": "answer1", "type": "pairwise", "value": {"selected": "right"}}
    task = make_task([], annotation={"result": [result], "completed_by": {"id": 3, "email": "ann@example.org"}})
    task["data"] = {"prompt": "Why?", "answer1": "no", "answer2": "because"}
    heard = bring_in([task])
    assert [(said.ranks, said.annotator) for said in heard.said] == [((2, 1), "ann@example.org")]
    assert heard.sets[0]["completions"] == ["no", "because"]


def test_the_short_form_json_min(bring_in):
    row = {"id": 1, "prompt": "What is an arrow?", "items": ITEMS, "annotator": 3, "annotation_id": 7, "lead_time": 4.0, "created_at": None}
    rows = [
        row | {"rank": [{"ranker": ["mdn", "blog", "wiki"]}]},
        row | {"annotator": 4, "annotation_id": 8, "rank": ["wiki", "blog", "mdn"]},
    ]
    heard = bring_in(rows)
    assert [said.ranks for said in heard.said] == [(2, 1, 3), (2, 3, 1)] and len(heard.sets) == 1


def test_the_table_that_it_exports(bring_in):
    head = "annotation_id,annotator,created_at,id,items,lead_time,prompt,rank,updated_at\n"
    items = json.dumps(ITEMS).replace('"', '""')
    rows = [
        f'{n},a@b.c,2026-11-20T10:00:00Z,{n},"{items}",3.5,Question {n}?,"{{""rank"": [""wiki"", ""blog"", ""mdn""]}}",x\n' for n in (1, 2)
    ]
    heard = bring_in(head + "".join(rows), name="export.csv")
    assert heard.told.returncode == 0, heard.error
    assert [(said.annotator, said.ranks, said.seconds, said.tool) for said in heard.said] == [("a@b.c", (2, 3, 1), 3.5, "label-studio")] * 2
    assert heard.sets[1]["prompt"][0]["content"] == "Question 2?" and heard.sets[0]["completions"][0] == "ten tips"
    broken = bring_in(head + rows[0].replace('[""wiki""', '[""nope""'), name="bad.csv")
    assert broken.told.returncode == 2 and broken.error.startswith("bad.csv:2: annotations[0].result[0].value.ranker: found the id 'nope'")


def test_what_was_skipped_left_empty_drafted_or_predicted_is_told(bring_in):
    tasks = [make_task([], annotation={"was_cancelled": True}), make_task([], id=2, annotation={"result": [], "id": 8, "completed_by": 4})]
    stars = {"from_name": "stars", "to_name": "results", "type": "rating", "value": {"rating": 4}}
    tasks += [make_task(["mdn", "wiki", "blog"], id=3, predictions=[{}], drafts=[{}, {}], annotation={"id": 9, "completed_by": 5})]
    tasks[2]["annotations"][0]["result"].append(stars)
    heard = bring_in(tasks)
    assert [said.outcome for said in heard.said] == ["skipped", "cannot say", "ranked"]
    assert "left out: 2 drafts, 1 predictions, 1 results of type rating" in heard.out


def test_the_same_file_again_is_nothing_twice_and_a_changed_annotation_replaces_the_old_one(bring_in):
    bring_in([make_task(["mdn", "wiki", "blog"])])
    again = bring_in([make_task(["mdn", "wiki", "blog"])])
    assert len(again.said) == 1 and "1 were there already" in again.out
    changed = bring_in([make_task(["wiki", "mdn", "blog"])])
    assert [said.ranks for said in changed.said] == [(3, 2, 1)] and "1 replaced" in changed.out and not changed.said[0].repeat


def flag(*choices):
    return {"from_name": "flags", "to_name": "prompt", "type": "choices", "value": {"choices": list(choices)}}


def note(text):
    return {"from_name": "note", "to_name": "prompt", "type": "textarea", "value": {"text": [text]}}


def test_a_flag_that_is_said_twice_of_an_answer_counts_once(bring_in):
    task = make_task(["mdn", "wiki", "blog"])
    task["annotations"][0]["result"].append(flag("wrong 1", "wrong 3", "wrong 1"))
    heard = bring_in([task])
    assert [sorted(said.flags["wrong"]) for said in heard.said] == [[0, 2]] and "flag wrong: 2 answers" in heard.out


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda task: value_of(task).update(ranker=["mdn", "nope"]), RANKER + "found the id 'nope'; needed one of blog, mdn, wiki"),
        (
            lambda task: value_of(task).update(ranker={"best": ["mdn"], "ads": []}),
            RANKER
            + "found the buckets best, ads, whose order an export does not say; needed numbers in their names, or --buckets best,ads",
        ),
        (lambda task: value_of(task).update(ranker={"1": ["mdn"], "2": ["mdn"]}), RANKER + "found 'mdn' in two buckets"),
        (lambda task: value_of(task).update(ranker=5), RANKER + "found 5 (a number); needed a list of ids"),
        (
            lambda task: task["annotations"][0]["result"].append(task["annotations"][0]["result"][0]),
            "annotations[0].result: found the rankings rank, rank; needed one",
        ),
        (
            lambda task: task["annotations"][0].update(created_at="yesterday"),
            "annotations[0].created_at: found the text 'yesterday'; needed a time",
        ),
        (
            lambda task: task["data"].update(items=[{"id": "a"}, {"id": "b"}]),
            "data.items[0]: found no text in id; needed one of body, text",
        ),
        (
            lambda task: task["data"].update(items=[]),
            "data: found prompt, items; needed a list of answers with id and body, or answer1 and answer2",
        ),
        (lambda task: task["annotations"][0].update(completed_by="\ud800"), "annotator: found half a surrogate pair (\\ud800)"),
        (lambda task: task["annotations"][0]["result"].append(flag("\ud83d 1")), "flags: found half a surrogate pair (\\ud83d)"),
        (lambda task: task["annotations"][0]["result"].append(note("x" * 10_001)), "note: String should have at most 10000 characters"),
        (lambda task: task["data"].update(prompt=5), "data.prompt: found 5 (a number)"),
        (lambda task: task["data"].update(items=[{"id": str(n), "body": str(n)} for n in range(10)]), RANKER + "found the id 'mdn'"),
    ],
)
def test_what_is_no_ranking_is_told_with_its_line_and_nothing_is_written(bring_in, change, told):
    task = make_task(["mdn", "wiki", "blog"], id=2)
    change(task)
    heard = bring_in([make_task(["mdn", "wiki", "blog"]), task])
    assert heard.told.returncode == 2 and heard.said == [] and heard.sets == []  # not even the file of answers is made
    (line,) = heard.error.splitlines()
    assert line.startswith("export.json:") and told in line
    number = int(line.split(":")[1])
    assert number > 40  # the second task begins there, not in line 1
