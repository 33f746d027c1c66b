import pytest

from data.formats.scored import rank_scores
from data.schema import Comparison, Demonstration, Message, Prompt

ASKED = (Message("user", "Why?"),)


def ultrafeedback(*scores, key="overall_score"):
    answers = [{"model": "m", "response": f"answer {i}", "custom_system_prompt": "s", key: score} for i, score in enumerate(scores)]
    return {"source": "evol_instruct", "instruction": "Why?", "models": ["m"], "completions": answers, "correct_answers": ["None"]}


def test_scores_become_ranks_by_hand_worked_numbers():
    assert rank_scores([7.5, 9.0, 7.5, 1.0]) == [2, 1, 2, 3]
    assert rank_scores([3.0, 3.0]) == [1, 1]


def test_completions_with_scores_are_one_comparison_in_which_equal_scores_tie(read):
    texts = ("answer 0", "answer 1", "answer 2", "answer 3")
    expected = [Comparison(ASKED, texts, (2, 1, 2, 3), "evol_instruct")]
    assert read("comparisons", ultrafeedback(7.5, 9.0, 7.5, 1.0)) == expected
    assert read("comparisons", ultrafeedback(4.25, 5, 4.25, 1, key="fine-grained_score")) == expected
    assert read("prompts", ultrafeedback(1, 2)) == [Prompt(ASKED)]


def test_the_overall_score_goes_before_the_fine_grained_one_where_all_answers_have_it(read):
    row = ultrafeedback(8, 6)
    row["completions"][0]["fine-grained_score"], row["completions"][1]["fine-grained_score"] = 1.0, 5.0
    assert read("comparisons", row)[0].ranks == (1, 2)
    row["completions"][1]["overall_score"] = None
    assert read("comparisons", row)[0].ranks == (2, 1)


def test_lists_of_scores_and_ranked_answers_are_read_too(read):
    scored = {"prompt": "Why?", "completions": ["a", "b", "c"], "scores": [0.1, 0.9, 0.1]}
    nectar = {
        "prompt": "\n\nHuman: Why? \n\nAssistant: ",
        "answers": [{"answer": "a", "model": "m", "rank": 2.0}, {"answer": "b", "model": "n", "rank": 1.0}],
    }
    assert read("comparisons", scored) == [Comparison(ASKED, ("a", "b", "c"), (2, 1, 2))]
    assert read("comparisons", nectar) == [Comparison(ASKED, ("a", "b"), (2, 1))]


def test_the_binarised_form_gives_all_three_kinds_and_ties_equal_scores(read):
    talk = {name: [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": name}] for name in ("chosen", "rejected")}
    row = {"prompt": "Why?", "prompt_id": "0a", **talk, "messages": talk["chosen"], "score_chosen": 8.5, "score_rejected": 3.0}
    assert read("comparisons", row, {**row, "score_rejected": 8.5}) == [
        Comparison(ASKED, ("chosen", "rejected"), (1, 2)),
        Comparison(ASKED, ("chosen", "rejected"), (1, 1)),
    ]
    assert read("demonstrations", row) == [Demonstration(ASKED, "chosen")]
    assert read("prompts", row) == [Prompt(ASKED)]


def test_bad_scores_are_told_under_the_users_names(refused):
    good = ultrafeedback(1, 2)
    assert refused(
        "comparisons", good, ultrafeedback(1, None), ultrafeedback(1, "high"), {**good, "instruction": ""}, ultrafeedback(1)
    ) == [
        "records.jsonl:2: completions[1]: found no score that all answers of the row have; needed one of overall_score, "
        "fine-grained_score, score, rating, rank; add it",
        "records.jsonl:3: completions[1].overall_score: found the text 'high'; needed a number; correct it",
        "records.jsonl:4: instruction: found an empty text; needed text or a list of messages; fill it or remove the line",
        "records.jsonl:5: completions: found 1; needed two or more answers to one prompt; add some or remove the line",
    ]
    row = ultrafeedback(1, 2)
    row["completions"][1]["response"] = None
    assert refused("comparisons", good, row) == ["records.jsonl:2: completions[1].response: found null; needed text; correct it"]
    pair = {"prompt": "Why?", "chosen": "a", "rejected": "b", "score_chosen": 1, "score_rejected": 2}
    assert refused("comparisons", pair) == [
        "records.jsonl:1: score_chosen: found 1, below score_rejected 2; needed chosen to be the better; swap them"
    ]


def test_scored_answers_are_no_demonstrations(refused):
    (line,) = refused("demonstrations", ultrafeedback(1, 2))
    assert line == (
        "records.jsonl: found UltraFeedback: instruction and completions with scores, which gives comparisons and prompts; "
        "needed demonstrations; give another file, or say by columns: which is which"
    )


SHP = {"post_id": "q", "domain": "askbaking_train", "history": "Why?", "human_ref_A": "A.", "human_ref_B": "B.", "score_A": 3, "score_B": 9}


@pytest.mark.parametrize(("label", "answers"), [(1, ("A.", "B.")), (0, ("B.", "A."))])
def test_the_label_of_shp_names_the_better_comment(read, label, answers):
    assert read("comparisons", {**SHP, "labels": label}) == [Comparison(ASKED, answers, (1, 2))]
    assert read("prompts", {**SHP, "labels": label}) == [Prompt(ASKED)]


def test_a_bad_row_of_shp_is_told_under_its_names(refused):
    good = {**SHP, "labels": 1}
    assert refused("comparisons", good, SHP, {**good, "human_ref_B": 3}, {**good, "history": " "}) == [
        "records.jsonl:2: labels: found null; needed 1 (A is better) or 0 (B is better); correct it",
        "records.jsonl:3: human_ref_B: found 3 (a number); needed text; correct it",
        "records.jsonl:4: history: found blanks only; needed text; fill it or remove the line",
    ]
