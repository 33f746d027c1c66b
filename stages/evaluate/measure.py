"""Answers with what is known of each -> figures with their intervals, comparisons of two models, and rows of samples.jsonl.

Axes: N answers, the samples of a prompt one after the other.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from data.tokens import EncodedPromptRecord
from stages.evaluate.answers import Answers
from stages.evaluate.results import Answers as AnswersFound
from stages.evaluate.results import By, Comparison
from stages.evaluate.subjects import Subject
from stages.statistics.bootstrap import Estimate, estimate_mean, estimate_share
from stages.statistics.comparison import compare_means, compare_scores, compute_win_rate
from stages.statistics.intervals import Floats, Ints
from stages.statistics.length_control import control_length
from stages.statistics.variety import measure_distinct, measure_repetition

JUDGE_SCORE = "score"


@dataclass
class Measured:
    """What one model said in one way, and what is known of each answer; None and empty where that could not be measured."""

    subject: Subject
    answers: Answers
    texts: list[str]
    scores_N: Floats | None = None
    verdicts: dict[str, Floats] = field(default_factory=dict[str, Floats])
    k1_N: Floats | None = None
    k3_N: Floats | None = None
    pairwise: bool = False  # whether the judge compared it with SFT: NaN where it said nothing

    def by(self, by: By) -> Floats | None:
        """The score of each answer, by the reward model or by the judge."""
        return self.scores_N if by == "score" else self.verdicts.get(JUDGE_SCORE)

    def first(self, samples: int) -> Any:
        """The places of the first samples of each prompt."""
        places = np.arange(len(self.answers.ids)).reshape(-1, self.answers.samples)
        return places[:, :samples].ravel()


def describe_answers(measured: Measured, at_most: int) -> AnswersFound:
    """Give the figures of a model's answers, each with its interval over prompts.

    Args:
        measured: The answers.
        at_most: Samples of each prompt among which words are counted: their variety falls as there are more.
    """
    answers, prompts_N, subject = measured.answers, measured.answers.prompts_N, measured.subject
    # Of SFT, which others are compared with, a pairwise judge says nothing.
    judged = {} if measured.pairwise and subject.model == "sft" else measured.verdicts
    words = [measured.texts[place].split() for place in measured.first(min(at_most, answers.samples)).tolist()]
    return AnswersFound(
        model=subject.model,
        way=subject.way,
        iteration=subject.iteration,
        samples_per_prompt=answers.samples,
        score=estimate_mean(measured.scores_N, prompts_N) if measured.scores_N is not None else None,
        judge={name: average_known(values_N, prompts_N) for name, values_N in judged.items()},
        kl_k1=estimate_mean(measured.k1_N, prompts_N) if measured.k1_N is not None else None,
        kl_k3=estimate_mean(measured.k3_N, prompts_N) if measured.k3_N is not None else None,
        response_tokens=estimate_mean(answers.lengths_N.astype(np.float64), prompts_N),
        finished=estimate_share(answers.finished_N.astype(np.float64), prompts_N),
        distinct_1=measure_distinct(words, 1),
        distinct_2=measure_distinct(words, 2),
        repetition=measure_repetition(words),
    )


def average_known(values_N: Floats, prompts_N: Ints) -> Estimate:
    """Average what is known, with its interval over prompts; some of it must be."""
    known_N = np.isfinite(values_N)
    return estimate_mean(values_N[known_N], prompts_N[known_N])


def compare(a: Measured, b: Measured, by: By) -> Comparison | None:
    """Say whether b is better than a, sample by sample of the same prompts; None where one of them has no such score."""
    scores_a_N, scores_b_N = a.by(by), b.by(by)
    if scores_a_N is None or scores_b_N is None:
        return None
    samples = min(a.answers.samples, b.answers.samples)
    of_a, of_b = a.first(samples), b.first(samples)
    known = np.isfinite(scores_a_N[of_a]) & np.isfinite(scores_b_N[of_b])
    of_a, of_b = of_a[known], of_b[known]
    if not len(of_a):
        return None
    prompts_N = a.answers.prompts_N[of_a]
    outcomes_N = compare_scores(scores_a_N[of_a], scores_b_N[of_b])
    longer_N = (b.answers.lengths_N[of_b] - a.answers.lengths_N[of_a]).astype(np.float64)
    return Comparison(
        a=a.subject.model,
        b=b.subject.model,
        way=a.subject.way,
        by=by,
        win_rate=compute_win_rate(outcomes_N, prompts_N),
        difference=None if by == "judge" and a.pairwise else compare_means(scores_a_N[of_a], scores_b_N[of_b], prompts_N),
        length_controlled=control_length(outcomes_N, longer_N, prompts_N),
    )


def list_comparisons(measured: dict[str, Measured]) -> tuple[Comparison, ...]:
    """Compare PPO with SFT, then SFT with base; sampled before greedy, and by the judge before the reward model."""
    found = [
        compare(measured[f"{a}-{way}"], measured[f"{b}-{way}"], by)
        for a, b in (("sft", "ppo"), ("base", "sft"))
        for way in ("sampled", "greedy")
        for by in ("judge", "score")
        if f"{a}-{way}" in measured and f"{b}-{way}" in measured
    ]
    return tuple(comparison for comparison in found if comparison is not None)


def list_rows(measured: Measured, prompts: Sequence[EncodedPromptRecord]) -> Iterator[dict[str, Any]]:
    """List the answers as rows of samples.jsonl."""
    answers = measured.answers
    verdicts = {} if measured.pairwise and measured.subject.model == "sft" else measured.verdicts
    for place, text in enumerate(measured.texts):
        prompt = place // answers.samples
        yield {
            "model": measured.subject.model,
            "way": measured.subject.way,
            "prompt_id": prompt,
            "sample_id": place % answers.samples,
            "prompt": prompts[prompt].prompt[-1].content,
            "response": text,
            "finished": bool(answers.finished_N[place]),
            "response_tokens": len(answers.ids[place]),
            **({} if measured.scores_N is None else {"score": float(measured.scores_N[place])}),
            **({} if measured.k1_N is None else {"kl": float(measured.k1_N[place])}),
            **{f"judge_{name}": float(values_N[place]) for name, values_N in verdicts.items() if np.isfinite(values_N[place])},
        }
