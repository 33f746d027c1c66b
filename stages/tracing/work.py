"""A stage -> what it does, phase by phase, with as many layers as asked for -> what each phase needs.

The stage's own code runs: its models, losses, learners, decoding. Only what surrounds it (data, checkpoints, processes) is not there.
"""

import gc
import math
from collections.abc import Iterator
from typing import Any

import torch

from data.tokens import EncodedPair
from stages.internals import count_elements
from stages.models import precision
from stages.models.adapters import find_model
from stages.models.packing import RANKING_PROMPTS, RANKING_TOKENS
from stages.models.sizes import measure_published, measure_trained, measure_weights
from stages.ppo.actor_critic import trainable
from stages.ppo.experience import Experience
from stages.ppo.ptx import accumulate_ptx_gradients
from stages.ppo.trainer import PPOTrainer
from stages.process.engine import Engine
from stages.process.ranks import Ranks
from stages.responses.engine import Sampling
from stages.responses.figures import compute_logprobs_of_answers
from stages.responses.rollout import Rollout, pack_rollout
from stages.responses.scores import score_rankings
from stages.settings import EvaluateSettings, PPOSettings, PretrainSettings, RMSettings, SFTSettings, TrainingSettings
from stages.tracing.job import Job
from stages.tracing.models import adapt, build_policy, build_ppo_models, build_reward_model, merge_anew
from stages.tracing.report import Depth
from stages.tracing.training import (
    RMLoss,
    SFTLoss,
    fill_gradients,
    fill_state,
    make_language_batch,
    make_ranking_batch,
    passed_by_backward,
    train_step,
)
from stages.trl.training import size_micro_batch

_ANSWER_ROWS = 64  # held-out prompts that SFT answers at once
_SMALL = 100_000  # of DeepSpeed at stage 3: weights of no more numbers stay whole (`stage3_param_persistence_threshold`)


def trace(job: Job) -> Depth:
    """Run a stage's phases at one depth."""
    settings = job.spec.settings(job.stage)
    torch.manual_seed(0)
    if isinstance(settings, PPOSettings):
        return _trace_ppo(job, settings)
    if isinstance(settings, RMSettings):
        return _trace_rm(job, settings)
    if isinstance(settings, PretrainSettings | SFTSettings):
        return _trace_language(job, settings)
    if isinstance(settings, EvaluateSettings):
        return _trace_evaluate(job, settings)
    raise ValueError(f"{job.stage} is not traced")


def _trace_language(job: Job, settings: PretrainSettings | SFTSettings) -> Depth:
    hardware = job.spec.hardware
    model = job.load(lambda: adapt(build_policy(job.config, hardware, job.tried.ways, job.layers), settings.lora, "CAUSAL_LM", hardware))
    limit = job.spec.tokens.max_response_tokens
    if isinstance(settings, PretrainSettings):
        prompt, response = 0, settings.sequence_length
    elif settings.packing:  # rows are filled, however short records are
        prompt, response = job.spec.tokens.max_prompt_tokens, limit
    else:
        prompt, response = job.spec.find_longest("demonstrations")
    size, times = size_micro_batch(settings, job.spec.processes)
    batch = make_language_batch(size, prompt, response)
    job.tokens["forward"] = job.tokens["backward"] = size * (prompt + response)
    loss = SFTLoss(job.accelerator, model, fused_head_fits=job.tried.fused_head_fits)
    held, passed = _train(job, model, loss, batch, settings, times)
    depth = _describe(job, [model], [model], settings, passed=passed)
    if isinstance(settings, SFTSettings) and settings.eval_samples:
        count = min(settings.eval_samples, _ANSWER_ROWS)
        job.answer(model, count, job.spec.find_longest("demonstrations")[0], limit, "answers/")
    _merge(job, settings)
    del held
    return job.complete(depth, accumulates=times > 1)


def _merge(job: Job, settings: TrainingSettings) -> None:
    """Merge an adapter at the stage's end, where the settings say so; of a reward model it is the same but for the head."""
    if settings.lora and settings.lora.merge and not job.spec.measure:
        lora = settings.lora
        job.run(iter([("save", lambda: merge_anew(job.config, job.tried.ways, job.layers, lora))]))


