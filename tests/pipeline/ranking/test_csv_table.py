"""Tables of rankings, long and wide, come in; bad ones are told with their line."""

import pytest

LONG = "prompt,completion,rank,annotator,flags,grade\n"


def test_a_row_for_each_answer(bring_in):
    rows = 'Why?,"because, so",1,ann,,6\nWhy?,no,2,ann,"rude, wrong",\nWhy?,"because, so",2,ben,,\nWhy?,no,1,ben,,\n'
    rows += 'What?,a,1,ann,,\nWhat?,"b\nb",,ann,,\nWhat?,c,,ann,,\n'
    heard = bring_in(LONG + rows, name="export.csv")
    assert heard.told.returncode == 0, heard.error
    assert "csv: 3 judgements of 2 answer sets by 2 annotators imported" in heard.out
    assert [said.ranks for said in heard.said] == [(1, 2), (2, 1), (1, 2, 2)] and heard.said[2].partial
    assert (heard.said[0].grade, heard.said[0].flags, heard.said[0].order) == (6, {"rude": (1,), "wrong": (1,)}, ())
    assert heard.sets[1]["completions"] == ["a", "b\nb", "c"]


@pytest.mark.parametrize(
    "table",
    [
        "prompt;completion_1;completion_2;completion_3;rank_1;rank_2;rank_3;annotator\nWhy?;a;b;c;2;1;2;ann\n",
        "Prompt\tAnswer 1\tAnswer 2\tAnswer 3\tRanking\tUser\nWhy?\ta\tb\tc\t2>1=3\tann\n",
        "instruction,response1,response2,response3,response4,rank1,rank2,rank3,rank4,worker\nWhy?,a,b,c,,2.0,1.0,2.0,,ann\n",
        "\ufeffprompt,completion,rank,annotator\r\nWhy?,a,2,ann\r\nWhy?,b,1,ann\r\nWhy?,c,2,ann\r\n",
    ],
)
def test_a_row_for_each_set_and_other_separators(bring_in, table):
    heard = bring_in(table, name="export.csv")
    assert [(said.ranks, said.annotator) for said in heard.said] == [((2, 1, 2), "ann")], heard.error


@pytest.mark.parametrize(
    ("table", "told"),
    [
        (LONG + "Why?,a,1,ann,,\nWhy?,b,best,ann,,\n", "export.csv:2: rank at export.csv:3: found 'best'; needed a rank"),
        (LONG + "Why?,a,1,ann,,\nWhy?,b,0,ann,,\n", "rank at export.csv:3: found '0'; needed a rank: 1 is best"),
        (
            LONG + "Why?,a,1,ann,,\nWhy?,a,2,ann,,\n",
            "completion: found the answer twice for this prompt and annotator (again at export.csv:3)",
        ),
        (LONG + "Why?,a,1,ann,,\nWhy?,b,2,ann\n", "export.csv:3: found 4 cells under 6 headings"),
        (LONG + "Why?,a,1,ann,,8\nWhy?,b,2,ann,,\n", "export.csv:2: grade: found the text '8'; needed a grade of 1 to 7"),
        (LONG + "Why?,a,1,ann,,\n", "completions: "),
        (LONG + '"Why?,a,1,ann,,\n', "export.csv:2: not CSV"),
        ("prompt,prompt,rank\n", "export.csv:1: prompt: found the column twice"),
        (
            "question,good,bad\nx,y,z\n",
            "export.csv:1: found the columns question, good, bad; needed prompt, completion, rank, annotator; or",
        ),
        ("prompt,completion_1,completion_2,ranking\nWhy?,a,b,3>1\n", "export.csv:2: ranking: found '3'; needed a number of 1 to 2"),
        ("prompt,completion,rank,outcome\nWhy?,a,1,skipped\nWhy?,b,2,skipped\n", "outcome: found 'skipped' with ranks"),
        (LONG, "found no rows; needed"),
    ],
)
def test_what_is_no_ranking_is_told_with_its_line_and_nothing_is_written(bring_in, table, told):
    heard = bring_in(table, name="export.csv")
    assert heard.told.returncode == 2 and heard.said == []
    assert told in heard.error and heard.error.startswith("export.csv:") and heard.error.count("\n") == 1
