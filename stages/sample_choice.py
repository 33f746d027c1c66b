"""`sample.choose: deltaucb`: which of the sampled answers people are shown, beside a share of the prompts that is left to chance.

comparisons -> precision of the reward model's head -> whitened states of the candidates -> gaps -> what is shown of each prompt

Axes: as stages.choice; N answers of all prompts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, pairwise
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data.answers import AT_RANDOM, CHOSEN
from data.tokens import EncodedComparison
from stages.choice import Evidence, choose_answers, factor_precision, measure_evidence, measure_gaps, whiten
from stages.evaluate.answers import Arrays, Shelf, together
from stages.models.head import HEAD
from stages.models.packing import Rankings, pack_rankings
from stages.models.precision import freeze
from stages.models.reward_model import compute_states, load_reward_model
from stages.models.tokenizer import align_special_tokens
from stages.process.context import StageContext
from stages.process.errors import StageError
from stages.process.ranks import Ranks
from stages.process.seeds import derive_seed
from stages.sample_settings import SampleSettings
from stages.spec import EXIT_USAGE, REWARD_MODEL
from stages.tokens import load_tokens

_MOST_COMPARISONS = 4096  # by which the precision is measured; a sample of more says nearly the same
_CHUNK = 64  # comparisons or prompts between two words on how far it is
_ARMS, _COMPARISONS = 3, 4  # what a seed is for, beside those of stages.sample
_PART = "states"


@dataclass(frozen=True)
class Shown:
    """What people are shown of a prompt.

    Args:
        places: Of the answers; none of a prompt that others were preferred to.
        arm: `chosen` or `random`; empty where nothing is chosen.
        gap: The largest one between two of these answers, in nats.
        states: Their whitened states and logits, where the prompt is shown.
    """

    places: list[int]
    arm: str = ""
    gap: float = 0.0
    states: tuple[Tensor, Tensor] | None = None


def draw_random_arm(settings: SampleSettings, drawn: int, seed: int) -> list[bool]:
    """Draw which of the prompts are left to chance: a share of those that are shown, at least one.

    Raises:
        StageError: There are too few prompts for both.
    """
    shown = min(settings.prompts or drawn, drawn)
    if shown < 2:
        needed = "needed two at least, one of them left to chance; give more prompts, or sample.choose: random"
        raise StageError(f"sample.choose: deltaucb: found {shown} prompt; {needed}", EXIT_USAGE)
    number = min(max(1, round(settings.random_share * shown)), shown - 1)
    order = torch.randperm(drawn, generator=torch.Generator().manual_seed(derive_seed(seed, _ARMS, settings.skip_prompts)))
    return [place in set(order[:number].tolist()) for place in range(drawn)]


def choose_shown(
    sampler_of: tuple[StageContext, Ranks, Shelf, Any],
    settings: SampleSettings,
    prompts: Sequence[list[int]],
    answers: Sequence[dict[int, list[int]]],
    at_random: Sequence[bool],
) -> list[Shown]:
    """Choose what people are shown, with the reward model of the spec.

    Args:
        sampler_of: Context, ranks, shelf and tokenizer of the stage.
        settings: Of the stage.
        prompts: Their ids.
        answers: Of each: place -> token ids, as they were sampled.
        at_random: Whether a prompt is left to chance.

    Returns:
        One for each prompt.

    Raises:
        StageError: The reward model's states are not finite.
    """
    context, ranks, shelf, tokenizer = sampler_of
    if not shelf.has(_PART):
        shelf.keep(_PART, _read_states(context, ranks, tokenizer, prompts, answers))
    arrays = shelf.read(_PART)
    whitened_NH, logits_N = torch.from_numpy(arrays["whitened_NH"]), torch.from_numpy(arrays["logits_N"])
    ends = list(accumulate((len(each) for each in answers), initial=0))
    looked = [
        _look(list(each), whitened_NH[begin:end], logits_N[begin:end], settings, left_to_chance=chance)
        for each, (begin, end), chance in zip(answers, pairwise(ends), at_random, strict=True)
    ]
    wanted = min(settings.prompts or len(prompts), len(prompts)) - sum(at_random)
    able = [number for number, each in enumerate(looked) if each.arm == CHOSEN and len(each.places) > 1]
    kept = set(sorted(able, key=lambda number: -looked[number].gap)[:wanted])
    return [each if each.arm == AT_RANDOM or number in kept else Shown([], CHOSEN) for number, each in enumerate(looked)]


def write_states(path: Path, kept: Sequence[tuple[Shown, list[int]]]) -> None:
    """Write what heads on the reward model's backbone read of the answers that are shown, one row of answers.jsonl after the other.

    Args:
        path: Of the file.
        kept: What is shown, and the order in which it stands there.
    """
    states = [(whitened_KH[order], logits_K[order]) for shown, order in kept if shown.states for whitened_KH, logits_K in [shown.states]]
    whitened, logits = zip(*states, strict=True)
    np.savez(path, allow_pickle=False, whitened_NH=torch.cat(whitened).numpy(), logits_N=torch.cat(logits).numpy())


def count_arms(kept: Sequence[Shown], passed_over: int) -> dict[str, int]:
    """Count the prompts of both arms, and those to which others were preferred."""
    counts = {f"sets_{arm}": sum(each.arm == arm for each in kept) for arm in (CHOSEN, AT_RANDOM)}
    return counts | ({"prompts_passed_over": passed_over} if passed_over else {})


def average_gaps(kept: Sequence[Shown]) -> dict[str, float]:
    """Average the largest gap of each set, by arm."""
    found = {arm: [each.gap for each in kept if each.arm == arm] for arm in (CHOSEN, AT_RANDOM)}
    return {f"gap_{arm}": fmean(gaps) for arm, gaps in found.items() if gaps}


def _look(places: list[int], whitened_KH: Tensor, logits_K: Tensor, settings: SampleSettings, *, left_to_chance: bool) -> Shown:
    """Choose of one prompt's answers; left to chance, all are shown, as no more were sampled than that."""
    gaps_KK = measure_gaps(whitened_KH.double(), logits_K.double(), settings.beta)
    chosen = list(range(len(places))) if left_to_chance else choose_answers(gaps_KK, settings.answers)
    gap = float(gaps_KK[chosen][:, chosen].max()) if chosen else 0.0
    return Shown([places[each] for each in chosen], AT_RANDOM if left_to_chance else CHOSEN, gap, (whitened_KH[chosen], logits_K[chosen]))


