"""What becomes of a judge's figures, and of a judge that fails."""

from types import SimpleNamespace

from stages.responses.judge import Judge
from stages.responses.judging import Answer, judge_answers, report_answers

PROMPTS = [SimpleNamespace(prompt=[SimpleNamespace(content=f"question {number}")]) for number in range(3)]
ANSWERS = [Answer([1, 2], "long answer", True), Answer([1], "answer", False), Answer([3], "", True)]


def test_a_judge_sees_prompt_answer_and_whether_it_ended():
    judged, failure = judge_answers(Judge("mine:judge", lambda *seen: {"score": float(len(repr(seen)))}), PROMPTS, ANSWERS)
    seen = [("question 0", "long answer", True), ("question 1", "answer", False), ("question 2", "", True)]
    assert failure is None and [each["score"] for each in judged] == [len(repr(each)) for each in seen]


def test_a_judge_that_fails_once_leaves_no_figures_and_is_named():
    judge = Judge("mine:judge", lambda prompt, response, _: {"score": 1 / len(response)})
    judged, failure = judge_answers(judge, PROMPTS, ANSWERS)
    assert judged == [{}, {}, {}]
    assert failure.startswith("judge: mine:judge raised ZeroDivisionError") and failure.endswith("published without its figures")
    assert "it is not asked again" in failure
    assert judge_answers(judge, PROMPTS[:1], ANSWERS[:1]) == ([{}], None)  # whom it would answer
    averages, rows = report_answers("sampled", PROMPTS, ANSWERS, judged)
    assert averages.keys() == {"eval/sampled/finished", "eval/sampled/response_tokens"}
    assert not any("judge" in key for row in rows for key in row)
