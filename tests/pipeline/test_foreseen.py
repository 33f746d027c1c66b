"""What an evaluation will not be able to say is said before anything trains."""

from pipeline.foreseen import foresee_evaluation


def test_few_prompts_are_told_with_what_they_show():
    (none,) = foresee_evaluation(6, has_judge=True)
    assert none.startswith("6 held-out prompts will show no win rate of PPO over SFT; 100 show 50 ± 14%: give more")
    (coarse,) = foresee_evaluation(20, has_judge=True)
    assert "20 held-out prompts will show a win rate of PPO over SFT beyond 50 ± 31%" in coarse


def test_a_missing_judge_is_told_with_what_it_costs():
    (told,) = foresee_evaluation(128, has_judge=False)
    assert "no judge is named" in told and told.endswith("give judge: module:function")
    assert foresee_evaluation(128, has_judge=True) == []
