"""The verdict: each kind of finding has its words, its numbers and its interval, and never claims what was not seen."""

import math

import pytest

from pipeline.report.verdict import tell_artifact, tell_evaluation, tell_failure, write_share
from stages.evaluate.results import Answers, Comparison, CurvePoint, Evaluation, LLMAsked, OverOptimisation
from stages.result import Interval
from stages.statistics.bootstrap import Estimate
from stages.statistics.comparison import MeanDifference, WinRate

FEW = Estimate(1.0, None, None, 4, 4)


def estimate(value, low, high, clusters=200):
    return Estimate(value, low, high, 4 * clusters, clusters)


def compare(value, low, high, *, clusters=200, by="judge", difference=None, smallest=0.08, equal=None, a="sft", b="ppo"):
    return Comparison(
        a=a,
        b=b,
        way="sampled",
        by=by,
        win_rate=WinRate(estimate(value, low, high, clusters), smallest, 10, 0, 2),
        difference=MeanDifference(estimate(*difference, clusters), 4.0) if difference else None,
        length_controlled=equal,
    )


def evaluate(*comparisons, prompts=200, judge="data.demo.rule:judge", **more):
    return Evaluation(prompts=prompts, judge=judge, comparisons=comparisons, **more)


def test_a_clear_gain_names_win_rate_interval_prompts_and_points():
    verdict = tell_evaluation(evaluate(compare(0.842, 0.801, 0.879, difference=(38.04, 33.1, 42.8))))
    assert verdict.news == "good"
    assert verdict.sentence == (
        "PPO is better than SFT: PPO wins 84 % of 200 held-out prompts over SFT by the judge (95 % interval 80 % to 88 %), "
        "+38 (33.1 to 42.8) points"
    )


def test_no_visible_difference_says_what_so_many_prompts_can_show():
    verdict = tell_evaluation(evaluate(compare(0.56, 0.44, 0.68, clusters=64, smallest=0.17), prompts=64))
    assert verdict.news == "open"
    assert verdict.sentence.startswith("No visible difference between PPO and SFT")
    assert "64 prompts can show a win rate of 67 % or more, or 33 % or less" in verdict.sentence


def test_eight_prompts_can_hardly_show_any_difference():
    verdict = tell_evaluation(evaluate(compare(0.69, 0.28, 0.95, clusters=8, smallest=0.5), prompts=8))
    assert verdict.news == "open"
    assert "8 prompts can hardly show any" in verdict.sentence


def test_a_loss_that_the_reward_model_scores_higher_is_said_to_fool_it():
    by_score = compare(0.9, 0.86, 0.93, by="score", difference=(0.8, 0.7, 0.9))
    verdict = tell_evaluation(evaluate(compare(0.31, 0.25, 0.37, difference=(-12.3, -16, -9)), by_score))
    assert verdict.news == "bad"
    assert verdict.sentence.startswith("PPO is worse than SFT: PPO wins 31 %")
    assert "−12.3 (−16 to −9) points" in verdict.sentence
    assert "scores it higher, +0.8 (0.7 to 0.9): it is fooled" in verdict.sentence


def test_a_gain_that_is_gone_at_equal_length_is_no_good_news():
    verdict = tell_evaluation(evaluate(compare(0.62, 0.55, 0.69, equal=estimate(0.53, 0.46, 0.6))))
    assert verdict.news == "open"
    assert "at equal length 53 % (46 % to 60 %)" in verdict.sentence


def over_optimised(stop, judges=((0, 45), (10, 78), (20, 61)), flag=True):
    curve = tuple(
        CurvePoint(iteration=i, kl=0.4 * i, score=estimate(i / 10, i / 10 - 0.1, i / 10 + 0.1), judge=estimate(j, j - 3, j + 3))
        for i, j in judges
    )
    return OverOptimisation(curve=curve, stop_iteration=stop, over_optimised=flag)


def test_over_optimisation_says_where_it_should_have_stopped_even_where_ppo_won():
    verdict = tell_evaluation(evaluate(compare(0.66, 0.6, 0.72), over_optimisation=over_optimised(10)))
    assert verdict.news == "bad"
    assert verdict.sentence == (
        "PPO over-optimised: the judge was highest at iteration 10 with 78 (75 to 81) points and fell to 61 (58 to 64), while the reward "
        "model's score went from 1 to 2; it should have stopped at iteration 10 (KL 4 nats, at the end 8); what is published wins 66 % "
        "(60 % to 72 %) over SFT by the judge"
    )


def test_a_best_iteration_that_was_published_is_not_blamed_for_what_came_after_it():
    published = Answers(model="ppo", way="sampled", iteration=10, samples_per_prompt=4, response_tokens=FEW, finished=FEW)
    told = evaluate(compare(0.84, 0.8, 0.88), answers=(published,), over_optimisation=over_optimised(10))
    verdict = tell_evaluation(told)
    assert verdict.news == "good" and verdict.sentence.startswith("PPO is better than SFT: PPO wins 84 %")
    assert (
        ". What is published is iteration 10; later PPO over-optimised: the judge was highest at iteration 10 with 78 (75 to 81)"
        in verdict.sentence
    )
    late = published.model_copy(update={"iteration": 20})
    assert tell_evaluation(told.model_copy(update={"answers": (late,)})).news == "bad"


