"""What evaluate says in the end, of answers of the same number with random scores: its intervals take as long, whatever they say."""

import time

import numpy as np

from stages.evaluate.answers import Answers
from stages.evaluate.measure import JUDGE_SCORE, Measured, describe_answers, list_comparisons
from stages.evaluate.subjects import Subject
from stages.settings import EvaluateSettings
from stages.tracing.report import TraceSpec


def measure_intervals(spec: TraceSpec) -> float:
    """Give the figures of base, PPO, the models that it kept and SFT, and compare them; returns the seconds that it computed."""
    settings, begun_s = spec.settings("evaluate"), time.process_time()
    assert isinstance(settings, EvaluateSettings)
    response_tokens = settings.max_response_tokens or spec.tokens.max_response_tokens
    draw, few = np.random.default_rng(0), settings.policy_samples
    measured: dict[str, Measured] = {}
    kept = [Subject(f"ppo-{number}", "sampled", few, "") for number in range(spec.kept)]
    for model, samples in (("base", few), ("ppo", few), ("sft", max(settings.samples, few))):
        for subject in (Subject(model, "sampled", samples, ""), Subject(model, "greedy", 1, ""), *(kept if model == "ppo" else [])):
            count = settings.prompts * subject.samples
            answers = Answers(
                [[0] * int(length) for length in draw.integers(1, response_tokens + 1, count)],
                draw.random(count) < 0.5,
                subject.samples,
                None,
            )
            scores_N, judge_N, k1_N = draw.normal(size=(3, count))
            measured[subject.name] = Measured(subject, answers, ["a word or two"] * count, scores_N, {JUDGE_SCORE: judge_N}, k1_N, k1_N**2)
    for found in measured.values():
        describe_answers(found, few)
    list_comparisons(measured)
    return time.process_time() - begun_s
