"""Answers for people to rank: K to a prompt, by one policy or several in turn -> answers.jsonl.

prompts, drawn -> each policy answers its share -> near-duplicates are sampled again -> shuffled, by whom kept beside them

Who ranks sees neither the policy nor a score: `models` is a column that the page does not read. One policy is in memory at a time.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from statistics import fmean
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch

from data.near_duplicates import measure_overlap
from data.tokens import EncodedPromptRecord
from stages.evaluate.answers import Shelf, sample_answers, unpack_answers
from stages.lines import to_line
from stages.models.handoff import identify_tokenizer
from stages.models.policy import load_policy
from stages.models.precision import freeze
from stages.models.tokenizer import align_special_tokens, load_tokenizer
from stages.process.context import StageContext, describe_machine
from stages.process.errors import StageError
from stages.process.ranks import Ranks, join_ranks
from stages.process.runtime import run_stage
from stages.process.seeds import derive_seed
from stages.responses.engine import Sampling, make_sampling
from stages.responses.judging import response_text
from stages.result import StageResult
from stages.sample_settings import SampleSettings
from stages.spec import ANSWERS_FILE, EXIT_FAILED, EXIT_USAGE, EXIT_VERIFICATION
from stages.tokens import load_tokens

if TYPE_CHECKING:
    from stages.responses.vllm_client import VLLMEngine

_PROMPTS, _ORDER = 1, 2  # what a seed is for
_NUL = "\0"


@dataclass
class AnswerSlots:
    """What is said to one prompt: a place for each answer, of which policy it is, and what stands there.

    Args:
        policies: Of each place, the number of its policy.
        texts: Of each place; None while nothing stands there.
        finished: Whether each ended by itself.
    """

    policies: list[int]
    texts: list[str | None] = field(init=False)
    finished: list[bool] = field(init=False)

    def __post_init__(self) -> None:
        self.texts = [None] * len(self.policies)
        self.finished = [False] * len(self.policies)

    def missing(self, policy: int) -> list[int]:
        """List the places of a policy where nothing stands."""
        return [place for place, whose in enumerate(self.policies) if whose == policy and self.texts[place] is None]

    def offer(self, place: int, text: str, limit: float, *, finished: bool) -> bool:
        """Put an answer into its place, unless it is a near-duplicate of one that is there, or no text; tells whether it stands."""
        if _NUL in text or any(known is not None and measure_overlap(known, text) >= limit for known in self.texts):
            return False
        self.texts[place], self.finished[place] = text, finished
        return True


def main(context: StageContext) -> StageResult:
    """Sample answers."""
    spec, settings = context.spec, context.spec.settings
    assert isinstance(settings, SampleSettings)
    ranks = join_ranks(context)
    names = list(spec.models)
    tokenizer = _load_tokenizer(spec.models)
    prompts, counts = _draw_prompts(context, settings, tokenizer)
    longest = settings.max_response_tokens or spec.tokens.max_response_tokens
    sampling = make_sampling("sample", tokenizer, settings.stop_token, longest, settings.temperature or 1.0)
    context.event("start", stage="sample", unit="policy", resumed_step=0)
    slots = [AnswerSlots([place % len(names) for place in range(settings.answers)]) for _ in prompts]
    with _open_server(context, ranks, settings, prompts, sampling) as server:
        sampler = _Sampler(context, ranks, Shelf(context, ranks), tokenizer, sampling, server)
        resampled, no_texts = _fill(sampler, settings, prompts, slots)
    rows, more, metrics = _lay_out(context, settings, prompts, slots, names)
    if context.is_main:
        context.progress("saving", 0, 0)
        with (spec.output_dir / ANSWERS_FILE).open("w", encoding="utf-8") as stream:
            stream.writelines(to_line(row, ascii_only=False) for row in rows)
    if no_texts:
        context.warn("no text", f"answers with a NUL character, which no text has and nobody can rank: {no_texts}, sampled again")
    metrics |= {"resampled": resampled / max(1, len(prompts) * settings.answers)}
    return StageResult(metrics=metrics, counts=counts | more | {"resampled": resampled}, **describe_machine(context))


def _load_tokenizer(models: dict[str, str]) -> Any:
    """Load the first policy's tokenizer.

    Raises:
        StageError: Another policy has another one, and so would be asked in other token ids.
    """
    (first, path), *others = models.items()
    tokenizer = load_tokenizer(path)
    for name, other in others:
        if identify_tokenizer(load_tokenizer(other)) != identify_tokenizer(tokenizer):
            found = f"{name} has another tokenizer or chat template than {first}"
            raise StageError(f"{found}; needed the same for all that answer; sample from each by itself", EXIT_VERIFICATION)
    return tokenizer


def _draw_prompts(context: StageContext, settings: SampleSettings, tokenizer: Any) -> tuple[list[EncodedPromptRecord], dict[str, int]]:
    """Draw the prompts, each once; the order in which they are drawn is the same for all rounds, which take one after the other."""
    train, held_out = load_tokens(context, tokenizer, "prompts")
    sides = {"train": [train], "held_out": [held_out], "all": [train, held_out]}[settings.which]
    different = {prompt.prompt: prompt for side in sides for prompt in side.prompts}
    found = list(different.values())
    generator = torch.Generator().manual_seed(derive_seed(context.spec.seed, _PROMPTS))
    order = torch.randperm(len(found), generator=generator).tolist()[settings.skip_prompts :]
    drawn = [found[place] for place in sorted(order[: settings.prompts])]
    if not drawn:
        there = f"found {len(found)} different prompts, of which sample.skip_prompts = {settings.skip_prompts} are passed over"
        raise StageError(f"{there}; needed one at least; give more prompts, or lower it", EXIT_USAGE)
    if settings.prompts and len(drawn) < settings.prompts:
        context.note(f"{len(drawn)} prompts are left of {len(found)}; sample.prompts = {settings.prompts} were asked for")
    repeated = sum(len(side.prompts) for side in sides) - len(found)
    return drawn, {"prompts": len(drawn)} | ({"prompts_repeated": repeated} if repeated else {})


@dataclass
class _Standing:
    """A policy that does not learn, as an engine is given it (`stages.responses.engine.PolicyHolder`)."""

    module: Any

    def whole_weights(self, *, frozen: bool = True) -> AbstractContextManager[None]:
        """They are whole already."""
        del frozen
        return nullcontext()


@dataclass(frozen=True)
class _Sampler:
    """What all policies are asked with.

    Args:
        shelf: Keeps what they said.
        server: Samples in place of their own forward; None: they do.
    """

    context: StageContext
    ranks: Ranks
    shelf: Shelf
    tokenizer: Any
    sampling: Sampling
    server: "VLLMEngine | None"


def _open_server(
    context: StageContext, ranks: Ranks, settings: SampleSettings, prompts: Sequence[EncodedPromptRecord], sampling: Sampling
) -> "AbstractContextManager[VLLMEngine | None]":
    if settings.rollout.engine == "torch":
        return nullcontext()
    from stages.responses.vllm_server import open_vllm

    if settings.rollout.sleep is not None:
        context.note(f"sample.rollout.sleep = {str(settings.rollout.sleep).lower()} is not used: nothing else is on the server's GPU")
    longest = max(len(prompt.prompt_ids) for prompt in prompts) + sampling.max_new_tokens
    return open_vllm(context, ranks, settings, longest)


def _fill(
    sampler: _Sampler, settings: SampleSettings, prompts: Sequence[EncodedPromptRecord], slots: Sequence[AnswerSlots]
) -> tuple[int, int]:
    """Have the policies answer until each place is filled, or too often; returns how many were asked for again, and were no text."""
    names = list(sampler.context.spec.models)
    resampled = no_texts = 0
    for attempt in range(settings.attempts + 1):
        for policy in range(len(names)):
            asked = [(number, place) for number, each in enumerate(slots) for place in each.missing(policy)]
            if asked:
                resampled += len(asked) if attempt else 0
                told = f"answers of {names[policy]}" + (f", again {attempt}" if attempt else "")
                answers = _sample(sampler, settings, (policy, attempt), [prompts[number].prompt_ids for number, _ in asked], told)
                for (number, place), (text, finished) in zip(asked, answers, strict=True):
                    no_texts += _NUL in text
                    slots[number].offer(place, text, settings.near_duplicate, finished=finished)
    return resampled, no_texts


def _sample(
    sampler: _Sampler, settings: SampleSettings, which: tuple[int, int], prompt_ids: Sequence[list[int]], told: str
) -> list[tuple[str, bool]]:
    """Have a policy answer these prompts, unless it did before the process was killed; `which` is (its number, the attempt)."""
    context, ranks, shelf, tokenizer, sampling = sampler.context, sampler.ranks, sampler.shelf, sampler.tokenizer, sampler.sampling
    spec, server, (policy_number, attempt) = context.spec, sampler.server, which
    name = f"policy-{policy_number}.{attempt}"
    if not shelf.has(name):
        path = list(spec.models.values())[policy_number]
        policy: Any = load_policy(path, spec.hardware, on_cpu=server is not None)
        align_special_tokens(policy, tokenizer)
        policy = freeze(policy, spec.hardware).to("cpu" if server else ranks.device)
        given: dict[str, Any] = {"greedy": False, "batch_size": settings.batch_size, "told": context.tells(told)}
        if server is not None:
            given["ask"] = partial(server.ask, server.load(_Standing(SimpleNamespace(policy=policy))), policy)
        seed = derive_seed(spec.seed, settings.skip_prompts, *which)
        try:
            arrays = sample_answers(ranks, policy, prompt_ids, 1, sampling, seed=seed, **given)
        except ValueError as error:
            raise StageError(f"{list(spec.models)[policy_number]}: {error}", EXIT_FAILED) from error
        shelf.keep(name, arrays)
        policy = None
        if ranks.device.type == "cuda":
            torch.cuda.empty_cache()
    answers = unpack_answers(shelf.read(name), 1)
    return [(response_text(tokenizer, ids), bool(ended)) for ids, ended in zip(answers.ids, answers.finished_N, strict=True)]


def _lay_out(
    context: StageContext, settings: SampleSettings, prompts: Sequence[EncodedPromptRecord], slots: Sequence[AnswerSlots], names: list[str]
) -> tuple[list[dict[str, Any]], dict[str, int], dict[str, float]]:
    """Lay out what is there as rows, each in an order of its own, and count what is not; a prompt with fewer than two answers is left out.

    Returns:
        (rows of answers.jsonl, counts, figures).
    """
    rows: list[dict[str, Any]] = []
    finished: list[bool] = []
    fewer, left_out = 0, 0
    for number, (prompt, each) in enumerate(zip(prompts, slots, strict=True)):
        there = [place for place, text in enumerate(each.texts) if text is not None]
        fewer += 2 <= len(there) < settings.answers
        left_out += len(there) < 2
        if len(there) < 2:
            continue
        generator = torch.Generator().manual_seed(derive_seed(context.spec.seed, _ORDER, settings.skip_prompts, number))
        order = [there[place] for place in torch.randperm(len(there), generator=generator).tolist()]
        finished += [each.finished[place] for place in order]
        rows.append(
            {
                "prompt": [{"role": message.role, "content": message.content} for message in prompt.prompt],
                "completions": [each.texts[place] for place in order],
                "models": [names[each.policies[place]] for place in order],
                "finished": [each.finished[place] for place in order],
            }
        )
    if not rows:
        needed = "needed two that differ for one of them at least; raise sample.temperature, or lower sample.near_duplicate"
        raise StageError(f"found the same answer again and again to each of {len(prompts)} prompts; {needed}", EXIT_FAILED)
    if fewer or left_out:
        lost = f"{fewer} prompts have fewer than {settings.answers} answers that differ, {left_out} fewer than two, which are left out"
        context.warn("alike", f"{lost}; raise sample.temperature or sample.attempts where that is much")
    counts = {"sets": len(rows), "sets_with_fewer": fewer, "prompts_left_out": left_out, "answers": len(finished)}
    return rows, counts, {"answers": len(finished) / len(rows), "finished": fmean(finished)}


if __name__ == "__main__":
    run_stage("sample", main)