def _trace_rm(job: Job, settings: RMSettings) -> Depth:
    hardware = job.spec.hardware

    def build() -> Any:
        model = build_reward_model(build_policy(job.config, hardware, job.tried.ways, job.layers))
        return adapt(model, settings.lora, "SEQ_CLS", hardware)

    model = job.load(build)
    prompt, response = job.spec.find_longest("comparisons")
    size, times = size_micro_batch(settings, job.spec.processes)
    answers, most = job.spec.answers, job.spec.count_most("comparisons", size)
    if most is not None and job.tried.ways.packed:  # without padding tokens count: few comparisons have only answers of the longest
        response = max(math.ceil((most / size - prompt) / answers), 1)
    batch = make_ranking_batch(size, answers, prompt, response)
    job.tokens["forward"] = job.tokens["backward"] = size * (prompt + answers * response)
    held, passed = _train(job, model, RMLoss(job.accelerator), batch, settings, times)
    _merge(job, settings)
    del held
    return job.complete(_describe(job, [model], [model], settings, passed=passed), accumulates=times > 1)


def _train(job: Job, model: Any, loss: Any, batch: Any, settings: Any, times: int) -> tuple[Any, int]:
    """Make an optimizer step that is not the first.

    Returns:
        The optimizer, which a trainer holds to the stage's end; `Depth.passed`.
    """
    if settings.gradient_checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
        if settings.lora:
            model.enable_input_require_grads()
    prepared = job.accelerator.prepare_model(model)
    optimizer = torch.optim.AdamW(trainable(model.parameters()), fused=True)
    if job.spec.shares:
        _drop_gradients_as_they_come(model)
    else:
        fill_state(model, optimizer)
        if times > 1:
            fill_gradients(model)
    with passed_by_backward(model) as passed:
        for _ in job.repeat():
            job.run(train_step(prepared, loss, batch, optimizer, max_grad_norm=settings.max_grad_norm))
    return optimizer, sum(weight.untyped_storage().nbytes() for weight in passed.values() if count_elements(weight) > _SMALL)


def _drop_gradients_as_they_come(module: Any) -> None:
    """Leave gradients, and so the optimizer's state, out of what is counted: who shares them out counts them by formula."""
    for parameter in trainable(module.parameters()):
        parameter.register_post_accumulate_grad_hook(lambda parameter: setattr(parameter, "grad", None))


