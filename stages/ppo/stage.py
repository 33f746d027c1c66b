"""Stage 3, PPO: SFT model + reward model + prompts -> a policy that the reward model scores higher.

prompts -> token ids -> iterations (trainer.py), with evaluations on fixed held-out prompts -> model/, samples.jsonl
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

from data.pieces import Pieces
from data.token_file import TokenRows
from data.token_split import TokenSet
from data.tokens import EncodedPair
from stages.family import check_lora
from stages.models.adapters import require_adapter_base
from stages.models.handoff import check_handoff, read_facts
from stages.models.save import save_model
from stages.models.sizes import measure_published, measure_tokenizer, measure_trained
from stages.models.tokenizer import load_tokenizer
from stages.ppo.best import check_publish, find_candidate, go_back, hold, measure
from stages.ppo.heldout import HeldOut
from stages.ppo.kept import count_kept, drop_kept_after, keep_model, publish_kept
from stages.ppo.models import load_models
from stages.ppo.trainer import PPOTrainer
from stages.process import best as best_so_far
from stages.process.best import Candidate
from stages.process.checkpoint import describe_layout, find_checkpoint, save_checkpoint
from stages.process.context import StageContext, describe_machine
from stages.process.engine import choose_engine
from stages.process.errors import Interrupted, StageError
from stages.process.need import count_saves
from stages.process.ranks import Ranks, join_ranks
from stages.process.room import require_room
from stages.process.step_end import StepEnd
from stages.responses.engine import RolloutEngine, Sampling, make_sampling
from stages.responses.judge import load_judge
from stages.responses.judging import write_samples
from stages.result import StageResult
from stages.result_intervals import find_answer_intervals
from stages.settings import PPOSettings
from stages.spec import EXIT_USAGE, SAMPLES_FILE
from stages.texts import load_texts
from stages.tokens import load_tokens

Likely = TokenRows[EncodedPair] | Pieces  # what PPO-ptx keeps likely

_ROW_BYTES = 1500  # of a row of figures
_SMALL_FILES, _RANK_STATE = 16 * 1024, 6 * 1024  # of a checkpoint: state.pt, COMPLETE.json; a rank's generators


def main(context: StageContext) -> StageResult:
    """Train the policy with PPO against the reward model."""
    spec, settings = context.spec, _settings(context)
    judge = load_judge(spec.judge, spec.judge_directory)
    check_handoff(spec.models["sft"], spec.models["rm"])
    if "start" in spec.models:
        context.note(f"the policy begins at {settings.start}, and so does the KL, which is to the SFT model")
    if settings.lora:
        require_adapter_base(spec.models["sft"], "ppo.lora")
        check_lora(spec.models["sft"], {"ppo": settings.lora})
    ranks = join_ranks(context)
    tokenizer = load_tokenizer(spec.models["sft"])
    prompts, held_out_prompts = load_tokens(context, tokenizer, "prompts")
    counts = prompts.counts() | {f"held_out_{key}": value for key, value in held_out_prompts.counts().items()}
    check_publish(context, settings, len(held_out_prompts.prompts))
    demonstrations, demonstration_counts = _load_likely(context, tokenizer)
    counts |= demonstration_counts

    longest = settings.max_response_tokens or spec.tokens.max_response_tokens
    sampling = make_sampling("ppo", tokenizer, settings.stop_token, longest, settings.temperature)
    if sampling.stop_text:
        context.note(f"ppo.stop_token = {settings.stop_token!r} is no token of the vocabulary: a response ends where its text holds it")
    trainer = _build_trainer(context, ranks, tokenizer, prompts, demonstrations, sampling)
    with _open_engine(context, ranks, (prompts, held_out_prompts), sampling) as engine:
        trainer.rollout_engine = engine or trainer.rollout_engine
        held_out = HeldOut(
            trainer, tokenizer, list(held_out_prompts.prompts[: settings.eval_samples]), judge, seed=spec.seed, note=context.note
        )
        metrics, best = train(context, trainer, held_out)
        metrics, samples = _answer_published(context, trainer, held_out, metrics, best)
    metrics["published/iteration"] = float(trainer.iteration)
    facts = read_facts(trainer.policy, tokenizer, spec.models["sft"])
    # An adapter is saved without its base, so nobody needs to hold that whole.
    with trainer.actor.whole_weights(frozen=facts.form == "full"), trainer.average.in_use() if trainer.average else nullcontext():
        if context.is_main:
            context.progress("saving", 0, 0)
            publish_kept(spec.checkpoint_dir, spec.output_dir)
            write_samples(spec.output_dir / SAMPLES_FILE, samples)
            save_model(trainer.policy, tokenizer, spec.output_dir, merge=bool(settings.lora and settings.lora.merge))
    return StageResult(
        metrics=metrics,
        intervals=find_answer_intervals(samples) if context.is_main else {},
        facts=facts,
        counts=counts,
        **describe_machine(context),
    )


def _answer_published(
    context: StageContext, trainer: PPOTrainer, held_out: HeldOut, metrics: dict[str, float], best: Candidate | None
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Evaluate the last iteration, go back to the best where that is published, and write the last row, which is always of the last.

    Returns:
        (metrics with the held-out figures of what is published, its samples).
    """
    settings = trainer.settings
    averaged = {} if settings.ema_decay is None else {"published/ema_decay": settings.ema_decay}  # the published model is the average
    figures, samples = held_out.answer("sampled", context.tells("held-out answers, sampled"))
    went_back = go_back(context, trainer, best, figures)
    if went_back:
        context.write_metrics(settings.iterations, metrics | figures | averaged)
        figures, samples = held_out.answer("sampled", context.tells(f"held-out answers of iteration {trainer.iteration}, sampled"))
    greedy_figures, greedy_samples = held_out.answer("greedy", context.tells("held-out answers, greedy"))
    metrics = metrics | figures | greedy_figures | averaged
    if not went_back:
        context.write_metrics(settings.iterations, metrics)
    return metrics, samples + greedy_samples


