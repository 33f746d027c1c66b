"""Stage 4, evaluation: base, SFT and PPO answer the same held-out prompts, the reward model ranks held-out comparisons -> evaluation.json.

each policy in turn: answers, log-probabilities -> SFT: KL -> the reward model: scores, comparisons, probes -> the judge -> figures

One model is in memory at a time. What fails is told in `missing`, and the rest is published.
"""

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from data.schema import RecordKind
from data.token_file import TokenRows, read_prompt
from data.token_split import TokenSet
from data.tokens import EncodedPromptRecord
from stages.evaluate.answers import Shelf, sample_answers, unpack_answers
from stages.evaluate.judges import judge_each, judge_pairs, name_judge
from stages.evaluate.measure import Measured, describe_answers, list_comparisons, list_rows
from stages.evaluate.over_optimisation import measure_over_optimisation
from stages.evaluate.proxy import find_same_order, find_same_weights
from stages.evaluate.results import EVALUATION_FILE, Evaluation, LLMAsked, RewardCard
from stages.evaluate.reward_model import examine_reward_model
from stages.evaluate.room import require_room_for_answers
from stages.evaluate.scoring import measure_logprobs, score_answers, sum_kl
from stages.evaluate.subjects import Subject, list_subjects
from stages.evaluate.summary import summarize
from stages.evaluate_settings import EvaluateSettings
from stages.models.policy import load_policy
from stages.models.precision import freeze
from stages.models.reward_model import load_reward_model
from stages.models.special_tokens import grow_embeddings
from stages.models.tokenizer import align_special_tokens, load_tokenizer
from stages.process.context import StageContext, describe_machine
from stages.process.errors import StageError
from stages.process.gpu import release_memory
from stages.process.ranks import Ranks, join_ranks
from stages.responses.engine import make_sampling
from stages.responses.generation import describe_decoding
from stages.responses.judging import response_text, write_samples
from stages.result import StageResult
from stages.spec import SAMPLES_FILE
from stages.tokens import load_tokens


def main(context: StageContext) -> StageResult:
    """Evaluate."""
    spec, settings = context.spec, context.spec.settings
    assert isinstance(settings, EvaluateSettings)
    ranks = join_ranks(context)
    evaluator = Evaluator(context, ranks, settings)
    subjects, missing = list_subjects(spec, settings)
    evaluator.missing += missing
    held_out, counts = _load_held_out(context, evaluator)
    prompts = list(held_out["prompts"].prompts[: settings.prompts])
    require_room_for_answers(context, subjects, prompts, evaluator.sampling.max_new_tokens)
    context.event("start", stage="evaluate", unit="model", resumed_step=0)
    if "judge" in spec.models:
        evaluator.doubt(find_same_weights(Path(spec.models["judge"]), Path(spec.models["rm"])))
    if len(prompts) < 2:
        evaluator.missing.append(f"how sure the figures are: found {len(prompts)} held-out prompts, needed 2; give data.prompts.eval")
    evaluator.answer(subjects, prompts)
    measured = evaluator.collect(subjects)
    card = evaluator.ask_reward_model(measured, prompts, held_out["comparisons"])
    evaluator.ask_judge(measured, prompts)
    evaluation = evaluator.conclude(measured, prompts, card)
    metrics, intervals = summarize(evaluation)
    if context.is_main:
        context.progress("saving", 0, 0)
        rows = [row for found in measured.values() for row in list_rows(found, prompts)]
        write_samples(spec.output_dir / SAMPLES_FILE, rows)
        (spec.output_dir / EVALUATION_FILE).write_text(evaluation.model_dump_json(indent=1), encoding="utf-8")
    return StageResult(metrics=metrics, intervals=intervals, counts=counts | {"prompts": len(prompts)}, **describe_machine(context))


