"""What figures of PPO warn of, on histories made by hand."""

import pytest

from stages.settings import PPOSettings
from stages.warnings.ppo import make_rules
from stages.warnings.watch import Watch
from tests.stages.warnings.histories import evaluation, iterations


def find_warnings(rows, bfloat16=False, **settings):
    watch = Watch(make_rules(PPOSettings(**settings), computes_in_bfloat16=bfloat16))
    for row in rows:
        watch.take(row)
    return watch.found


def names(rows, **given):
    return [warning.name for warning in find_warnings(rows, **given)]


def found(rows, name, **given):
    return next(warning for warning in find_warnings(rows, **given) if warning.name == name)


def test_a_healthy_history_warns_of_nothing():
    learning = iterations(
        60,
        kl=lambda step: 4.5 * step / 60,
        length=lambda step: 25 + 10 * step / 60,
        entropy=lambda step: 0.3 - 0.15 * step / 60,
        explained=lambda step: -0.2 if step < 5 else 0.9,
    )
    held_out = [evaluation(step, step / 60, judge_score=(45 + step / 2, 2), finished=(1.0, 0.0)) for step in (0, 20, 40, 60)]
    assert names(sorted(learning + held_out, key=lambda row: row["step"])) == []


@pytest.mark.parametrize(
    ("changes", "settings", "warns"),
    [
        ({"kl": 10.5}, {}, True),
        ({"kl": 9.5}, {}, False),
        ({"kl": lambda step: 80.0 if step == 20 else 3.0}, {}, True),  # (80 + 9 · 3) / 10 = 10.7
        ({"kl": lambda step: 70.0 if step == 20 else 3.0}, {}, False),  # one rollout's noise: (70 + 9 · 3) / 10 = 9.7
        ({"kl": 45.0, "length": 500.0}, {}, False),  # 10 nats for each 100 tokens
        ({"kl": 55.0, "length": 500.0}, {}, True),
        ({"kl": 11.0}, {"kl_target": 6.0}, False),
        ({"kl": 13.0}, {"kl_target": 6.0}, True),
        ({"kl": 25.0}, {"kl_target": 20.0}, False),  # who asks for 20 gets 20
        ({"kl": float("nan")}, {}, False),
    ],
)
def test_kl_far_beyond_its_target_or_ten_nats_in_a_hundred_tokens_warns(changes, settings, warns):
    assert names(iterations(**changes), **settings) == (["kl"] if warns else [])


@pytest.mark.parametrize(
    ("changes", "warns"),
    [
        ({"length": lambda step: 30.0 if step <= 10 else 61.0}, ["length"]),
        ({"length": lambda step: 30.0 if step <= 10 else 59.0}, []),
        ({"entropy": lambda step: 0.25 if step <= 10 else 0.049}, ["entropy"]),
        ({"entropy": lambda step: 0.25 if step <= 10 else 0.051}, []),
        ({"explained": 0.0}, ["critic"]),
        ({"explained": lambda step: 0.01 if step % 10 == 0 else -1.0}, []),
        ({"explained": lambda step: -1.0 if 11 <= step <= 20 else 0.5}, ["critic"]),
        ({"deviation": lambda step: 0.02 if step == 7 else 0.0}, ["start_ratio"]),
        ({"deviation": 0.009}, []),
        ({"gap": lambda step: 0.002 if step == 9 else 0.0}, ["engine_gap"]),
        ({"gap": 0.0009}, []),
    ],
)
def test_each_rule_has_its_threshold(changes, warns):
    assert names(iterations(**changes)) == warns


def test_in_bfloat16_rounding_is_larger():
    rows = iterations(deviation=0.3, gap=0.05)
    assert names(rows) == ["engine_gap", "start_ratio"]
    assert names(rows, bfloat16=True) == []
    assert names(iterations(gap=0.05), rollout={"engine": "vllm"}) == []  # kernels of its own
    assert names(iterations(gap=0.12), rollout={"engine": "vllm"}) == ["engine_gap"]


def test_fewer_rows_than_the_window_say_nothing_of_averages():
    assert names(iterations(9, kl=100.0, explained=-1.0)) == []


def test_a_judge_that_falls_while_the_score_rises_is_told_with_where_it_was_best():
    rows = [
        evaluation(0, 0.0, judge_score=(45.0, 2.0)),
        evaluation(20, 0.8, judge_score=(80.0, 2.0)),
        evaluation(40, 1.1, judge_score=(73.0, 2.0)),  # 7 < 3 · √8 = 8.5: noise
        evaluation(60, 1.3, judge_score=(70.0, 2.0)),  # 10 > 8.5
    ]
    assert names(rows[:3]) == []
    warning = found(rows, "judge_falls")
    assert (warning.first_step, warning.last_step) == (60, 60)
    assert warning.message == (
        "the judge fell from 80 (iteration 20) to 70 (60) while the score rose from 0.8 to 1.3: the policy fools the reward model; "
        "raise ppo.kl_coef, or stop at iteration 20"
    )


def test_where_the_score_falls_too_the_judge_tells_nothing_new():
    rows = [evaluation(0, 0.5, judge_score=(80.0, 2.0)), evaluation(20, 0.1, judge_score=(40.0, 2.0))]
    assert names(rows) == []


def test_without_a_standard_error_nothing_is_said_of_held_out_figures():
    assert names([evaluation(0, 0.0, judge_score=80.0), evaluation(20, 1.0, judge_score=10.0)]) == []


def test_a_falling_share_of_finished_answers_warns():
    rows = [evaluation(0, 0.0, finished=(1.0, 0.0)), evaluation(20, 1.0, finished=(0.9, 0.03))]
    assert names(rows) == ["finished_falls"]
    assert names([rows[0], evaluation(20, 1.0, finished=(0.92, 0.03))]) == []  # 0.08 < 0.09


def test_a_warning_is_told_once_and_says_when_it_began_and_ended():
    watch = Watch(make_rules(PPOSettings(), computes_in_bfloat16=False))
    told = [
        (warning.name, row["step"])
        for row in iterations(60, kl=lambda step: 20.0 if step <= 30 else 1.0, explained=lambda step: -1.0 if step > 50 else 0.5)
        for warning in watch.take(row)
    ]
    assert told == [("kl", 10), ("critic", 60)]
    kl, critic = watch.found
    # The mean of ten rows is 10.5 with five of 20 left in it, at iteration 35.
    assert (kl.first_step, kl.last_step) == (10, 35) and "KL to the SFT model is 10.5 nats" in kl.message
    assert (critic.first_step, critic.last_step) == (60, 60)
