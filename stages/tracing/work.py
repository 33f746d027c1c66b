"""A stage -> what it does, phase by phase, with as many layers as asked for -> what each phase needs.

The stage's own code runs: its models, losses, learners, decoding. Only what surrounds it (data, checkpoints, processes) is not there.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator

from stages.internals import count_elements
from stages.models.adapters import find_model
from stages.models.attention import PACKED
from stages.models.probe import Ways, find_ways
from stages.models.sizes import measure_published, measure_trained, measure_weights
from stages.ppo.actor_critic import trainable
from stages.ppo.experience import Experience
from stages.ppo.trainer import PPOTrainer
from stages.process.engine import Engine
from stages.process.ranks import Ranks
from stages.responses.engine import Sampling
from stages.responses.generation import decide_decoding
from stages.responses.rollout import Rollout, pack_rollout
from stages.settings import EvaluateSettings, PPOSettings, PretrainSettings, RMSettings, SFTSettings, TrainingSettings
from stages.spec import StageName
from stages.tracing.decoding import decode
from stages.tracing.live import Live
from stages.tracing.models import adapt, build_policy, build_ppo_models, build_reward_model, merge_anew
from stages.tracing.report import Depth, Phase, TraceSpec
from stages.tracing.training import (
    RMLoss,
    SFTLoss,
    Steps,
    fill_gradients,
    fill_state,
    make_language_batch,
    make_ranking_batch,
    size_micro_batch,
    train_step,
)
from stages.trl.fitting import fused_head_fits

_REPEATS = 3  # of what is measured in seconds; the shortest counts
_ANSWER_ROWS = 64  # held-out prompts that SFT answers at once


@dataclass(frozen=True)
class Tried:
    """What was tried of a family on a miniature of the model, before there are fake tensors."""

    ways: Ways
    additive: bool  # responses are decoded with one mask for all layers
    fused_head_fits: bool


def try_family(config: Any) -> Tried:
    """Try what the family of a configuration can do.

    Raises:
        StageError: it cannot go through the stages; exit code 2.
    """
    ways = find_ways(config)
    return Tried(ways, decide_decoding(config, PACKED if ways.packed else ways.attention) == "additive", fused_head_fits(config))


@dataclass
class Job:
    """One stage at one depth, and what was seen of it."""

    spec: TraceSpec
    stage: StageName
    config: Any
    tried: "Tried"
    layers: int
    live: Live
    accelerator: Accelerator
    phases: dict[str, Phase] = field(default_factory=dict[str, Phase])
    tokens: dict[str, int] = field(default_factory=dict[str, int])

    def run(self, steps: Steps, prefix: str = "") -> None:
        """Run phases, and take down what each needs: of one that comes several times the most, but its shortest time."""
        for name, work in steps:
            start = self.live.start()
            begun_s = time.process_time()
            work()
            seconds = (time.process_time() - begun_s) / torch.get_num_threads()
            name = prefix + name
            if (before := self.phases.get(name)) is None:
                self.phases[name] = Phase(start=start, peak=self.live.peak, flops=self.live.flops, seconds=seconds)
            else:
                self.phases[name] = Phase(
                    start=max(start, before.start),
                    peak=max(self.live.peak, before.peak),
                    flops=max(self.live.flops, before.flops),
                    seconds=min(seconds, before.seconds),
                )

    def load(self, build: Callable[[], Any]) -> Any:
        """Build models, as a phase."""
        built: list[Any] = []
        self.run(iter([("load", lambda: built.append(build()))]))
        return built[0]

    @property
    def limits(self) -> tuple[int, int]:
        return self.spec.tokens.max_prompt_tokens, self.spec.tokens.max_response_tokens


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
    if isinstance(settings, SFTSettings):
        prompt, response = job.limits
    else:
        prompt, response = 0, settings.sequence_length
    size, times = size_micro_batch(settings, job.spec.processes)
    batch = make_language_batch(size, prompt, response)
    job.tokens["forward"] = job.tokens["backward"] = size * (prompt + response)
    held = _train(job, model, SFTLoss(job.accelerator, model, fused_head_fits=job.tried.fused_head_fits), batch, settings, times)
    depth = _describe(job, [model], [model], settings)
    if isinstance(settings, SFTSettings) and settings.eval_samples:
        count = min(settings.eval_samples, _ANSWER_ROWS)
        job.tokens["answers/prefill"], job.tokens["answers/decode"] = count * prompt, count
        job.run(decode(model, count, prompt, response, steps=1, additive=job.tried.additive), "answers/")
    _merge(job, settings)
    del held
    return depth.model_copy(update={"phases": job.phases, "accumulates": times > 1})


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
    prompt, response = job.limits
    size, times = size_micro_batch(settings, job.spec.processes)
    batch = make_ranking_batch(size, job.spec.answers, prompt, response)
    job.tokens["forward"] = job.tokens["backward"] = size * (prompt + job.spec.answers * response)
    held = _train(job, model, RMLoss(job.accelerator), batch, settings, times)
    _merge(job, settings)
    del held
    return _describe(job, [model], [model], settings).model_copy(update={"accumulates": times > 1})


def _train(job: Job, model: Any, loss: Any, batch: Any, settings: Any, times: int) -> Any:
    """Make an optimizer step that is not the first; returns the optimizer, which a trainer holds to the stage's end."""
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
    for _ in range(_REPEATS if job.spec.measure else 1):
        job.run(train_step(prepared, loss, batch, optimizer, max_grad_norm=settings.max_grad_norm))
    return optimizer