def _trace_ppo(job: Job, settings: PPOSettings) -> Depth:
    spec, hardware = job.spec, job.spec.hardware
    models = job.load(lambda: build_ppo_models(job.config, hardware, job.tried.ways, job.layers, settings, spec.reward_lora))
    prompt, response = spec.find_longest("prompts")[0], settings.max_response_tokens or spec.tokens.max_response_tokens
    sampling = Sampling(response, settings.temperature, 0, 1, 1)
    engine = Engine("none", hardware, settings.max_grad_norm)
    pairs = [EncodedPair([1] * prompt, [1] * response)]
    four = models.actor_critic, models.ref_policy, models.reward_model
    ranks, given = Ranks(job.accelerator), ([[1] * prompt], sampling, settings)
    trainer = PPOTrainer(ranks, *four, *given, seed=0, engine=engine, demonstrations=pairs)
    rollout_size = max(settings.rollout_batch_size // spec.processes, 1)
    minibatch_size = max(settings.minibatch_size // spec.processes, 1)
    per_micro_batch = max(settings.max_tokens_per_microbatch // (prompt + response), 1)
    scored = _make_rollout(min(per_micro_batch, rollout_size), prompt, response)
    learnt = _make_experience(_make_rollout(min(per_micro_batch, minibatch_size), prompt, response))
    mixed_size = max((settings.ptx_batch_size or settings.minibatch_size) // spec.processes, 1)
    limits = (spec.tokens.max_prompt_tokens, spec.tokens.max_response_tokens)  # which texts fill
    mixed_lengths = limits if settings.ptx_data == "texts" else spec.find_longest("demonstrations")
    most_mixed = max(settings.max_tokens_per_microbatch // sum(mixed_lengths), 1)
    mixed = _make_rollout(min(most_mixed, mixed_size), *mixed_lengths)
    learners: list[Any] = [trainer.actor, trainer.critic]
    for learner in learners:
        if spec.shares:
            _drop_gradients_as_they_come(learner.module)
        else:
            fill_state(learner.module, learner.optimizer)
    count = min(settings.rollout_micro_batch_size, rollout_size)
    tokens = (prompt + response) * len(scored.finished_B)
    job.tokens |= {"score/reward": tokens, "score/policy": tokens}
    job.tokens["update"] = (prompt + response) * len(learnt.finished_B)
    job.tokens["ptx"] = sum(mixed_lengths) * len(mixed.finished_B)

    def steps() -> Iterator[tuple[str, Any]]:
        yield "score/reward", lambda: trainer.ask_reward_model(scored)
        yield "score/policy", lambda: trainer.evaluate_tokens(scored)
        for learner in learners:
            learner.module.train(settings.gradient_checkpointing)
            if not spec.shares and minibatch_size > per_micro_batch:
                fill_gradients(learner.module)
        if settings.ptx_coef > 0:
            mixing = (mixed, settings.ptx_coef, settings.max_tokens_per_microbatch)
            yield "ptx", lambda: accumulate_ptx_gradients(trainer.ranks, trainer.actor, *mixing)
        yield "update", lambda: trainer.updater.accumulate_gradients(learnt, settings.max_tokens_per_microbatch)
        yield "optimizer", lambda: [learner.step() for learner in learners]

    for _ in job.repeat():
        if settings.rollout.engine == "torch":
            job.answer(trainer.policy, count, prompt, response, "rollout/")
        else:
            job.look_at_row(trainer.policy)
        job.run(steps())
    _merge(job, settings)
    held = [*models.actor_critic, models.ref_policy, models.reward_model]
    depth = _describe(job, list(models.actor_critic), held, settings, published=trainer.policy)
    return job.complete(depth, accumulates=minibatch_size > per_micro_batch)


def _make_rollout(count: int, prompt: int, response: int) -> Rollout:
    return pack_rollout([[1] * prompt] * count, [[1] * response] * count, [True] * count, 0, torch.device("cpu"))


def _make_experience(rollout: Rollout) -> Experience:
    figures = {
        name: torch.zeros(rollout.response_mask_BR.shape) for name in ("old_logprobs_BR", "old_values_BR", "advantages_BR", "returns_BR")
    }
    return Experience(**vars(rollout), **figures)


def _trace_evaluate(job: Job, settings: EvaluateSettings) -> Depth:
    spec = job.spec
    models = [job.load(lambda: precision.freeze(build_policy(job.config, spec.hardware, job.tried.ways, job.layers), spec.hardware))]
    prompt, response = spec.find_longest("prompts")[0], settings.max_response_tokens or spec.tokens.max_response_tokens
    samples = settings.policy_samples
    prompts = max(min(RANKING_TOKENS // (prompt + samples * response), RANKING_PROMPTS, settings.prompts), 1)
    asked = [([1] * prompt, [[1] * response] * samples)] * prompts
    job.tokens["score/policy"] = job.tokens["score/reward"] = prompts * (prompt + samples * response)
    answers = settings.prompts * max(settings.samples, samples)
    job.answer(models[0], min(settings.batch_size, answers), prompt, response, "answers/")
    job.run_often(lambda: [("score/policy", lambda: compute_logprobs_of_answers(models[0], asked, settings.temperature or 1.0))])
    depth = _describe(job, [], models, None)
    models.clear()  # one is in memory at a time
    gc.collect()
    models.append(build_reward_model(build_policy(job.config, spec.hardware, job.tried.ways, job.layers)))
    precision.freeze(models[0], spec.hardware)
    job.run_often(lambda: [("score/reward", lambda: score_rankings(models[0], asked))])
    return job.complete(depth, accumulates=False)


def _describe(
    job: Job, learners: list[Any], held: list[Any], settings: TrainingSettings | None, published: Any = None, passed: int = 0
) -> Depth:
    weights = {id(weight): weight for module in held for weight in (*module.parameters(), *module.buffers())}.values()
    published = published if published is not None else held[0]
    whole = {id(weight): weight for weight in published.parameters()}.values()
    small: list[dict[int, Any]] = []
    for module in learners:
        there = {id(weight): weight for weight in module.parameters() if count_elements(weight) <= _SMALL}
        small.append({place: weight for place, weight in there.items() if not any(place in each for each in small)})
    checkpoint = output = kept = best = 0
    if settings is not None:
        lora = settings.lora
        output = measure_published(published, 0, merge=bool(lora and lora.merge))
        if isinstance(settings, PPOSettings):
            copies = 4 if job.spec.hardware.engine == "deepspeed" else 3
            best = measure_trained(learners[0], copies + bool(settings.ema_decay is not None))
            checkpoint = best + measure_trained(learners[1], copies)
            kept = measure_published(published, 0, merge=False)
        else:
            checkpoint = measure_weights(published) + measure_trained(published, 2)
            best = measure_trained(published, 1)
    return Depth(
        layers=job.layers,
        phases=job.phases,
        parameters=sum(count_elements(weight) for name, weight in find_model(published).named_parameters() if "lora_" not in name),
        learning=[sum(weight.numel() for weight in trainable(module.parameters())) for module in learners],
        held=sum(weight.untyped_storage().nbytes() for weight in weights),
        whole=sum(weight.untyped_storage().nbytes() for weight in whole),
        small=[sum(weight.untyped_storage().nbytes() for weight in each.values()) for each in small],
        passed=passed,
        largest=4 * max(count_elements(weight) for weight in whole),
        checkpoint=checkpoint,
        output=output,
        kept=kept,
        best=best,
        accumulates=False,
    )
