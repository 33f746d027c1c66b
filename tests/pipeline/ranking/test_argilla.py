"""Argilla's exports of version 1 and 2, nested and flat, come in; bad ones are told with their place."""

import pytest

FIELDS = {"prompt": "What is an arrow?", "reply-1": "ten tips", "reply-2": "arrow functions", "reply-3": "arrows"}
RANKED = [{"rank": 1, "value": "reply-2"}, {"rank": 2, "value": "reply-1"}, {"rank": 2, "value": "reply-3"}]


def make_v1(user="u1", status="submitted", ranking=RANKED, **values):
    inner = {name: {"value": value} for name, value in ({"ranking": ranking} | values).items() if value is not None}
    return {
        "fields": dict(FIELDS),
        "metadata": {},
        "vectors": {},
        "responses": [{"user_id": user, "status": status, "values": inner}],
        "suggestions": [],
        "external_id": "r1",
    }


def make_v2(*responses, **record):
    return {
        "id": "r1",
        "fields": dict(FIELDS),
        "metadata": {},
        "suggestions": {},
        "responses": {"ranking": list(responses)},
        "vectors": {},
        "_server_id": "s1",
        **record,
    }


def make_flat(values, users, states):
    responses = {"ranking.responses": values, "ranking.responses.users": users, "ranking.responses.status": states}
    return {"id": "r1", "status": "completed", "_server_id": "s1", **FIELDS, **responses, "ranking.suggestion": None}


FORMS = {
    "v1": [make_v1()],
    "v1, datasets": [
        {
            **FIELDS,
            "ranking": [{"user_id": "u1", "value": {"rank": [1, 2, 2], "value": ["reply-2", "reply-1", "reply-3"]}, "status": "submitted"}],
            "ranking-suggestion": None,
            "external_id": "r1",
            "metadata": "{}",
        }
    ],
    "v2": [make_v2({"value": RANKED, "user_id": "u1"})],
    "v2, flat": [make_flat([RANKED], ["u1"], ["submitted"])],
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_comes_in_with_its_ties(bring_in, form):
    heard = bring_in(FORMS[form])
    assert heard.told.returncode == 0, heard.error
    assert "argilla: 1 judgement of 1 answer set by 1 annotator imported" in heard.out
    assert heard.sets[0]["completions"] == ["ten tips", "arrow functions", "arrows"]
    assert heard.sets[0]["prompt"] == [{"role": "user", "content": "What is an arrow?"}]
    assert [(said.ranks, said.annotator, said.tool) for said in heard.said] == [((2, 1, 2), "u1", "argilla")]


def test_a_ranking_may_be_a_list_of_names_and_several_people_may_have_answered(bring_in):
    heard = bring_in(
        [make_v2({"value": ["reply-3", "reply-1", "reply-2"], "user_id": "u1"}, {"value": ["reply-1", "reply-3"], "user_id": "u2"})]
    )
    assert [(said.ranks, said.partial) for said in heard.said] == [((2, 3, 1), False), ((1, 3, 2), False)]


def test_drafts_discarded_ones_suggestions_and_other_questions_are_told(bring_in):
    rows = [
        make_v1(),
        make_v1("u2", "discarded", ranking=None),
        make_v1("u3", "draft"),
        make_v1("u4", length="too long", grade=6, note="fine"),
    ]
    rows[0]["suggestions"] = [{"question_name": "ranking"}]
    for number, row in enumerate(rows):
        row["external_id"] = f"r{number}"
    heard = bring_in(rows)
    assert [said.outcome for said in heard.said] == ["ranked", "skipped", "ranked"]
    assert (heard.said[2].grade, heard.said[2].note) == (6, "fine")
    assert "left out: 1 answers to the question length, 1 drafts, 1 suggestions" in heard.out


def test_of_two_rankings_the_user_names_one(bring_in):
    row = make_v1(honesty=["reply-1", "reply-2", "reply-3"])
    heard = bring_in([row])
    assert heard.told.returncode == 2 and "found the rankings ranking, honesty; needed one; name it by --question" in heard.error
    assert [said.ranks for said in bring_in([row], "--question", "honesty").said] == [(1, 2, 3)]


@pytest.mark.parametrize(
    ("row", "told"),
    [
        (
            make_v1(ranking=[{"rank": 1, "value": "reply-2"}, {"rank": 2, "value": "nope"}]),
            "responses.ranking: found 'nope'; needed names of fields",
        ),
        (make_v1(ranking=["reply-1", "reply-1"]), "responses.ranking: found reply-1, reply-1; needed each once"),
        (make_v1(grade=9), "responses.grade: found 9 (a number); needed a grade of 1 to 7"),
        ({**make_v1(), "fields": FIELDS | {"prompt": " "}}, "prompt: found blanks only"),
        (
            {"fields": {"a": "x", "b": "y", **{f"reply-{n}": "z" for n in (1, 2, 3)}}, "responses": make_v1()["responses"]},
            "found a, b beside the answers; needed one that is the prompt",
        ),
    ],
)
def test_what_is_no_ranking_is_told_with_its_line_and_nothing_is_written(bring_in, row, told):
    heard = bring_in([make_v1(), row])
    assert heard.told.returncode == 2 and heard.said == []
    (line,) = heard.error.splitlines()
    assert line.startswith("export.json:") and told in line and int(line.split(":")[1]) > 20


def test_a_file_of_no_tool_is_told_with_what_is_known(bring_in):
    heard = bring_in([{"question": "?", "answers": ["a", "b"]}])
    assert heard.told.returncode == 2
    needed = "needed Label Studio's JSON (data, annotations), Argilla's (fields, responses), or a CSV file; export it so"
    assert heard.error == f"export.json:2: found question, answers; {needed}\n"
    assert "not JSON" in bring_in("[{]").error