class Evaluator:
    """The steps of an evaluation, which share how answers are sampled, what is kept of them, and what is missing."""

    def __init__(self, context: StageContext, ranks: Ranks, settings: EvaluateSettings) -> None:
        self.context, self.ranks, self.settings = context, ranks, settings
        self.spec = context.spec
        self.tokenizer: Any = load_tokenizer(self.spec.models["sft"])
        longest = settings.max_response_tokens or self.spec.tokens.max_response_tokens
        self.sampling = make_sampling("evaluate", self.tokenizer, settings.stop_token, longest, settings.temperature or 1.0)
        self.shelf = Shelf(context, ranks)
        self.missing: list[str] = []
        self._slower: set[str] = set()
        self.llm: LLMAsked | None = None
        self.judge_doubt: str | None = None

    def answer(self, subjects: Sequence[Subject], prompts: Sequence[EncodedPromptRecord]) -> None:
        """Have each model answer, and say of its own sampled tokens how likely they were; of the others' too, while it is SFT."""
        if not prompts:
            return
        prompt_ids = [prompt.prompt_ids for prompt in prompts]
        others = [subject for subject in subjects if subject.way == "sampled" and subject.model != "sft"]
        for name, group in groupby(subjects, key=lambda subject: subject.model):
            ways = list(group)
            needed = [f"{subject.name}.answers" for subject in ways]
            if self.shelf.has(*needed, *([f"{other.name}.kl" for other in others] if name == "sft" else [])):
                continue
            try:
                policy = self._load(ways[0])
                if (slower := describe_decoding(policy)) and slower not in self._slower:  # all three are mostly of one family
                    self._slower.add(slower)
                    self.context.note(slower)
                for subject in ways:
                    self._sample(subject, policy, prompt_ids)
                if name == "sft":
                    for other in others:
                        self._measure_kl(other, policy, prompt_ids)
            except (StageError, ValueError) as error:
                self._miss(f"answers of {name}: {error}")
            policy = None
            release_memory(self.ranks.device)

    def collect(self, subjects: Sequence[Subject]) -> dict[str, Measured]:
        """Read what was said; name -> answers."""
        found: dict[str, Measured] = {}
        for subject in subjects:
            if self.shelf.has(f"{subject.name}.answers"):
                answers = self.shelf.read_answers(subject.name, subject.samples)
                texts = [response_text(self.tokenizer, ids) for ids in answers.ids]
                kl = self.shelf.read(f"{subject.name}.kl") if self.shelf.has(f"{subject.name}.kl") else {}
                found[subject.name] = Measured(subject, answers, texts, k1_N=kl.get("k1_N"), k3_N=kl.get("k3_N"))
        return found

    def ask_reward_model(
        self, measured: dict[str, Measured], prompts: Sequence[EncodedPromptRecord], comparisons: TokenSet
    ) -> RewardCard | None:
        """Score all answers, and rank held-out comparisons and what the probes make of their best answers."""
        reward_model: Any = load_reward_model(self.spec.models["rm"], self.spec.hardware)
        freeze(reward_model, self.spec.hardware).to(self.ranks.device)
        prompt_ids = [prompt.prompt_ids for prompt in prompts]
        for name, found in measured.items():
            if not self.shelf.has(f"{name}.score"):
                told = self.context.tells(f"scores of {found.subject.model}, {found.subject.way}")
                scores_N = score_answers(self.ranks, reward_model, found.answers.by_prompt(prompt_ids), told)
                self.shelf.keep(f"{name}.score", {"scores_N": scores_N})
            found.scores_N = self.shelf.read(f"{name}.score")["scores_N"]
            broken = int((~np.isfinite(found.scores_N)).sum())
            if broken:
                self._miss(f"scores of {name}: {broken} of {len(found.scores_N)} are not finite; train the rm stage with a lower rate")
                found.scores_N = None
        used = TokenRows(comparisons.file, comparisons.used, read_prompt)
        card, missing = examine_reward_model(
            self.context, self.ranks, self.settings, reward_model, self.tokenizer, comparisons.comparisons, used
        )
        self._miss(*missing)
        release_memory(self.ranks.device)
        return card

    def ask_judge(self, measured: dict[str, Measured], prompts: Sequence[EncodedPromptRecord]) -> None:
        """Have all answers judged."""
        judge = self.settings.judge
        if judge is not None and judge.llm is not None:
            self.llm, missing = judge_pairs(self.context, judge.llm, measured, prompts)
        elif judge is not None or self.spec.judge is not None:
            missing = judge_each(self.context, self.ranks, self.shelf, measured, prompts)
        else:
            missing = ["whether the answers are better, or only score higher: no judge is named; give judge: module:function"]
        self._miss(*missing)
        self.doubt(find_same_order(measured.values()))
        release_memory(self.ranks.device)

    def doubt(self, why: str | None) -> None:
        """Warn, once, of a judge that is none; None: nothing is known against it."""
        if why is not None and self.judge_doubt is None:
            self.judge_doubt = why
            self.context.warn("judge", why)

    def conclude(self, measured: dict[str, Measured], prompts: Sequence[EncodedPromptRecord], card: RewardCard | None) -> Evaluation:
        """Say what all of it allows to say."""
        self.context.progress("intervals", 0, 0)
        if not self.context.is_main:
            return Evaluation(prompts=len(prompts), judge=None, llm=None, judge_doubt=None)
        over_optimisation = measure_over_optimisation(measured, may_judge=self.judge_doubt is None)
        if over_optimisation is None:
            self._miss("whether PPO over-optimised: the scores of SFT or of PPO are not there")
        elif over_optimisation.over_optimised is None:
            needed = "a judge of every model" if self.judge_doubt is None else "a judge that PPO did not learn from"
            self._miss(f"where PPO should have stopped: without {needed} nothing can tell; give judge: module:function")
        kl_N = measured["ppo-sampled"].k1_N
        if over_optimisation is not None and over_optimisation.share_of_frontier is None and kl_N is not None:
            seen = over_optimisation.frontier[-1].kl if over_optimisation.frontier else 0.0
            found = f"PPO's KL is {kl_N.mean():.2g}, and samples of SFT show what is possible up to {seen:.2g}"
            at_least = over_optimisation.share_at_least
            bound = ""
            if at_least is not None and at_least.low is not None and at_least.high is not None and at_least.low > 0:
                bound = f"; it is at least {at_least.value:.0%} (95 % interval of that bound {at_least.low:.0%} to {at_least.high:.0%})"
            self._miss(f"which share of the possible score PPO reached: {found}{bound}; to see a KL of k takes some e^k evaluate.samples")
        judge = self.settings.judge
        kind = "function" if judge is None else "reward_model" if judge.llm is None else "llm"
        return Evaluation(
            prompts=len(prompts),
            judge=name_judge(self.spec, self.settings),
            judge_kind=kind,
            judge_unit={"function": "points", "reward_model": "of its scores", "llm": "of wins over SFT"}[kind],
            llm=self.llm,
            judge_doubt=self.judge_doubt,
            answers=tuple(describe_answers(found, self.settings.policy_samples) for found in measured.values()),
            comparisons=list_comparisons(measured),
            reward_card=card,
            over_optimisation=over_optimisation,
            missing=tuple(dict.fromkeys(self.missing)),
        )

    def _load(self, subject: Subject) -> Any:
        revision = self.spec.revision if subject.model == "base" else None
        policy: Any = load_policy(subject.path, self.spec.hardware, revision)
        if subject.model == "base":
            grow_embeddings(policy, self.tokenizer)  # it answers in the tokens of the others
        align_special_tokens(policy, self.tokenizer)
        return freeze(policy, self.spec.hardware).to(self.ranks.device)

    def _sample(self, subject: Subject, policy: Any, prompts: Sequence[list[int]]) -> None:
        if self.shelf.has(f"{subject.name}.answers"):
            return
        arrays = sample_answers(
            self.ranks,
            policy,
            prompts,
            subject.samples,
            self.sampling,
            greedy=subject.way == "greedy",
            seed=self.spec.seed,
            batch_size=self.settings.batch_size,
            told=self.context.tells(f"answers of {subject.model}, {subject.way}"),
        )
        if subject.way == "sampled" and subject.model != "sft":
            answers = unpack_answers(arrays, subject.samples)
            told = self.context.tells(f"log-probabilities of {subject.model}")
            rankings = answers.by_prompt(prompts)
            arrays["logprobs"] = measure_logprobs(self.ranks, policy, rankings, self.sampling.temperature, told)
        self.shelf.keep(f"{subject.name}.answers", arrays)

    def _measure_kl(self, subject: Subject, sft: Any, prompts: Sequence[list[int]]) -> None:
        if self.shelf.has(f"{subject.name}.kl") or not self.shelf.has(f"{subject.name}.answers"):
            return
        answers = self.shelf.read_answers(subject.name, subject.samples)
        told = self.context.tells(f"KL of {subject.model}")
        ref_logprobs = measure_logprobs(self.ranks, sft, answers.by_prompt(prompts), self.sampling.temperature, told)
        self.shelf.keep(f"{subject.name}.kl", sum_kl(answers, ref_logprobs))

    def _miss(self, *lines: str) -> None:
        self.missing += lines
        for line in lines:
            self.context.note(f"not measured: {line}")


def _load_held_out(context: StageContext, evaluator: Evaluator) -> tuple[dict[RecordKind, TokenSet], dict[str, int]]:
    """Load the held-out records: the same that training kept out."""
    held_out: dict[RecordKind, TokenSet] = {}
    counts: dict[str, int] = {}
    for kind in ("prompts", "comparisons"):
        _, held_out[kind] = load_tokens(context, evaluator.tokenizer, kind)
        counts |= {f"held_out_{key}": value for key, value in held_out[kind].counts().items()}
    return held_out, counts
