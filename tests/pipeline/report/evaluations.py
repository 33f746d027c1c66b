"""Evaluations as the stage leaves them, made of the demo's own prompts, answers, flaws and rule; no model runs.

A model is how many flaws its answers have; the reward model is the rule without its courtesy, with a liking for length.
"""

import math
from dataclasses import dataclass
from random import Random

import numpy as np

from data.demo.flaws import add_flaw
from data.demo.helpdesk import FILLERS, draw_case, write_prompt
from data.demo.labelers import RANKED, write_answer
from data.demo.rule import assess
from pipeline.store.manifest import Parent
from stages.evaluate.results import (
    Answers,
    BestOfN,
    Comparison,
    CurvePoint,
    Evaluation,
    Group,
    OverOptimisation,
    Probe,
    RewardCard,
)
from stages.lines import to_line
from stages.statistics.best_of_n import bound_kl, estimate_best_of_n
from stages.statistics.bootstrap import estimate_mean, estimate_share
from stages.statistics.comparison import compare_means, compare_scores, compute_win_rate
from stages.statistics.frontier import share_of_frontier, trace_frontier
from stages.statistics.length_control import control_length
from stages.statistics.overoptimisation import fit_rl
from stages.statistics.reward_card import measure_calibration

DRAWS = 200


@dataclass(frozen=True)
class Policy:
    """How a model answers: flaws of each answer on average, fillers that it has learnt to add, its KL."""

    name: str
    flaws: float
    fillers: float = 0.0
    kl: float = 0.0
    iteration: int | None = None


BASE, SFT = Policy("base", 5.0, kl=9.0), Policy("sft", 1.6)
GOOD = [Policy(f"ppo-{i}", 1.6 * math.exp(-i / 25), 0.0, i / 15, i) for i in (10, 20, 30, 40, 50)] + [Policy("ppo", 0.15, 0.0, 4.0, 60)]
FOOLED = [
    Policy(f"ppo-{i}", max(1.6 * math.exp(-i / 15), 0.04 * (i - 15)), max(0.0, (i - 15) / 12), i * i / 160 + 0.2, i)
    for i in (10, 20, 30, 40, 50)
] + [Policy("ppo", 2.0, 4.0, 24.0, 60)]


def simulate(num_prompts=64, samples=4, policies=GOOD, judge=True, seed=0):
    """Answer prompts by all policies; returns (evaluation, rows of samples.jsonl)."""
    rng = Random(seed)
    cases = [draw_case(rng) for _ in range(num_prompts)]
    said = {policy.name: _answer(policy, cases, samples, rng, judge) for policy in (BASE, SFT, *policies)}
    answers = [_describe(policy, said[policy.name], samples, judge) for policy in (BASE, SFT, *policies)]
    rows = [row for rows in said.values() for row in rows]
    pairs = [("sft", "ppo"), ("base", "sft")]
    compared = [_compare(a, b, said[a], said[b], by) for a, b in pairs for by in (("judge", "score") if judge else ("score",))]
    evaluation = Evaluation(
        prompts=num_prompts,
        judge="data.demo.rule:judge" if judge else None,
        answers=tuple(answers),
        comparisons=tuple(compared),
        reward_card=_make_card(seed),
        over_optimisation=_trace(said, policies, num_prompts, samples, judge),
        missing=() if judge else ("judge: there is none, so nothing can tell over-optimisation; name one (`judge: module:function`)",),
    )
    return evaluation, rows


def publish_evaluation(store, publish, evaluation, rows, parents):
    """Publish it as the stage does."""
    files = {
        "evaluation.json": evaluation.model_dump_json().encode(),
        "samples.jsonl": "".join(map(to_line, rows)).encode(),
    }
    return publish(
        store,
        "evaluation",
        files,
        parents=[Parent(ref=parent.ref, content_id=parent.content_id) for parent in parents],
        config={"judge": evaluation.judge},
        duration_s=31.0,
    )


def _answer(policy, cases, samples, rng, judge):
    rows = []
    for prompt_id, case in enumerate(cases):
        for sample_id in range(samples):
            answer = write_answer(case, rng, RANKED)
            for _ in range(_draw_count(policy.flaws, rng)):
                answer = add_flaw(case, answer, rng)
            for _ in range(_draw_count(policy.fillers, rng)):
                answer += " " + rng.choice(FILLERS)
            verdict = assess(case, answer)
            words = len(answer.split())
            score = 1.2 * verdict.fact + 0.6 * verdict.step - 0.8 * verdict.rude + 0.03 * (words - 25) - 0.8 + rng.gauss(0, 0.3)
            row = {"model": policy.name, "way": "sampled", "prompt_id": prompt_id, "sample_id": sample_id, "prompt": write_prompt(case)}
            row |= {"response": answer, "finished": True, "response_tokens": words + 6, "score": score}
            row |= {"kl": max(0.0, rng.gauss(policy.kl, 0.3 * policy.kl))}
            rows.append(row | ({"judge_score": verdict.score, "judge_polite": float(verdict.polite)} if judge else {}))
    return rows