def train(context: StageContext, trainer: PPOTrainer, held_out: HeldOut) -> tuple[dict[str, float], Candidate | None]:
    """Iterate from the newest complete checkpoint to the end, or to a checkpoint where a stop is asked for.

    Returns:
        (The last iteration's metrics, and the held-out figures at the start as `eval/start/...`; the best iteration before the last).
    """
    settings = trainer.settings
    start_figures, metrics, best = _resume_or_start(context, trainer, held_out)
    stop, step_end = False, StepEnd(context, settings.save_minutes)

    def tell(doing: str, done: int, total: int) -> None:
        context.progress_within(trainer.iteration, settings.iterations, f"{doing} {done}/{total}", metrics)

    trainer.tell = tell
    with context.stops_at_step_end():
        while trainer.iteration < settings.iterations and not stop:
            metrics = trainer.step()
            step, last = trainer.iteration, trainer.iteration == settings.iterations
            evaluate = step % settings.eval_every == 0 and not last  # after the last one, `main` does it in full
            if evaluate:
                figures, _ = held_out.answer("sampled", partial(tell, "held-out answers"))
                metrics |= figures
                before, best = best, best_so_far.choose(best, find_candidate(settings, step, figures))
                if best != before:
                    hold(context, trainer)
            if (evaluate or step % settings.log_every == 0) and not last:
                context.write_metrics(step, metrics)
            context.progress("train", step, settings.iterations, metrics)
            if settings.keep_every and step % settings.keep_every == 0 and step // settings.keep_every <= count_kept(settings):
                keep_model(context, trainer, held_out.tokenizer)
            stop, save = step_end.decide()
            if save or step % settings.save_every == 0:
                _save(context, trainer, {"start_figures": start_figures, "metrics": metrics, "best": best_so_far.to_state(best)})
                step_end.saved()
    if stop:
        raise Interrupted
    return metrics | {key.replace("eval/sampled/", "eval/start/"): value for key, value in start_figures.items()}, best


def _resume_or_start(
    context: StageContext, trainer: PPOTrainer, held_out: HeldOut
) -> tuple[dict[str, float], dict[str, float], Candidate | None]:
    """Load the newest complete checkpoint, or evaluate the policy as it is; returns (figures at the start, last metrics, best so far)."""
    found = find_checkpoint(context)
    saved = trainer.load(found[0]) if found else None
    best = best_so_far.from_state(saved.get("best")) if saved else None
    drop_kept_after(context, trainer.iteration)
    best_so_far.require_held(context, best)
    _require_room(context, trainer, held_out.tokenizer)
    # The row of the last iteration is written once its evaluation is done: never kept from an earlier attempt.
    context.rewind_metrics(min(trainer.iteration, trainer.settings.iterations - 1) if saved else -1)
    context.event("start", stage="ppo", unit="iteration", total=trainer.settings.iterations, resumed_step=trainer.iteration)
    if saved:
        return saved["start_figures"], saved["metrics"], best
    start_figures, _ = held_out.answer("sampled", context.tells("held-out answers of the policy as it begins"))
    context.write_metrics(0, start_figures)
    return start_figures, {}, None


