"""Answers for people to rank: K to a prompt, by one policy or several in turn -> answers.jsonl.

prompts, drawn -> each policy answers its share -> near-duplicates are sampled again -> (chosen from) -> shuffled, by whom kept beside them

Who ranks sees neither the policy nor a score: `models` and `arm` are columns that the page does not read. One model is in memory at a time.
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
from stages.process.gpu import release_memory
from stages.process.ranks import Ranks, join_ranks
from stages.process.runtime import run_stage
from stages.process.seeds import derive_seed
from stages.responses.engine import Sampling, make_sampling
from stages.responses.generation import note_decoding
from stages.responses.judging import response_text
from stages.result import StageResult
from stages.sample_choice import Shown, average_gaps, choose_shown, count_arms, draw_random_arm, write_states
from stages.sample_settings import SampleSettings
from stages.spec import ANSWERS_FILE, EXIT_FAILED, EXIT_USAGE, EXIT_VERIFICATION, REWARD_MODEL, STATES_FILE
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
        ids: Their token ids, as they were sampled.
        finished: Whether each ended by itself.
    """

    policies: list[int]
    texts: list[str | None] = field(init=False)
    ids: dict[int, list[int]] = field(init=False, default_factory=dict[int, list[int]])
    finished: list[bool] = field(init=False)

    def __post_init__(self) -> None:
        self.texts = [None] * len(self.policies)
        self.finished = [False] * len(self.policies)

    def missing(self, policy: int) -> list[int]:
        """List the places of a policy where nothing stands."""
        return [place for place, whose in enumerate(self.policies) if whose == policy and self.texts[place] is None]

    @property
    def there(self) -> list[int]:
        """List the places where something stands."""
        return [place for place, text in enumerate(self.texts) if text is not None]

    def offer(self, place: int, text: str, limit: float, *, finished: bool, ids: Sequence[int] = ()) -> bool:
        """Put an answer into its place, unless it is a near-duplicate of one that is there, or no text; tells whether it stands."""
        if _NUL in text or any(known is not None and measure_overlap(known, text) >= limit for known in self.texts):
            return False
        self.texts[place], self.finished[place], self.ids[place] = text, finished, list(ids)
        return True


def main(context: StageContext) -> StageResult:
    """Sample answers."""
    spec, settings = context.spec, context.spec.settings
    assert isinstance(settings, SampleSettings)
    ranks = join_ranks(context)
    names, chooses = _list_policies(context), settings.choose != "random"
    tokenizer = _load_tokenizer(spec.models)
    prompts, counts = _draw_prompts(context, settings, tokenizer)
    longest = settings.max_response_tokens or spec.tokens.max_response_tokens
    sampling = make_sampling("sample", tokenizer, settings.stop_token, longest, settings.temperature or 1.0)
    context.event("start", stage="sample", unit="policy", resumed_step=0)
    at_random = draw_random_arm(settings, len(prompts), spec.seed) if chooses else [True] * len(prompts)
    sizes = [settings.answers if chance else settings.candidates for chance in at_random]
    slots = [AnswerSlots([place % len(names) for place in range(size)]) for size in sizes]
    shelf = Shelf(context, ranks)
    with _open_server(context, ranks, settings, prompts, sampling) as server:
        resampled, no_texts = _fill(_Sampler(context, ranks, shelf, tokenizer, sampling, server), settings, prompts, slots)
    shown = [Shown(each.there) for each in slots]
    if chooses:
        asked = [{place: each.ids[place] for place in each.there} for each in slots]
        shown = choose_shown((context, ranks, shelf, tokenizer), settings, [prompt.prompt_ids for prompt in prompts], asked, at_random)
    rows, more, metrics = _lay_out(context, settings, prompts, slots, shown)
    if context.is_main:
        context.progress("saving", 0, 0)
        with (spec.output_dir / ANSWERS_FILE).open("w", encoding="utf-8") as stream:
            stream.writelines(to_line(row, ascii_only=False) for row in rows)
    if no_texts:
        context.warn("no text", f"answers with a NUL character, which no text has and nobody can rank: {no_texts}, sampled again")
    if longest >= (limit := spec.tokens.max_response_tokens) and metrics["finished"] < 0.95:  # as of answers that are dropped
        cut = f"{1 - metrics['finished']:.0%} of the answers did not end within {longest} tokens: with an end token more than {limit}"
        context.warn("cut", f"{cut}: no reward model learns of them; lower sample.max_response_tokens or raise tokens.max_response_tokens")
    metrics |= {"resampled": resampled / max(1, sum(sizes))}
    return StageResult(metrics=metrics, counts=counts | more | {"resampled": resampled}, **describe_machine(context))


