"""What an evaluation found: `evaluation.json` of its artifact, for the report, the terminal and whoever reads it. Torch-free.

Whatever could not be measured is None or empty, and `missing` says in words what that is, why, and what to do about it.
Answers stand in `samples.jsonl`, a row each: `model` and `way` as in `Answers`, `prompt_id` (its place among the prompts), `sample_id` (of
this prompt), `prompt`, `response`, `finished`, `response_tokens`, `score`, `kl` (k1 summed over its tokens), `judge_<figure>`; a figure
that was not measured is left out of the row.
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from stages.blocks import Closed
from stages.statistics.bootstrap import Estimate
from stages.statistics.comparison import MeanDifference, WinRate
from stages.statistics.frontier import FrontierPoint
from stages.statistics.overoptimisation import Fit
from stages.statistics.reward_card import Calibration

EVALUATION_FILE = "evaluation.json"

Way = Literal["sampled", "greedy"]
By = Literal["score", "judge"]  # the reward model that PPO learnt from (the proxy); or a judge that no training has seen


class Answers(Closed):
    """What one model says to the fixed held-out prompts, in one way."""

    model: str = Field(description="`base`, `sft`, `ppo` (what is published), or `ppo-<iteration>` of a checkpoint that was kept.")
    way: Way
    iteration: int | None = Field(None, description="Of `ppo` and kept checkpoints.")
    samples_per_prompt: int
    score: Estimate | None = Field(None, description="By the reward model.")
    judge: dict[str, Estimate] = Field(default_factory=dict, description="Each figure of the judge; `score` is among them.")
    kl_k1: Estimate | None = Field(None, description="KL to the SFT model per response, nats: mean of log p - log p_sft (sampled).")
    kl_k3: Estimate | None = Field(None, description="The same by exp(-x) - 1 + x, which is never negative (sampled).")
    response_tokens: Estimate
    finished: Estimate
    distinct_1: float | None = Field(None, description="Different words / all words, over all answers.")
    distinct_2: float | None = Field(None, description="The same of pairs of words.")
    repetition: float | None = Field(None, description="Share of n-grams that stood in the same answer before.")


class LLMAsked(Closed):
    """What a language model was asked: which of two answers is better, SFT's or another's, each pair in both orders."""

    pairs: int
    agreed: int = Field(description="One was better in both orders.")
    tie: int = Field(description="Neither was, in both orders.")
    disagreed: int = Field(description="The two orders disagreed, which counts as a tie.")
    same: int = Field(description="Equal texts: a tie that was not asked.")
    malformed: int = Field(description="A reply was no verdict: left out.")
    unasked: int = Field(description="Beyond max_cost: left out.")
    replies: int
    input_tokens: int
    output_tokens: int
    uncounted: int = Field(description="Replies whose tokens the server did not count; the most that they can be is taken.")
    cost: float | None = Field(None, description="Of all replies when they were asked, in the currency of the recipe's prices.")
    max_cost: float | None = None

    @property
    def disagreement(self) -> float:
        """Share of the pairs with two verdicts on which the orders disagreed."""
        asked = self.agreed + self.tie + self.disagreed
        return self.disagreed / asked if asked else 0.0


class Comparison(Closed):
    """Answers of two models to the same prompts: is b better than a?"""

    a: str
    b: str
    way: Way
    by: By
    win_rate: WinRate = Field(description="Of b over a, paired by prompt.")
    difference: MeanDifference | None = Field(None, description="Score of b - score of a; None where a judge only says which is better.")
    length_controlled: Estimate | None = Field(None, description="The win rate at equal length.")


class Group(Closed):
    """Held-out pairs of one kind."""

    name: str
    accuracy: Estimate


class Probe(Closed):
    """Pairs that differ by one named edit: does the reward model see it?"""

    name: str
    description: str = Field(description="What the edit does, such as `swaps a number`.")
    accuracy: Estimate = Field(description="Share of pairs in which the answer without the edit scores higher.")
    margin: Estimate = Field(description="Score without the edit - score with it.")
    blind: bool = Field(description="The interval does not exclude a coin's 0.5, or lies below it.")


class RewardCard(Closed):
    """What the reward model sees of held-out comparisons, and how sure it may be."""

    accuracy: Estimate
    by_rank_distance: tuple[Group, ...] = ()
    by_source: tuple[Group, ...] = ()
    by_length: tuple[Group, ...] = ()
    calibration: Calibration | None = None
    equal_scores: Estimate | None = Field(None, description="Share of pairs that it scores alike.")
    tied_pairs: int = Field(0, description="Pairs that people ranked alike; not counted in accuracy.")
    length_correlation: Estimate | None = Field(None, description="Of score and length, in tokens, within a prompt.")
    probes: tuple[Probe, ...] = ()


class CurvePoint(Closed):
    """A PPO checkpoint, sampled."""

    iteration: int
    kl: float
    score: Estimate
    judge: Estimate | None = None


class BestOfN(Closed):
    """The best of n answers of the SFT model, by the reward model."""

    n: int
    kl_bound: float = Field(description="log n - (n - 1) / n: an upper bound of its KL, in nats.")
    score: Estimate
    judge: Estimate | None = None


class OverOptimisation(Closed):
    """How the proxy and the judge move with the KL, what SFT samples alone could reach, and where to stop."""

    curve: tuple[CurvePoint, ...] = Field(description="By iteration; begins with the SFT model at iteration 0, KL 0.")
    score_fit: Fit | None = Field(None, description="Gao's RL form of the score's gain over sqrt(KL).")
    judge_fit: Fit | None = Field(None, description="The same of the judge.")
    best_of_n: tuple[BestOfN, ...] = ()
    frontier: tuple[FrontierPoint, ...] = Field(
        (), description="The best score that samples of SFT allow at each KL; penalties are finite."
    )
    share_of_frontier: float | None = Field(None, description="Score that the published PPO gained / what the frontier allows at its KL.")
    share_at_least: Estimate | None = Field(
        None, description="A bound of that share from below, where PPO's KL lies beyond what samples show."
    )
    stop_iteration: int | None = Field(None, description="Where the judge is highest; None where nothing can tell.")
    stop_may_be: tuple[int, ...] = Field((), description="Iterations among which the truly highest lies, with 95 % confidence.")
    over_optimised: bool | None = Field(
        None, description="The last iteration is none of `stop_may_be`, though its score is higher; None: nothing can tell."
    )

    def at(self, iteration: int | None) -> CurvePoint:
        """Find the point of an iteration; the last one where there is none."""
        return next((point for point in self.curve if point.iteration == iteration), self.curve[-1])


class Evaluation(Closed):
    """All of it. Every number is finite: a figure that is not is left out, and told in `missing`."""

    format: Literal[1] = 1
    prompts: int = Field(description="Held-out prompts that were answered.")
    judge: str | None = Field(None, description="What the judge is, such as `data.demo.rule:judge`.")
    judge_kind: Literal["function", "reward_model", "llm"] = "function"
    judge_unit: Annotated[str, Field(max_length=40)] = "points"
    llm: LLMAsked | None = Field(None, description="What it was asked, where it is a language model.")
    judge_doubt: str | None = Field(
        None, exclude_if=lambda why: why is None, description="Why the judge cannot tell whether PPO fools the reward model."
    )
    answers: tuple[Answers, ...] = ()
    comparisons: tuple[Comparison, ...] = Field(
        default=(), description="PPO over SFT first, by the judge where there is one; then the others."
    )
    reward_card: RewardCard | None = None
    over_optimisation: OverOptimisation | None = None
    missing: tuple[str, ...] = Field(default=(), description="What could not be measured, why, and what to do: one line each.")

    @property
    def published(self) -> int | None:
        """The iteration that PPO published: with `ppo.publish: best` it need not be the last that it kept."""
        return next((answers.iteration for answers in self.answers if answers.model == "ppo"), None)


def read_evaluation(artifact_dir: Path) -> Evaluation:
    """Read what an evaluation left.

    Raises:
        OSError: there is no such file.
        pydantic.ValidationError: it is none.
    """
    return Evaluation.model_validate_json((artifact_dir / EVALUATION_FILE).read_text(encoding="utf-8"))