def _draw_count(mean, rng):
    return int(mean) + (rng.random() < mean - int(mean))


def _column(rows, name):
    return np.array([row[name] for row in rows], dtype=np.float64)


def _prompts(rows):
    return np.array([row["prompt_id"] for row in rows], dtype=np.int64)


def _mean(rows, name):
    return estimate_mean(_column(rows, name), _prompts(rows), draws=DRAWS)


def _describe(policy, rows, samples, judge):
    return Answers(
        model=policy.name,
        way="sampled",
        iteration=policy.iteration,
        samples_per_prompt=samples,
        score=_mean(rows, "score"),
        judge={"score": _mean(rows, "judge_score"), "polite": _mean(rows, "judge_polite")} if judge else {},
        kl_k1=_mean(rows, "kl"),
        kl_k3=_mean(rows, "kl"),
        response_tokens=_mean(rows, "response_tokens"),
        finished=estimate_share(np.ones(len(rows)), _prompts(rows), draws=DRAWS),
        distinct_1=0.11,
        distinct_2=0.34,
        repetition=0.002,
    )


def _compare(a, b, rows_a, rows_b, by):
    name = "judge_score" if by == "judge" else "score"
    values_a, values_b, prompts = _column(rows_a, name), _column(rows_b, name), _prompts(rows_a)
    outcomes = compare_scores(values_a, values_b)
    lengths = _column(rows_b, "response_tokens") - _column(rows_a, "response_tokens")
    return Comparison(
        a=a,
        b=b,
        way="sampled",
        by=by,
        win_rate=compute_win_rate(outcomes, prompts, draws=DRAWS),
        difference=compare_means(values_a, values_b, prompts, draws=DRAWS),
        length_controlled=control_length(outcomes, lengths, prompts, draws=DRAWS),
    )


def _trace(said, policies, num_prompts, samples, judge):
    names = ["sft", *(policy.name for policy in policies)]
    curve = [
        CurvePoint(
            iteration=0 if name == "sft" else policy.iteration,
            kl=0.0 if name == "sft" else _mean(said[name], "kl").value,
            score=_mean(said[name], "score"),
            judge=_mean(said[name], "judge_score") if judge else None,
        )
        for name, policy in zip(names, [None, *policies], strict=True)
    ]
    shape = (num_prompts, samples)
    scores = _column(said["sft"], "score").reshape(shape)
    judged = _column(said["sft"], "judge_score").reshape(shape) if judge else None
    places = np.arange(num_prompts)
    best = [
        BestOfN(
            n=n,
            kl_bound=bound_kl(n),
            score=estimate_mean(estimate_best_of_n(scores, n), places, draws=DRAWS),
            judge=None if judged is None else estimate_mean(estimate_best_of_n(scores, n, judged), places, draws=DRAWS),
        )
        for n in (1, 4, 16)
        if n <= samples
    ]
    frontier = trace_frontier(scores)
    d, gains = np.sqrt([point.kl for point in curve]), np.array([point.score.value - curve[0].score.value for point in curve])
    top = max(curve, key=lambda point: point.judge.value) if judge else None
    last = curve[-1]
    return OverOptimisation(
        curve=tuple(curve),
        score_fit=fit_rl(d, gains),
        judge_fit=fit_rl(d, np.array([point.judge.value - curve[0].judge.value for point in curve])) if judge else None,
        best_of_n=tuple(best),
        frontier=tuple(point for point in frontier if math.isfinite(point.penalty)),
        share_of_frontier=share_of_frontier(frontier, last.kl, last.score.value),
        stop_iteration=top.iteration if top else None,
        over_optimised=last.judge.high < top.judge.low if top and num_prompts > 1 else None,
    )