def _read_states(
    context: StageContext, ranks: Ranks, tokenizer: Any, prompts: Sequence[list[int]], answers: Sequence[dict[int, list[int]]]
) -> Arrays:
    """Read what the reward model makes of all answers, whitened by what it learnt from; each rank its share."""
    spec = context.spec
    model: Any = load_reward_model(spec.models[REWARD_MODEL], spec.hardware)
    align_special_tokens(model, tokenizer)
    model = freeze(model, spec.hardware).to(ranks.device).eval()
    evidence = _measure(context, ranks, model, _draw_comparisons(context, tokenizer))
    if not (torch.isfinite(evidence.precision_HH).all() and torch.isfinite(evidence.length) and evidence.length > 0):
        what = "the reward model's states of what it learnt from are not finite, or all the same"
        raise StageError(f"{what}; finite ones that differ are needed; give another sample.reward_model")
    factor_HH = factor_precision(evidence)
    asked = [(prompt, list(said.values())) for prompt, said in zip(prompts, answers, strict=True)]

    def read(start: int) -> list[tuple[Any, Any]]:
        own = asked[start : start + _CHUNK][ranks.index :: ranks.count]
        states_NH, logits_N = _compute(model, own)
        whitened_NH, sizes = whiten(states_NH, factor_HH).float(), [len(said) for _, said in own]
        return [(one.numpy(), other.numpy()) for one, other in zip(whitened_NH.split(sizes), logits_N.split(sizes), strict=True)]

    found: list[tuple[Any, Any]] = []
    told = context.tells("states of the answers")
    for start in range(0, len(asked), _CHUNK):
        told(start, len(asked))
        found += together(ranks, partial(read, start), len(asked[start : start + _CHUNK]))
    told(len(asked), len(asked))
    whitened_NH, logits_N = (np.concatenate([each[part] for each in found]) for part in (0, 1))
    if not (np.isfinite(whitened_NH).all() and np.isfinite(logits_N).all()):
        raise StageError("the reward model's states are not finite; finite ones are needed; give another sample.reward_model")
    return {"whitened_NH": whitened_NH, "logits_N": logits_N}


def _draw_comparisons(context: StageContext, tokenizer: Any) -> list[EncodedComparison]:
    """Draw of what the reward model learnt from, as far as it can be used."""
    train, _ = load_tokens(context, tokenizer, "comparisons")
    generator = torch.Generator().manual_seed(derive_seed(context.spec.seed, _COMPARISONS))
    order = torch.randperm(len(train.comparisons), generator=generator)[:_MOST_COMPARISONS].sort().values.tolist()
    return [train.comparisons[place] for place in order]


def _measure(context: StageContext, ranks: Ranks, model: Any, comparisons: Sequence[EncodedComparison]) -> Evidence:
    """Measure the precision that comparisons give the head."""
    own = comparisons[ranks.index :: ranks.count]
    size: int = model.get_submodule(HEAD).in_features
    total = [torch.zeros(size, size, dtype=torch.float64), torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)]
    told = context.tells("what the reward model learnt from")
    for start in range(0, len(own), _CHUNK):
        told(start, len(own))
        part = own[start : start + _CHUNK]
        states_NH, logits_N = _compute(model, [(each.prompt_ids, each.responses) for each in part])
        answered = torch.tensor([number for number, each in enumerate(part) for _ in each.responses])
        found = measure_evidence(states_NH, logits_N, torch.tensor([rank for each in part for rank in each.ranks]), answered)
        total = [before + new for before, new in zip(total, found, strict=True)]
    told(len(own), len(own))
    return Evidence(*(ranks.sum(each).cpu() for each in total))


@torch.no_grad()
def _compute(model: Any, rankings: Rankings) -> tuple[Tensor, Tensor]:
    """Compute states and logits of all responses, float32 on the CPU, in one axis."""
    found: list[tuple[Tensor, Tensor]] = []
    for row, _ in pack_rankings(rankings, next(model.parameters()).device):
        states_DH, logits_D = compute_states(model, row)
        found.append((states_DH[row.parents_D >= 0].float().cpu(), logits_D[row.parents_D >= 0].float().cpu()))
    nothing = torch.zeros(0, model.get_submodule(HEAD).in_features), torch.zeros(0)
    states, logits = zip(nothing, *found, strict=True)
    return torch.cat(states), torch.cat(logits)
