"""What TRL's trainers share: their arguments, and our contract (events, stops, complete checkpoints).

Nothing outside of this package touches TRL.
"""

import math
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, cast

import torch
from transformers import TrainerCallback
from trl.trainer.reward_trainer import RewardTrainer
from trl.trainer.sft_trainer import SFTTrainer

from stages.internals import use_one_gpu
from stages.models.adapters import find_model
from stages.models.sizes import measure_published, measure_tokenizer, measure_trained, measure_weights
from stages.models.special_tokens import has_grown
from stages.models.weights import count_broken_weights, name_broken_weights
from stages.process.checkpoint import describe_layout, find_checkpoint, mark_complete, prune
from stages.process.context import StageContext, uses_gpu
from stages.process.distributed import require_world_size
from stages.process.engine import choose_engine
from stages.process.errors import StageError
from stages.process.need import count_saves
from stages.process.ranks import Ranks
from stages.process.room import require_room
from stages.process.step_end import StepEnd
from stages.settings import PretrainSettings, RMSettings, SFTSettings, TrainingSettings
from stages.spec import EXIT_USAGE, EXIT_VERIFICATION, StageName, checkpoint_name
from stages.trainer_args import find_refused_arguments

_ROW_BYTES = 300  # of a row of figures
_SMALL_FILES, _RANK_STATE = 28 * 1024, 16 * 1024  # of a checkpoint: configurations, arguments, COMPLETE.json; a rank's generators
_MOMENTS = {"sgd": 1, "ademamix": 3}  # how often an optimizer holds what learns; others twice at most
_DEFAULTS = {"optim": "adamw_torch_fused"}  # over which a user's trainer_args go


def train(trainer: SFTTrainer | RewardTrainer, context: StageContext) -> int:
    """Train from the newest complete checkpoint to the end, or to a checkpoint where a stop is asked for; return the last step.

    Raises:
        StageError: a loss, a gradient or a weight is not finite; exit code 3 where a weight is not from the start.
    """
    require_world_size(context, trainer.accelerator.num_processes)
    model: Any = trainer.model
    ranks = Ranks(trainer.accelerator)
    if broken := int(ranks.sum(count_broken_weights(model, ranks.index, frozen=True))):
        start, names = next(iter(context.spec.models.values())), name_broken_weights(model, ranks.index)
        which = f" ({names})" if names else ""  # of weights in pieces it may be another rank's
        raise StageError(
            f"{start}: found {broken} weights that hold numbers which are not finite{which}, needed finite ones; it was damaged, or made "
            "in too narrow a precision: get it anew, or take another",
            EXIT_VERIFICATION,
        )
    found = find_checkpoint(context)
    step = found[1] if found else 0
    context.rewind_metrics(step)
    context.event("start", stage=context.spec.stage, unit="step", resumed_step=step)
    with context.stops_at_step_end():
        # Always an explicit path: transformers' own finder takes a half-written checkpoint.
        trainer.train(resume_from_checkpoint=str(found[0]) if found else None)
    if broken := int(ranks.sum(count_broken_weights(model, ranks.index))):
        raise StageError(_describe_divergence(context, f"{broken} trained weights hold numbers that are not finite"))
    return trainer.state.global_step


class StageCallback(TrainerCallback):
    """Speak our events, stop at a step's end when asked, and mark each checkpoint complete after it is written."""

    def __init__(self, context: StageContext, measure_held: Callable[[Any], int] = lambda model: 0) -> None:
        self.context, self.measure_held = context, measure_held  # bytes of models that will be held beside the checkpoints
        self.step_end = StepEnd(context, cast("TrainingSettings", context.spec.settings).save_minutes)
        self.latest: dict[str, float] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, processing_class: Any = None, **_: Any) -> None:
        settings = cast("TrainingSettings", self.context.spec.settings)
        model = getattr(model, "module", model)
        tokenizer = measure_tokenizer(processing_class, self.context.spec.output_dir)
        zero = choose_engine(self.context).name == "deepspeed"
        states = measure_trained(model, 4 if zero else _MOMENTS.get(str(getattr(args.optim, "value", args.optim)), 2))
        merge = bool(settings.lora and (settings.lora.merge or has_grown(find_model(model))))
        require_room(
            self.context,
            measure_weights(model) + states + tokenizer + _SMALL_FILES + self.context.world_size * _RANK_STATE,
            measure_published(model, tokenizer, merge=merge),
            saves=count_saves(
                math.ceil(state.max_steps / args.save_steps) - state.global_step // args.save_steps,
                state.max_steps - state.global_step,
                settings.save_minutes,
            ),
            rows=_ROW_BYTES * math.ceil(state.max_steps / args.logging_steps),
            rows_in_checkpoints=True,
            kept=(self.measure_held(model), 0),
        )

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        row = {_our_name(key): float(value) for key, value in (logs or {}).items() if isinstance(value, int | float)}
        if "train_runtime" in (logs or {}):
            return  # the trainer's closing line repeats what the rows say
        for name, what in (("train/loss", "loss"), ("train/grad_norm", "gradient's norm"), ("eval/loss", "held-out loss")):
            if not math.isfinite(row.get(name, 0.0)):
                raise StageError(_describe_divergence(self.context, f"the {what} is {row[name]} at step {state.global_step}"))
        self.latest.update(row)
        self.context.write_metrics(state.global_step, row)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.context.progress("train", state.global_step, state.max_steps, self.latest)
        stop, save = self.step_end.decide()
        control.should_training_stop |= stop
        control.should_save |= save
        self._leave_last_evaluation(state, control)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._leave_last_evaluation(state, control)

    def _leave_last_evaluation(self, state: Any, control: Any) -> None:
        """Have no evaluation after the last step: the stage's own, of more figures, follows."""
        if state.global_step >= state.max_steps:
            control.should_evaluate = False

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.context.world_size > 1:
            torch.distributed.barrier()
        path, is_main = Path(args.output_dir) / checkpoint_name(state.global_step), state.is_world_process_zero
        mark_complete(path, state.global_step, layout=describe_layout(self.context), is_main=is_main)
        if is_main:
            prune(path.parent)
        self.step_end.saved()
        self.context.event("checkpoint", step=state.global_step)