def test_a_judge_that_only_fell_says_that_ppo_should_not_have_begun():
    worse = over_optimised(0, ((0, 70), (10, 60), (20, 40)))
    verdict = tell_evaluation(evaluate(compare(0.2, 0.15, 0.25), over_optimisation=worse))
    assert verdict.news == "bad"
    assert "it should not have begun" in verdict.sentence


def test_a_run_that_did_not_over_optimise_is_not_said_to():
    verdict = tell_evaluation(evaluate(compare(0.84, 0.8, 0.88), over_optimisation=over_optimised(10, flag=False)))
    assert verdict.news == "good"
    assert "over-optimised" not in verdict.sentence


def test_without_a_judge_nothing_can_tell_over_optimisation():
    verdict = tell_evaluation(evaluate(compare(0.93, 0.9, 0.96, by="score", difference=(1.1, 1.0, 1.2)), judge=None))
    assert verdict.news == "open"
    assert "there is no judge, so nothing can tell" in verdict.sentence
    assert "+1.1 (1 to 1.2) in score" in verdict.sentence


def test_one_record_shows_nothing():
    verdict = tell_evaluation(evaluate(compare(1.0, None, None, clusters=1, smallest=1.4), prompts=1))
    assert verdict.news == "open"
    assert "of which one alone shows nothing" in verdict.sentence


def test_no_held_out_prompts_and_no_comparison_say_so():
    assert "no held-out prompts" in tell_evaluation(evaluate(prompts=0)).sentence
    told = tell_evaluation(evaluate(missing=("comparisons: the model of SFT could not be read; run sft again",))).sentence
    assert told == "Nothing was compared on 200 held-out prompts: comparisons: the model of SFT could not be read; run sft again"


def test_other_pairs_are_named_as_they_are():
    sentence = tell_evaluation(evaluate(compare(0.84, 0.8, 0.88, a="base", b="ppo-40"))).sentence
    assert sentence.startswith("PPO at iteration 40 is better than the base model")


def test_figures_that_are_not_numbers_are_bad_news_before_all_others():
    metrics = {"eval/accuracy": 0.9, "eval/loss": math.nan, "train/loss": math.inf}
    verdict = tell_artifact("rm", metrics, {"held_out_comparisons_used": 100})
    assert verdict.news == "bad"
    assert verdict.sentence.startswith("The reward model diverged: eval/loss, train/loss are not numbers")


def test_a_spread_that_one_value_does_not_have_is_no_divergence():
    verdict = tell_artifact("rm", {"eval/accuracy": 0.9, "val/explained_variance": math.nan}, {"held_out_comparisons_used": 100})
    assert verdict.news == "good"


@pytest.mark.parametrize(
    ("accuracy", "comparisons", "news", "words"),
    [
        (0.8116, 1000, "good", "81 % of held-out pairs (95 % interval at most 79 % to 83 %, 1,000 comparisons)"),
        (0.55, 60, "open", "may be a coin's 50 %"),
        (0.3, 200, "bad", "the other way round"),
        (1.0, 1, "open", "1 comparison: that shows nothing"),
    ],
)
def test_a_reward_model_is_held_against_a_coin(accuracy, comparisons, news, words):
    verdict = tell_artifact("rm", {"eval/accuracy": accuracy}, {"held_out_comparisons_used": comparisons})
    assert verdict.news == news
    assert words in verdict.sentence


def test_ppo_without_an_evaluation_claims_nothing():
    metrics = {"eval/start/score": 0.48, "eval/sampled/score": 1.178, "eval/sampled/kl": 0.001}
    verdict = tell_artifact("ppo", metrics, {"held_out_prompts": 200}, 8)
    assert verdict.news == "open"
    assert verdict.sentence.startswith("PPO: its score went from 0.48 to 1.18 on 8 held-out prompts at KL 0.001 nats; no judge")
    assert "without an interval this may be chance" in verdict.sentence


def test_intervals_that_a_manifest_has_are_told():
    metrics = {"eval/start/score": -0.2, "eval/sampled/score": 0.9, "eval/start/judge_score": 45.4, "eval/sampled/judge_score": 83.4}
    intervals = {"eval/sampled/judge_score": Interval(low=80.4, high=86.2, n=200)}
    verdict = tell_artifact("ppo", metrics, {"held_out_prompts": 200}, 200, intervals)
    assert verdict.news == "open"
    assert "the judge went from 45.4 to 83.4 (80.4 to 86.2) on 200 held-out prompts; it was not compared with SFT" in verdict.sentence
    within = {"eval/sampled/score": Interval(low=-0.25, high=1.3, n=33)}
    assert "score went from −0.2 to 0.9 (−0.25 to 1.3, which may be chance) and" in tell_artifact("ppo", metrics, {}, 33, within).sentence
    known = {"eval/accuracy": Interval(low=0.79, high=0.83, n=900)}
    verdict = tell_artifact("rm", {"eval/accuracy": 0.81}, {"held_out_comparisons_used": 1000}, None, known)
    assert verdict == tell_artifact("rm", {"eval/accuracy": 0.81}, {}, None, known)
    assert "81 % of held-out pairs (95 % interval 79 % to 83 %, 900 comparisons)" in verdict.sentence