def _list_policies(context: StageContext) -> list[str]:
    """List the refs of the policies, in order; beside them stands the reward model that chooses."""
    return [name for name in context.spec.models if name != REWARD_MODEL]


def _load_tokenizer(models: dict[str, str]) -> Any:
    """Load the first policy's tokenizer.

    Raises:
        StageError: Another model has another one, and so would be asked in other token ids.
    """
    (first, path), *others = models.items()
    tokenizer = load_tokenizer(path)
    for name, other in others:
        if identify_tokenizer(load_tokenizer(other)) != identify_tokenizer(tokenizer):
            found = f"{name} has another tokenizer or chat template than {first}"
            raise StageError(f"{found}; needed the same for all that answer or choose; leave it away", EXIT_VERIFICATION)
    return tokenizer


def _draw_prompts(context: StageContext, settings: SampleSettings, tokenizer: Any) -> tuple[list[EncodedPromptRecord], dict[str, int]]:
    """Draw the prompts, each once; the order in which they are drawn is the same for all rounds, which take one after the other."""
    train, held_out = load_tokens(context, tokenizer, "prompts")
    sides = {"train": [train], "held_out": [held_out], "all": [train, held_out]}[settings.which]
    different = {prompt.prompt: prompt for side in sides for prompt in side.prompts}
    found = list(different.values())
    generator = torch.Generator().manual_seed(derive_seed(context.spec.seed, _PROMPTS))
    order = torch.randperm(len(found), generator=generator).tolist()[settings.skip_prompts :]
    drawn = [found[place] for place in sorted(order[: settings.pool])]
    if not drawn:
        there = f"found {len(found)} different prompts, of which sample.skip_prompts = {settings.skip_prompts} are passed over"
        raise StageError(f"{there}; needed one at least; give more prompts, or lower it", EXIT_USAGE)
    if settings.pool and len(drawn) < settings.pool:
        key = "prompts" if settings.pool == settings.prompts else "candidate_prompts"
        context.note(f"{len(drawn)} prompts are left of {len(found)}; sample.{key} = {settings.pool} were asked for")
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
    names = _list_policies(sampler.context)
    resampled = no_texts = 0
    for attempt in range(settings.attempts + 1):
        for policy in range(len(names)):
            asked = [(number, place) for number, each in enumerate(slots) for place in each.missing(policy)]
            if asked:
                resampled += len(asked) if attempt else 0
                told = f"answers of {names[policy]}" + (f", again {attempt}" if attempt else "")
                answers = _sample(sampler, settings, (policy, attempt), [prompts[number].prompt_ids for number, _ in asked], told)
                for (number, place), (text, finished, ids) in zip(asked, answers, strict=True):
                    no_texts += _NUL in text
                    slots[number].offer(place, text, settings.near_duplicate, finished=finished, ids=ids)
    return resampled, no_texts


