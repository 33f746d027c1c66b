"""Stage 2, the reward model: SFT model + ranked answers -> a scalar score per response.

comparisons -> token ids -> K-way ranking loss -> bias and scale from demonstrations -> model/, held-out accuracy
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from data.mix import count_passes, part_of
from data.token_file import TokenRows
from data.token_split import TokenSet
from data.tokens import EncodedComparison
from stages.family import check_lora
from stages.models.adapters import apply_lora, find_model, require_adapter_base
from stages.models.calibration import Calibration, choose_calibration
from stages.models.compiling import compile_layers
from stages.models.forward import note_padding
from stages.models.handoff import read_facts
from stages.models.reward_model import init_reward_model
from stages.models.save import save_model
from stages.models.tokenizer import align_special_tokens, load_tokenizer
from stages.process.context import StageContext, describe_machine
from stages.process.engine import choose_engine
from stages.process.errors import StageError
from stages.process.runtime import run_stage
from stages.process.seeds import derive_seed
from stages.ranking import calibration_error, correlation, make_pairs, pair_accuracy, ranking_loss
from stages.responses.judging import response_text, write_samples
from stages.responses.scores import score_rankings
from stages.result import Interval, StageResult
from stages.result_intervals import find_interval
from stages.settings import RMSettings
from stages.spec import SAMPLES_FILE
from stages.tokens import load_tokens
from stages.trl.gathering import whole_model
from stages.trl.rm import make_ranking_trainer
from stages.trl.training import train
from stages.warnings.loss import find_ignorance
from stages.warnings.rm import find_chance, find_too_good

_CALIBRATION_DEMONSTRATIONS = 1000  # enough for a standard error of 0.03 standard deviations
_SAMPLED_COMPARISONS = 100
# What of a logit is rounding, as a share of its size: some hundred steps of float32, a few of bfloat16.
_ROUNDING, _ROUNDING_IN_BFLOAT16 = 1e-5, 1e-2


def main(context: StageContext) -> StageResult:
    """Train the reward model on comparisons, then fix its bias and scale on demonstrations."""
    spec = context.spec
    settings = spec.settings
    assert isinstance(settings, RMSettings)
    if settings.lora:
        require_adapter_base(spec.models["sft"], "rm.lora")
        check_lora(spec.models["sft"], {"rm": settings.lora})
    tokenizer: Any = load_tokenizer(spec.models["sft"])
    train_set, held_out_set = load_tokens(context, tokenizer, "comparisons")
    counts = train_set.counts() | {f"held_out_{key}": value for key, value in held_out_set.counts().items()}
    comparisons, held_out = train_set.comparisons, held_out_set.comparisons

    quantizes = bool(settings.lora and settings.lora.quantize)
    model: Any = init_reward_model(spec.models["sft"], spec.hardware, spec.seed, engine=choose_engine(context), on_cpu=quantizes)
    align_special_tokens(model, tokenizer)
    if settings.lora:
        model = apply_lora(model, settings.lora, "SEQ_CLS", spec.hardware)
    note_padding(context, model)
    compile_layers(context, model)
    seen = weigh_sources(comparisons, spec.weights, spec.seed)
    trainer = make_ranking_trainer(context, settings, model, tokenizer, seen, held_out)
    last_step = train(trainer, context)

    with whole_model(trainer) as model:
        ranked = held_out or [comparisons[place] for place in draw_sample(len(comparisons), _SAMPLED_COMPARISONS, spec.seed)]
        told = context.tells("held-out comparisons")
        logits = score_rankings(model, [(item.prompt_ids, item.responses) for item in ranked], told)  # not calibrated yet
        calibration = calibrate(context, settings, model, tokenizer, logits)
        find_model(model).calibration = calibration

        metrics = {"score_bias": calibration.bias, "score_scale": calibration.scale}
        intervals: dict[str, Interval] = {}
        if held_out:
            figures, intervals = report_ranking(
                logits, held_out
            )  # the loss was trained on logits: a pair's probability is that of their difference
            metrics |= figures
            remedy = "lower rm.learning_rate or rm.epochs"
            nothing = find_ignorance(metrics["eval/loss"], math.log(2), what="held-out loss", model="reward model", remedy=remedy)
            context.warn("loss", nothing)
            accuracy, interval = metrics["eval/accuracy"], intervals.get("eval/accuracy")
            context.warn("chance", find_chance(accuracy, interval))
            context.warn("too_good", find_too_good(accuracy, interval))
            if context.is_main:
                write_samples(spec.output_dir / SAMPLES_FILE, make_sample_rows(tokenizer, held_out_set, calibration.apply(logits)))
        facts = read_facts(model, tokenizer, spec.models["sft"])
        if context.is_main:
            context.progress("saving", 0, 0)
            save_model(model, tokenizer, spec.output_dir, merge=bool(settings.lora and settings.lora.merge))
    if held_out:
        context.write_metrics(last_step, {name: metrics[name] for name in ("eval/loss", "eval/accuracy")})
    return StageResult(metrics=metrics, intervals=intervals, facts=facts, counts=counts, **describe_machine(context))


def calibrate(context: StageContext, settings: RMSettings, model: Any, tokenizer: Any, ranked_N: Tensor) -> Calibration:
    """Find the bias (and scale) that give demonstrations, or a sample of many, a mean score of 0 (and a standard deviation of 1).

    Raises:
        StageError: logits are not finite, those of ranked answers (`ranked_N`) or the demonstrations'.
    """
    demonstrations, _ = load_tokens(context, tokenizer, "demonstrations")
    pairs = demonstrations.pairs
    sample = [pairs[place] for place in draw_sample(len(pairs), _CALIBRATION_DEMONSTRATIONS, context.spec.seed)]
    told = context.tells("scores of demonstrations")
    demonstrations_N = score_rankings(model, [(pair.prompt_ids, [pair.response_ids]) for pair in sample], told)
    if not torch.isfinite(torch.cat([demonstrations_N, ranked_N])).all():
        raise StageError("the reward model's scores are not finite; finite ones are needed; lower rm.learning_rate")
    calibration, remark = choose_calibration(
        demonstrations_N,
        ranked_N,
        scale_scores=settings.scale_scores,
        rounding=_ROUNDING_IN_BFLOAT16 if context.spec.hardware.computes_in_bfloat16 else _ROUNDING,
    )
    if remark:
        context.note(f"rm.scale_scores: {remark}")
    return calibration


def weigh_sources(comparisons: TokenRows[EncodedComparison], weights: Mapping[str, float], seed: int) -> Sequence[EncodedComparison]:
    """Repeat the comparisons of a source as often as it weighs; all once where nothing weighs otherwise.

    A record of weight 2 stands twice in an epoch, as in the mixtures by share of others (open-instruct, alignment-handbook), and has not
    twice the gradient: no field tool weighs the loss, and a batch's mean stays one over its records.
    """
    if all(weight == 1 for weight in weights.values()):
        return comparisons
    draws = torch.rand(len(comparisons), generator=torch.Generator().manual_seed(derive_seed(seed, 1))).tolist()
    passes = [count_passes(weights.get(part_of(item.source), 1.0), draw) for item, draw in zip(comparisons, draws, strict=True)]
    return comparisons.choose([place for place, count in enumerate(passes) for _ in range(count)])


def draw_sample(count: int, at_most: int, seed: int) -> list[int]:
    """Draw places of a sample without replacement, in order; all where there are no more than that."""
    if count <= at_most:
        return list(range(count))
    generator = torch.Generator().manual_seed(derive_seed(seed, at_most))
    return torch.randperm(count, generator=generator)[:at_most].sort().values.tolist()


def report_ranking(scores_N: Tensor, comparisons: Sequence[EncodedComparison]) -> tuple[dict[str, float], dict[str, Interval]]:
    """Held-out figures: loss, pair accuracy (overall, by rank distance, by source), calibration, correlation with length.

    Returns:
        (figures, intervals of the accuracies).
    """
    ranks_N = torch.tensor([rank for item in comparisons for rank in item.ranks])
    prompts_N = torch.tensor([index for index, item in enumerate(comparisons) for _ in item.responses])
    lengths_N = torch.tensor([len(response) for item in comparisons for response in item.responses])
    pairs = make_pairs(ranks_N, prompts_N)
    accuracy_Q = pair_accuracy(scores_N, pairs)
    metrics = {
        "eval/loss": ranking_loss(scores_N, pairs).item(),
        "eval/accuracy": accuracy_Q.mean().item(),
        "eval/calibration_error": calibration_error(scores_N, pairs),
        "eval/length_correlation": correlation(scores_N, lengths_N.float()),
        "eval/pairs": float(len(accuracy_Q)),
    }
    groups = {"": torch.ones_like(accuracy_Q, dtype=torch.bool)}
    groups |= {f"_rank_distance_{distance}": pairs.distance_Q == distance for distance in pairs.distance_Q.unique().tolist()}
    sources = sorted({item.source for item in comparisons} - {""})
    for source in sources:
        groups[f"_source_{source}"] = torch.tensor([comparisons[int(prompts_N[index])].source == source for index in pairs.better_Q])
    prompts = [tuple(comparisons[int(prompts_N[index])].prompt_ids) for index in pairs.better_Q]
    intervals: dict[str, Interval] = {}
    for name, inside_Q in groups.items():
        if inside_Q.any():
            metrics[f"eval/accuracy{name}"] = accuracy_Q[inside_Q].mean().item()
            inside = inside_Q.nonzero()[:, 0].tolist()
            if interval := find_interval(accuracy_Q[inside_Q].tolist(), [prompts[place] for place in inside], shares=True):
                intervals[f"eval/accuracy{name}"] = interval
    return metrics, intervals


def make_sample_rows(tokenizer: Any, held_out: TokenSet, scores: Tensor) -> list[dict[str, Any]]:
    """Write the first held-out comparisons as rows of samples: prompts as people wrote them, without what a template writes around."""
    rows: list[dict[str, Any]] = []
    remaining = iter(scores.tolist())
    for row, item in zip(held_out.used[:_SAMPLED_COMPARISONS].tolist(), held_out.comparisons, strict=False):
        prompt = held_out.file.prompt(row)[-1].content
        for response, rank in zip(item.responses, item.ranks, strict=True):
            rows.append({"prompt": prompt, "response": response_text(tokenizer, response), "rank": rank, "score": next(remaining)})
    return rows


if __name__ == "__main__":
    run_stage("rm", main)