def test_artifacts_of_which_nothing_was_measured_say_so():
    assert tell_artifact("sft", {}, {}).sentence.startswith("Nothing was measured of SFT on held-out data")
    assert "held-out loss of 0.3278 on 200 held-out demonstrations" in tell_artifact(
        "sft", {"eval/loss": 0.32779}, {"held_out_demonstrations_used": 200}
    ).sentence.replace("  ", " ")
    assert tell_artifact("adapter-of-mine", {}, {}).news == "open"


def test_answers_are_for_people_to_rank():
    told = tell_artifact("answers", {"answers": 4.0}, {"sets": 1200}, ref="answers@v2").sentence
    assert told == "Answers to 1,200 prompts, for people to rank: `rlhf rank answers@v2`"


def test_rankings_are_to_learn_from():
    told = tell_artifact("rankings", {"agreement": 0.5}, {"comparisons_train": 1100, "comparisons_eval": 90}, ref="rankings@v3").sentence
    use = "data.comparisons.train: [..., {ref: rankings@v3}] has a reward model learn from them"
    assert told == f"1,100 comparisons to train on, 90 held out; {use}"


@pytest.mark.parametrize(
    ("share", "words"),
    [(0.842, "84 %"), (0.996, "99.6 %"), (0.9997, "100 %"), (1.0, "100 %"), (0.0004, "0 %"), (0.004, "0.4 %"), (0.0, "0 %")],
)
def test_shares_near_none_and_all_have_a_decimal(share, words):
    assert write_share(share) == words


def test_a_failed_stage_is_told_with_its_reason():
    verdict = tell_failure("ppo", "out of memory on cuda:0; lower ppo.rollout_micro_batch_size")
    assert verdict.news == "bad"
    assert verdict.sentence.startswith("PPO did not end well: out of memory on cuda:0")


def ask_llm(**counts):
    known = {"pairs": 128, "agreed": 100, "tie": 8, "disagreed": 15, "same": 5, "malformed": 0, "unasked": 0, "replies": 246}
    return LLMAsked(**known | {"input_tokens": 90_000, "output_tokens": 5_000, "uncounted": 0, "cost": 0.34} | counts)


def test_a_language_model_that_judges_is_named_with_how_it_was_asked():
    llm = evaluate(compare(0.62, 0.55, 0.69), judge="big at api.example.com", judge_kind="llm", llm=ask_llm())
    assert tell_evaluation(llm).sentence == (
        "PPO is better than SFT: PPO wins 62 % of 200 held-out prompts over SFT by the LLM judge big at api.example.com (asked in both "
        "orders, which disagreed on 12 % of pairs: ties, cost 0.34) (95 % interval 55 % to 69 %)"
    )
    other = evaluate(compare(0.62, 0.55, 0.69, difference=(0.4, 0.3, 0.5)), judge="rm@v2", judge_kind="reward_model")
    assert "over SFT by the judge, a second reward model (rm@v2) (95 % interval" in tell_evaluation(other).sentence


def test_where_it_should_have_stopped_is_told_with_what_else_may_be_the_best():
    def point(iteration, kl, score, judge):
        return CurvePoint(iteration=iteration, kl=kl, score=estimate(score, score - 0.1, score + 0.1), judge=estimate(*judge))

    points = (
        point(0, 0, 0.0, (40, 35, 45)),
        point(20, 2, 0.5, (70, 65, 75)),
        point(40, 4, 0.8, (69, 64, 74)),
        point(60, 9, 1, (50, 45, 55)),
    )
    curve = OverOptimisation(curve=points, stop_iteration=20, stop_may_be=(20, 40), over_optimised=True)
    told = tell_evaluation(evaluate(compare(0.6, 0.5, 0.7), over_optimisation=curve)).sentence
    assert "highest at iteration 20 with 70 (65 to 75) points and fell to 50 (45 to 55); within noise (95 %) it may as well be 40" in told


def test_a_gain_by_a_judge_that_ppo_learnt_from_is_no_good_news():
    why = "the judge is the reward model that PPO learnt from (the same weights): it cannot tell whether PPO fools that model"
    told = tell_evaluation(evaluate(compare(0.84, 0.8, 0.88), judge_doubt=why))
    assert told.news == "open" and told.sentence.endswith(f"; but {why}") and "PPO wins 84 %" in told.sentence