def _sample(
    sampler: _Sampler, settings: SampleSettings, which: tuple[int, int], prompt_ids: Sequence[list[int]], told: str
) -> list[tuple[str, bool, list[int]]]:
    """Have a policy answer these prompts, unless it did before the process was killed; `which` is (its number, the attempt)."""
    context, ranks, shelf, tokenizer, sampling = sampler.context, sampler.ranks, sampler.shelf, sampler.tokenizer, sampler.sampling
    spec, server, (policy_number, attempt) = context.spec, sampler.server, which
    name, own = f"policy-{policy_number}.{attempt}", _list_policies(context)[policy_number]
    if not shelf.has(name):
        policy: Any = load_policy(spec.models[own], spec.hardware, on_cpu=server is not None)
        align_special_tokens(policy, tokenizer)
        policy = freeze(policy, spec.hardware).to("cpu" if server else ranks.device)
        if server is None and attempt == 0:
            note_decoding(context, policy)
        given: dict[str, Any] = {"greedy": False, "batch_size": settings.batch_size, "told": context.tells(told)}
        if server is not None:
            given["ask"] = partial(server.ask, server.load(_Standing(SimpleNamespace(policy=policy))), policy)
        seed = derive_seed(spec.seed, settings.skip_prompts, *which)
        try:
            arrays = sample_answers(ranks, policy, prompt_ids, 1, sampling, seed=seed, **given)
        except ValueError as error:
            raise StageError(f"{own}: {error}", EXIT_FAILED) from error
        shelf.keep(name, arrays)
        policy = None
        release_memory(ranks.device)
    answers = unpack_answers(shelf.read(name), 1)
    return [(response_text(tokenizer, ids), bool(ended), ids) for ids, ended in zip(answers.ids, answers.finished_N, strict=True)]


def _lay_out(
    context: StageContext,
    settings: SampleSettings,
    prompts: Sequence[EncodedPromptRecord],
    slots: Sequence[AnswerSlots],
    shown: Sequence[Shown],
) -> tuple[list[dict[str, Any]], dict[str, int], dict[str, float]]:
    """Lay out what is shown as rows, each in an order of its own, and count what is not; a prompt with fewer than two answers is left out.

    Returns:
        (rows of answers.jsonl, counts, figures).
    """
    names, rows, kept = _list_policies(context), list[dict[str, Any]](), list[tuple[Shown, list[int]]]()
    finished: list[bool] = []
    fewer, left_out, passed_over = 0, 0, 0
    for number, (prompt, each, which) in enumerate(zip(prompts, slots, shown, strict=True)):
        places = which.places
        left_out += len(each.there) < 2
        passed_over += len(each.there) > 1 and not places
        if len(places) < 2:
            continue
        fewer += len(places) < settings.answers
        generator = torch.Generator().manual_seed(derive_seed(context.spec.seed, _ORDER, settings.skip_prompts, number))
        shuffled: list[int] = torch.randperm(len(places), generator=generator).tolist()
        order = [places[place] for place in shuffled]
        finished += [each.finished[place] for place in order]
        rows.append(
            {
                "prompt": [{"role": message.role, "content": message.content} for message in prompt.prompt],
                "completions": [each.texts[place] for place in order],
                "models": [names[each.policies[place]] for place in order],
                "finished": [each.finished[place] for place in order],
            }
            | ({"arm": which.arm} if which.arm else {})
        )
        kept.append((which, shuffled))
    if not rows:
        needed = "needed two that differ for one of them at least; raise sample.temperature, or lower sample.near_duplicate"
        raise StageError(f"found the same answer again and again to each of {len(prompts)} prompts; {needed}", EXIT_FAILED)
    if fewer or left_out:
        lost = f"{fewer} prompts have fewer than {settings.answers} answers that differ, {left_out} fewer than two, which are left out"
        context.warn("alike", f"{lost}; raise sample.temperature or sample.attempts where that is much")
    counts = {"sets": len(rows), "sets_with_fewer": fewer, "prompts_left_out": left_out, "answers": len(finished)}
    metrics = {"answers": len(finished) / len(rows), "finished": fmean(finished)}
    if settings.choose == "random":
        return rows, counts, metrics
    if context.is_main:
        write_states(context.spec.output_dir / STATES_FILE, kept)
    return rows, counts | count_arms([which for which, _ in kept], passed_over), metrics | average_gaps([which for which, _ in kept])


if __name__ == "__main__":
    run_stage("sample", main)