def _drop_gradients_as_they_come(module: Any) -> None:
    """Leave gradients, and so the optimizer's state, out of what is counted: who shares them out counts them by formula."""
    for parameter in trainable(module.parameters()):
        parameter.register_post_accumulate_grad_hook(lambda parameter: setattr(parameter, "grad", None))


def _trace_ppo(job: Job, settings: PPOSettings) -> Depth:
    spec, hardware = job.spec, job.spec.hardware
    models = job.load(lambda: build_ppo_models(job.config, hardware, job.tried.ways, job.layers, settings, spec.reward_lora))
    prompt, response = spec.tokens.max_prompt_tokens, settings.max_response_tokens or spec.tokens.max_response_tokens
    sampling = Sampling(response, settings.temperature, 0, 1, 1)
    engine = Engine("none", hardware, settings.max_grad_norm)
    trainer = PPOTrainer(Ranks(job.accelerator), *models_of(models), [[1] * prompt], sampling, settings, seed=0, engine=engine)
    rollout_size = max(settings.rollout_batch_size // spec.processes, 1)
    minibatch_size = max(settings.minibatch_size // spec.processes, 1)
    per_micro_batch = max(settings.max_tokens_per_microbatch // (prompt + response), 1)
    scored = _make_rollout(min(per_micro_batch, rollout_size), prompt, response)
    learnt = _make_experience(_make_rollout(min(per_micro_batch, minibatch_size), prompt, response))
    learners: list[Any] = [trainer.actor, trainer.critic]
    for learner in learners:
        if spec.shares:
            _drop_gradients_as_they_come(learner.module)
        else:
            fill_state(learner.module, learner.optimizer)
    count = min(settings.rollout_micro_batch_size, rollout_size)
    tokens = (prompt + response) * len(scored.finished_B)
    job.tokens |= {"score/reward": tokens, "score/policy": tokens, "rollout/prefill": count * prompt, "rollout/decode": count}
    job.tokens["update"] = (prompt + response) * len(learnt.finished_B)

    def steps() -> Iterator[tuple[str, Any]]:
        yield "score/reward", lambda: trainer.ask_reward_model(scored)
        yield "score/policy", lambda: trainer.evaluate_tokens(scored)
        for learner in learners:
            learner.module.train(settings.gradient_checkpointing)
            if not spec.shares and minibatch_size > per_micro_batch:
                fill_gradients(learner.module)
        yield "update", lambda: trainer.updater.accumulate_gradients(learnt, settings.max_tokens_per_microbatch)
        yield "optimizer", lambda: [learner.step() for learner in learners]

    for _ in range(_REPEATS if spec.measure else 1):
        if settings.rollout.engine == "torch":
            job.run(decode(trainer.policy, count, prompt, response, steps=1, additive=job.tried.additive), "rollout/")
        job.run(steps())
    _merge(job, settings)
    held = [*models.actor_critic, models.ref_policy, models.reward_model]
    depth = _describe(job, list(models.actor_critic), held, settings, published=trainer.policy)
    return depth.model_copy(update={"accumulates": minibatch_size > per_micro_batch})


def models_of(models: Any) -> tuple[Any, Any, Any]:
    """Take the models apart as `PPOTrainer` takes them."""
    return models.actor_critic, models.ref_policy, models.reward_model


def _make_rollout(count: int, prompt: int, response: int) -> Rollout:
    return pack_rollout([[1] * prompt] * count, [[1] * response] * count, [True] * count, 0, torch.device("cpu"))


def _make_experience(rollout: Rollout) -> Experience:
    figures = {
        name: torch.zeros(rollout.response_mask_BR.shape) for name in ("old_logprobs_BR", "old_values_BR", "advantages_BR", "returns_BR")
    }
    return Experience(**vars(rollout), **figures)


def _trace_evaluate(job: Job, settings: EvaluateSettings) -> Depth:
    spec = job.spec
    model = job.load(lambda: build_policy(job.config, spec.hardware, job.tried.ways, job.layers).requires_grad_(False))
    prompt, response = spec.tokens.max_prompt_tokens, settings.max_response_tokens or spec.tokens.max_response_tokens
    job.tokens["answers/prefill"], job.tokens["answers/decode"] = settings.batch_size * prompt, settings.batch_size
    job.run(decode(model, settings.batch_size, prompt, response, steps=1, additive=job.tried.additive), "answers/")
    return _describe(job, [], [model], None)


def _describe(job: Job, learners: list[Any], held: list[Any], settings: TrainingSettings | None, published: Any = None) -> Depth:
    weights = {id(weight): weight for module in held for weight in (*module.parameters(), *module.buffers())}.values()
    published = published if published is not None else held[0]
    whole = {id(weight): weight for weight in published.parameters()}.values()
    checkpoint = output = 0
    if settings is not None:
        lora = settings.lora
        output = measure_published(published, 0, merge=bool(lora and lora.merge))
        if isinstance(settings, PPOSettings):
            copies = 4 if job.spec.hardware.engine == "deepspeed" else 3
            policy = measure_trained(learners[0], copies + bool(settings.ema_decay is not None))
            checkpoint = policy + measure_trained(learners[1], copies)
        else:
            checkpoint = measure_weights(published) + measure_trained(published, 2)
    return Depth(
        layers=job.layers,
        phases=job.phases,
        parameters=sum(count_elements(weight) for name, weight in find_model(published).named_parameters() if "lora_" not in name),
        learning=[sum(weight.numel() for weight in trainable(module.parameters())) for module in learners],
        held=sum(weight.untyped_storage().nbytes() for weight in weights),
        whole=sum(weight.untyped_storage().nbytes() for weight in whole),
        checkpoint=checkpoint,
        output=output,
        accumulates=False,
    )