def _require_room(context: StageContext, trainer: PPOTrainer, tokenizer: Any) -> None:
    settings = trainer.settings
    tokenizer_bytes = measure_tokenizer(tokenizer, context.spec.output_dir)
    copies = 4 if choose_engine(context).name == "deepspeed" else 3  # weights, two moments; DeepSpeed's weights in full precision
    checkpoint = _SMALL_FILES + context.world_size * _RANK_STATE
    policy = measure_trained(trainer.actor.module, copies + bool(trainer.average))
    checkpoint += policy + measure_trained(trainer.critic.module, copies)
    kept, to_come = count_kept(settings), count_kept(settings) - count_kept(settings, trainer.iteration)
    kept_bytes = measure_published(trainer.policy, tokenizer_bytes, merge=False)
    require_room(
        context,
        checkpoint,
        measure_published(trainer.policy, tokenizer_bytes, merge=bool(settings.lora and settings.lora.merge)),
        saves=count_saves(
            settings.iterations // settings.save_every - trainer.iteration // settings.save_every,
            settings.iterations - trainer.iteration,
            settings.save_minutes,
        ),
        rows=_ROW_BYTES * (settings.iterations // settings.log_every + settings.iterations // settings.eval_every),
        rows_in_checkpoints=False,
        kept=(to_come * kept_bytes + measure(context, trainer, policy), kept * kept_bytes),
    )


def _save(context: StageContext, trainer: PPOTrainer, more: dict[str, Any]) -> None:
    save_checkpoint(
        context.spec.checkpoint_dir,
        trainer.iteration,
        lambda directory: trainer.save(directory, more),
        layout=describe_layout(context),
        is_main=context.is_main,
        wait_for_everyone=trainer.ranks.wait,
    )
    context.event("checkpoint", step=trainer.iteration)


def _load_likely(context: StageContext, tokenizer: Any) -> tuple[Likely | None, dict[str, int]]:
    """Load SFT's training demonstrations, or the texts of pretrain, for PPO-ptx; none where it is off."""
    settings = _settings(context)
    if not settings.ptx_coef:
        if settings.ptx_batch_size is not None:
            context.note(f"ppo.ptx_batch_size = {settings.ptx_batch_size} is not used: ppo.ptx_coef is 0")
        if settings.ptx_data != "demonstrations":
            context.note(f"ppo.ptx_data = {settings.ptx_data} is not used: ppo.ptx_coef is 0")
        return None, {}
    if settings.ptx_data == "texts":
        tokens = context.spec.tokens
        # Without the end token, which SFT may have given another meaning than that of a document's end.
        texts, _ = load_texts(context, tokenizer, end=False)
        pairs, counts = texts.pieces(tokens.max_prompt_tokens + tokens.max_response_tokens), texts.counts()
    else:
        demonstrations, _ = load_tokens(context, tokenizer, "demonstrations")
        pairs, counts = demonstrations.pairs, demonstrations.counts()
    return pairs, {f"ptx_{key}": value for key, value in counts.items()}


def _longest(prompts: TokenSet) -> int:
    return int(prompts.prompts.count_tokens().max())


def _open_engine(
    context: StageContext, ranks: Ranks, prompts: Sequence[TokenSet], sampling: Sampling
) -> AbstractContextManager[RolloutEngine | None]:
    """Open what samples the responses; None: the trainer's own engine."""
    settings = _settings(context)
    if settings.rollout.engine == "torch":
        return nullcontext()
    from stages.responses.vllm_server import open_vllm

    longest = max(map(_longest, prompts)) + sampling.max_new_tokens
    return open_vllm(context, ranks, settings, longest)


def _build_trainer(
    context: StageContext,
    ranks: Ranks,
    tokenizer: Any,
    prompts: TokenSet,
    demonstrations: Likely | None,
    sampling: Sampling,
) -> PPOTrainer:
    spec, settings = context.spec, _settings(context)
    loaded = load_models(context, settings, tokenizer)
    longest, limit = _longest(prompts) + sampling.max_new_tokens, getattr(loaded.ref_policy.config, "max_position_embeddings", None)
    if limit is not None and longest > limit:
        raise StageError(
            f"the longest prompt and ppo.max_response_tokens = {sampling.max_new_tokens} make {longest} tokens, {spec.models['sft']} takes "
            f"{limit}; lower ppo.max_response_tokens or tokens.max_prompt_tokens",
            EXIT_USAGE,
        )
    longest = 0 if demonstrations is None else int(demonstrations.count_tokens().max())
    if limit is not None and longest > limit:
        raise StageError(
            f"ppo.ptx_coef: the longest of the {settings.ptx_data} has {longest} tokens, {spec.models['sft']} takes {limit}; lower "
            "tokens.max_prompt_tokens or tokens.max_response_tokens",
            EXIT_USAGE,
        )
    return PPOTrainer(
        ranks,
        loaded.actor_critic,
        loaded.ref_policy,
        loaded.reward_model,
        prompts.prompt_ids,
        sampling,
        settings,
        seed=spec.seed,
        demonstrations=() if demonstrations is None else demonstrations,
        engine=choose_engine(context),
        note=context.note,
    )


def _settings(context: StageContext) -> PPOSettings:
    assert isinstance(context.spec.settings, PPOSettings)
    return context.spec.settings
