"""The policy on fixed held-out prompts: reward model score and KL to the reference side by side, and what a judge says.

Score and KL are always shown together: a rising score at a rising KL is how over-optimisation looks.
"""

import math
from collections.abc import Callable
from statistics import stdev
from typing import Any, Literal

from data.tokens import EncodedPromptRecord
from stages.ppo.trainer import PPOTrainer
from stages.process.context import Told
from stages.responses.judge import Judge
from stages.responses.judging import Answer, judge_answers, report_answers, response_text
from stages.responses.kl import estimate_kl_k1

Way = Literal["sampled", "greedy"]


class HeldOut:
    """Answers the same prompts with the same sampling noise whenever it is asked; each rank its share of them."""

    def __init__(
        self,
        trainer: PPOTrainer,
        tokenizer: Any,
        prompts: list[EncodedPromptRecord],
        judge: Judge | None,
        *,
        seed: int,
        note: Callable[[str], None] = print,
    ) -> None:
        self.trainer = trainer
        self.tokenizer = tokenizer
        self.prompts = prompts
        self.judge = judge
        self.seed = seed
        self.note = note

    def answer(self, way: Way, told: Told = lambda done, total: None) -> tuple[dict[str, float], list[dict[str, Any]]]:
        """Answer the held-out prompts, and where the policy's weights are averaged, with the average too, under `ema_<way>`.

        Returns:
            (figures, sample rows): `eval/<way>/score` (the reward model's, untouched by clip, scale and the rule for unfinished
            responses), `eval/<way>/kl` (k1, summed over a response: an estimate of the KL of sampled answers; of greedy ones
            only how much likelier they are than by the reference), `.../finished`, `.../response_tokens`, `.../judge_<figure>`; and the
            standard errors `.../score_se`, `.../finished_se`, `.../judge_score_se`.
        """
        if not self.prompts:
            return {}, []
        told(0, len(self.prompts))
        figures, rows = self._answer(way, way, told)
        average = self.trainer.average
        if average is not None and self.trainer.iteration > 0:  # before the first step both are one
            with average.in_use():
                more_figures, more_rows = self._answer(way, f"ema_{way}")
            figures, rows = figures | more_figures, rows + more_rows
        told(len(self.prompts), len(self.prompts))
        return figures, rows

    def _answer(self, way: Way, label: str, told: Told | None = None) -> tuple[dict[str, float], list[dict[str, Any]]]:
        trainer = self.trainer
        ranks = trainer.ranks
        # Equally many on each rank: the first prompts once more, where their number does not divide.
        count = -(-len(self.prompts) // ranks.count) * ranks.count
        prompts = [self.prompts[place % len(self.prompts)] for place in range(ranks.index, count, ranks.count)]

        def heard(done: int, total: int) -> None:  # of this rank's; scores and figures are still to come
            if told and done * ranks.count < len(self.prompts):
                told(done * ranks.count, len(self.prompts))

        rollout = trainer.roll_out([prompt.prompt_ids for prompt in prompts], self.seed, greedy=way == "greedy", told=heard)
        scores = trainer.ask_reward_model(rollout).tolist()
        figures = trainer.evaluate_tokens(rollout)
        kls = estimate_kl_k1(figures.logprobs_BR, figures.ref_logprobs_BR, rollout.response_mask_BR).sum(dim=1).tolist()

        responses = [
            ids[:length] for ids, length in zip(rollout.response_ids_BR.tolist(), rollout.response_lengths_B.tolist(), strict=True)
        ]
        finished: list[bool] = rollout.finished_B.tolist()
        answers = [Answer(ids, response_text(self.tokenizer, ids), done) for ids, done in zip(responses, finished, strict=True)]
        verdicts, failure = judge_answers(self.judge, prompts, answers)
        if failure := next(filter(None, ranks.gather([failure])), None):  # of any rank: an average over some would be of other prompts
            self.note(failure)
            self.judge, verdicts = None, [{} for _ in answers]
        known = [{"score": score, "kl": kl} for score, kl in zip(scores, kls, strict=True)]
        answered = ranks.gather(list(zip(prompts, answers, verdicts, known, strict=True)))[: len(self.prompts)]
        figures_of_all, rows = report_answers(label, *zip(*answered, strict=True))
        return figures_of_all | _standard_errors(label, rows), rows


def _standard_errors(label: str, rows: list[dict[str, Any]]) -> dict[str, float]:
    """Say how much of an average over prompts is chance: s / √n of score, judge and finished share, as `eval/<way>/<figure>_se`."""
    if len(rows) < 2:
        return {}
    names = [name for name in ("score", "finished", "judge_score") if name in rows[0]]
    return {f"eval/{label}/{name}_se": stdev(float(row[name]) for row in rows) / math.sqrt(len(rows)) for name in names}