def _describe_divergence(context: StageContext, found: str) -> str:
    stage, rate = context.spec.stage, cast("TrainingSettings", context.spec.settings).learning_rate
    other = ", or set hardware.precision: float32" if context.spec.hardware.computes_in_bfloat16 else ""
    return f"{found}; finite ones are needed; lower {stage}.learning_rate (found {rate:g}){other}"


def _our_name(key: str) -> str:
    return f"eval/{key.removeprefix('eval_')}" if key.startswith("eval_") else f"train/{key}"


def size_micro_batch(settings: PretrainSettings | SFTSettings | RMSettings, processes: int) -> tuple[int, int]:
    """Say how many records a process takes at once, and how often before a step."""
    per_process = max(settings.batch_size // processes, 1)
    size = max(size for size in range(1, settings.micro_batch_size + 1) if per_process % size == 0)
    return size, per_process // size


def make_arguments(context: StageContext, settings: PretrainSettings | SFTSettings | RMSettings, has_held_out: bool) -> dict[str, Any]:
    """Say in the terms of TrainingArguments what the recipe says of a stage."""
    spec = context.spec
    micro_batch_size, accumulation_steps = size_micro_batch(settings, context.world_size)
    engine, deepspeed = choose_engine(context), None
    if engine.name == "deepspeed":
        deepspeed = engine.configure_deepspeed(micro_batch_size=micro_batch_size, accumulation_steps=accumulation_steps)
    schedule, schedule_arguments = {
        "constant": ("constant_with_warmup", {}),
        "linear": ("polynomial", {"power": 1.0, "lr_end": settings.learning_rate * settings.min_lr_ratio}),
        "cosine": ("cosine_with_min_lr", {"min_lr_rate": settings.min_lr_ratio}),
    }[settings.lr_schedule]
    evaluation: dict[str, Any] = {"eval_strategy": "no"}
    if has_held_out:
        evaluation = {"eval_strategy": "steps", "eval_steps": settings.eval_every} if settings.eval_every else {"eval_strategy": "epoch"}
    return {
        "output_dir": str(spec.checkpoint_dir),
        "use_cpu": not uses_gpu(context),
        "bf16": spec.hardware.computes_in_bfloat16 and deepspeed is None,  # under DeepSpeed its configuration says so
        "seed": spec.seed,
        "deepspeed": deepspeed,
        "num_train_epochs": settings.epochs,
        "per_device_train_batch_size": micro_batch_size,
        "per_device_eval_batch_size": micro_batch_size,
        "gradient_accumulation_steps": accumulation_steps,
        "learning_rate": settings.learning_rate,
        "lr_scheduler_type": schedule,
        "lr_scheduler_kwargs": schedule_arguments,
        "warmup_steps": settings.warmup_steps,
        "adam_beta1": settings.adam_beta1,
        "adam_beta2": settings.adam_beta2,
        "adam_epsilon": settings.adam_epsilon,
        "weight_decay": settings.weight_decay,
        "max_grad_norm": settings.max_grad_norm,
        "activation_checkpointing": settings.gradient_checkpointing,
        "logging_steps": settings.log_every,
        "logging_nan_inf_filter": False,  # a loss that is not a number must be seen
        "save_strategy": "steps",
        "save_steps": settings.save_every,
        "save_total_limit": None,  # stages.process.checkpoint prunes: it knows which ones are complete
        "report_to": [],
        "disable_tqdm": True,
        **evaluation,
    }


def is_mixture(model: Any) -> bool:
    """Whether a model routes its tokens to experts."""
    return hasattr(model.config.get_text_config(), "output_router_logits")


def make_config(config_class: Any, arguments: dict[str, Any], extra: dict[str, Any], stage: StageName, model: Any) -> Any:
    """Make a config of TRL's from the user's `trainer_args`, and our arguments over them.

    Raises:
        StageError: a field is not a user's to give, is none, or has a value that the class refuses; exit code 2.
    """
    known = {field.name: getattr(field.type, "__name__", str(field.type)) for field in fields(config_class)}
    if refused := [f"{key}: {message}" for key, message in find_refused_arguments(stage, extra, known, config_class.__name__)]:
        raise StageError(" | ".join(refused), EXIT_USAGE)
    try:
        # Where no expert may go without a token, DDP's walk through the graph after each forward would find no weight that was not used.
        config = config_class(**(_DEFAULTS | {"ddp_find_unused_parameters": is_mixture(model)} | extra | arguments))
    except (ValueError, TypeError, ImportError) as error:
        raise StageError(f"{stage}.trainer_args: TRL's {config_class.__name__} refuses {extra}: {error}", EXIT_USAGE) from error
    use_one_gpu(config)
    return config