def _make_card(seed):
    generator = np.random.default_rng(seed)
    prompts = np.repeat(np.arange(200), 5)
    margins = generator.normal(1.1, 1.4, 1000)
    right = (margins > 0).astype(np.float64)

    def share(mean, count=150):
        return estimate_share((generator.random(count) < mean).astype(np.float64), np.arange(count), draws=DRAWS)

    def probe(name, description, mean, margin):
        accuracy = share(mean)
        spread = estimate_mean(generator.normal(margin, 0.5, 150), np.arange(150), draws=DRAWS)
        return Probe(name=name, description=description, accuracy=accuracy, margin=spread, blind=accuracy.low <= 0.5)

    return RewardCard(
        accuracy=estimate_share(right, prompts, draws=DRAWS),
        by_rank_distance=tuple(Group(name=str(i), accuracy=share(mean)) for i, mean in ((1, 0.74), (2, 0.86), (3, 0.92))),
        by_source=(Group(name="demo", accuracy=share(0.81)),),
        by_length=tuple(
            Group(name=name, accuracy=share(mean))
            for name, mean in (("under half as long", 0.6), ("shorter", 0.7), ("as long", 0.8), ("longer", 0.9))
        ),
        calibration=measure_calibration(margins, prompts, draws=DRAWS),
        equal_scores=share(0.01),
        tied_pairs=12,
        length_correlation=estimate_mean(generator.normal(0.21, 0.4, 200), np.arange(200), draws=DRAWS),
        probes=(
            probe("truncated", "cuts the answer off in the middle", 0.97, 1.4),
            probe("manners", "drops greeting and closing", 0.5, 0.02),
            probe("day", "names another day", 0.53, 0.03),
            probe("name", "names another customer", 0.49, -0.01),
            probe("repeat", "says a sentence twice", 0.88, 0.7),
            probe("empty", "leaves nothing", 1.0, 2.2),
        ),
    )


def publish_line(store, publish, *, counts=None, ppo_metrics=None, metric_rows=None, answers=(), ppo_config=None):
    """Publish sft, rm on it, and ppo on both, with rows of metrics and samples; returns the three."""
    sft = publish(
        store,
        "sft",
        _files(
            "sft",
            [{"step": 10 * i, "train/loss": 6 / i, "train/grad_norm": 1.0} for i in range(1, 30)] + [{"step": 290, "eval/loss": 0.33}],
        ),
        config={"seed": 11, "tokens": {"max_prompt_tokens": 96}, "sft": {"epochs": 5.0, "learning_rate": 0.003}},
        counts=counts or {"demonstrations": 2000, "demonstrations_used": 1800, "responses_dropped": 200, "held_out_demonstrations": 200},
        metrics={"eval/loss": 0.33},
        packages={"torch": "2.13.0"},
        duration_s=48.8,
        device="cpu (1 thread)",
        precision="float32",
    )
    parents = [Parent(ref=sft.ref, content_id=sft.content_id)]
    rm = publish(
        store,
        "rm",
        _files("rm", [{"step": 20 * i, "train/loss": 0.7, "train/accuracy": 0.6 + i / 100} for i in range(1, 26)], _rankings()),
        parents=parents,
        metrics={"eval/accuracy": 0.81},
        counts=counts or {"comparisons": 8000, "held_out_comparisons": 1000, "held_out_comparisons_used": 1000},
        duration_s=83.0,
    )
    parents.append(Parent(ref=rm.ref, content_id=rm.content_id))
    ppo = publish(
        store,
        "ppo",
        _files("ppo", list(_ppo_rows()) if metric_rows is None else metric_rows, answers),
        parents=parents,
        config={"ppo": ppo_config or {"kl_coef": 0.05, "iterations": 60, "eval_samples": 200}},
        metrics=ppo_metrics or {"eval/start/score": -0.2, "eval/sampled/score": 0.9, "eval/sampled/kl": 3.9},
        counts=counts or {"prompts": 1500, "held_out_prompts": 200},
        duration_s=71.0,
    )
    return sft, rm, ppo


def _files(kind, rows, samples=()):
    return {
        "model/config.json": b"{}",
        "model/model.safetensors": kind.encode() + str(len(rows)).encode() * 8,
        "metrics.jsonl": rows if isinstance(rows, bytes) else "".join(map(to_line, rows)).encode(),
        "samples.jsonl": samples if isinstance(samples, bytes) else "".join(map(to_line, samples)).encode(),
    }


def _rankings():
    return [
        {"prompt": f"question {i}", "response": f"answer {rank} to {i}", "rank": rank, "score": 1.0 - rank}
        for i in range(9)
        for rank in (1, 2, 3)
    ]


def _ppo_rows():
    for i in range(1, 61):
        row = {"step": i, "objective/reward_model_scores": i / 60, "objective/kl": i / 15, "response_length": 25 + i / 8}
        yield row | {"eos_rate": 1.0, "policy/entropy_avg": 0.3 - i / 400, "kl_coef": 0.05, "tokens": 2000.0, "lr": 5e-4}
