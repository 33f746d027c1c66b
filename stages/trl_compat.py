"""The only module that touches TRL: its trainers for SFT and RM, wired to our contract (events, stops, complete checkpoints)."""

import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from torch.nn import functional as F
from transformers import TrainerCallback
from transformers.integrations.deepspeed import unset_hf_deepspeed_config
from trl.data_utils import pack_dataset
from trl.models.utils import add_hooks, remove_hooks
from trl.trainer.reward_config import RewardConfig
from trl.trainer.reward_trainer import RewardTrainer
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from data.tokens import EncodedComparison, EncodedPair
from stages.checkpoint import mark_complete, prune
from stages.compiling import eagerly
from stages.deepspeed_config import make_deepspeed_config
from stages.distributed import choose_engine, describe_layout, find_checkpoint, require_world_size
from stages.models import HEAD, find_model, is_adapter
from stages.packing import PackedRow, is_packed, lay_out, list_documents, make_inputs
from stages.partition import gathered_in_forward
from stages.ranking import Pairs, make_pairs, pair_accuracy, ranking_loss
from stages.rules import find_unknown_arguments
from stages.runtime import StageContext, StageError, uses_gpu
from stages.settings import RMSettings, SFTSettings
from stages.spec import EXIT_USAGE, StageName

IGNORED_LABEL = -100
_MAX_LOGITS = 2**26  # 256 MB in float32
_EVENTS_PER_S = 4


def make_sft_trainer(
    context: StageContext, settings: SFTSettings, model: Any, tokenizer: Any, train: list[EncodedPair], held_out: list[EncodedPair]
) -> SFTTrainer:
    """Build TRL's SFTTrainer on our token stream; the loss is on response tokens only, every one weighted alike in a batch."""
    limits = context.spec.tokens
    arguments = _training_arguments(context, settings, len(held_out) > 0)
    arguments |= {
        "max_length": limits.max_prompt_tokens + limits.max_response_tokens,
        "packing": settings.packing,
        "eval_packing": False,
    }
    config = _make_config(SFTConfig, arguments, settings.trainer_args, "sft")
    rows = _language_rows(train)
    # What changes TRL's loss (its variants, label smoothing, a router's loss) or its batches is left to TRL, with its padding.
    plain_loss = (
        config.loss_type == "nll" and not config.label_smoothing_factor and not getattr(model.config, "output_router_logits", False)
    )
    plain_batches = not config.padding_free and not (config.packing and config.packing_strategy == "wrapped")
    unpadded = plain_loss and plain_batches and is_packed(model)
    if unpadded and config.packing:
        # TRL's collator would make one row of them, with dense attention and logits for every token: 0.6 times as fast as no packing.
        rows = pack_dataset(rows, config.max_length, config.packing_strategy)
        config.packing = False
    if not config.packing:  # the rows are ids and labels; only TRL's packing prepares them
        config.dataset_kwargs, config.remove_unused_columns = {"skip_prepare_dataset": True}, False
    trainer_class = UnpaddedSFTTrainer if unpadded else SFTTrainer
    return trainer_class(
        model=model,
        args=config,
        train_dataset=rows,
        eval_dataset=_language_rows(held_out) if held_out else None,
        processing_class=tokenizer,
        data_collator=collate_demonstrations if unpadded else None,
        callbacks=[_StageCallback(context)],
    )


def make_ranking_trainer(
    context: StageContext,
    settings: RMSettings,
    model: Any,
    tokenizer: Any,
    train: list[EncodedComparison],
    held_out: list[EncodedComparison],
) -> "RankingTrainer":
    """Build the reward trainer: one batch element is a prompt with all its ranked answers."""
    arguments = _training_arguments(context, settings, len(held_out) > 0)
    arguments |= {"max_length": None, "remove_unused_columns": False, "prediction_loss_only": True}
    return RankingTrainer(
        model=model,
        args=_make_config(RewardConfig, arguments, settings.trainer_args, "rm"),
        train_dataset=_comparison_rows(train),
        eval_dataset=_comparison_rows(held_out) if held_out else None,
        processing_class=tokenizer,
        data_collator=collate_comparisons,
        callbacks=[_StageCallback(context)],
    )


def train(trainer: SFTTrainer | RewardTrainer, context: StageContext) -> None:
    """Train from the newest complete checkpoint to the end, or to a checkpoint where a stop is asked for."""
    require_world_size(context, trainer.accelerator.num_processes)
    found = find_checkpoint(context)
    step = found[1] if found else 0
    context.rewind_metrics(step)
    context.event("start", stage=context.spec.stage, unit="step", resumed_step=step)
    with context.stops_at_step_end():
        # Always an explicit path: transformers' own finder takes a half-written checkpoint.
        trainer.train(resume_from_checkpoint=str(found[0]) if found else None)


@contextmanager
def whole_model(trainer: SFTTrainer | RewardTrainer) -> Generator[Any]:
    """Give the trained model without what wraps it, to be computed with by all ranks alike, and saved. To be entered by all ranks.

    Every rank holds all of its weights; at ZeRO stage 3 under an adapter those that learn, and the others one module after the other.
    """
    model: Any = trainer.accelerator.unwrap_model(trainer.model)
    plugin = getattr(trainer.accelerator.state, "deepspeed_plugin", None)
    if plugin is None or plugin.zero_stage < 3:
        yield model
        return
    unset_hf_deepspeed_config()  # or transformers would open the next model in pieces, on all ranks at once
    with gather_weights(trainer.model_wrapped, frozen=not is_adapter(model)), gathered_in_forward(model), eagerly(model):
        yield model


@contextmanager
def gather_weights(engine: Any, *, frozen: bool = True) -> Generator[None]:
    """Inside, every rank holds all weights of a DeepSpeed engine at ZeRO stage 3, and its module can be used alone.

    Args:
        engine: the DeepSpeed engine.
        frozen: gather weights that do not learn too; without them the module cannot be run.
    """
    import deepspeed

    parameters = [parameter for parameter in engine.module.parameters() if frozen or parameter.requires_grad]
    with deepspeed.zero.GatheredParameters(parameters):
        remove_hooks(engine)  # they would give each layer's weights away after its forward
        try:
            yield
        finally:
            add_hooks(engine)


def collate_demonstrations(rows: list[dict[str, Any]]) -> dict[str, Tensor]:
    """Lay demonstrations end to end: each row is one, or several of the lengths `seq_lengths`.

    Returns:
        `labels` (the token where it is trained on, else -100) and `ids` of all tokens, shape [1, N]; `lengths` of each demonstration.
    """
    lengths = torch.tensor([length for row in rows for length in row.get("seq_lengths", [len(row["input_ids"])])])
    labels = torch.tensor([[label for row in rows for label in row["labels"]]])
    # Nothing precedes the first token of a document, so nothing can predict it.
    labels[0, lengths.cumsum(0) - lengths] = IGNORED_LABEL
    return {"labels": labels, "ids": torch.tensor([[token for row in rows for token in row["input_ids"]]]), "lengths": lengths}


class UnpaddedSFTTrainer(SFTTrainer):
    """TRL's SFTTrainer on packed rows: no padding, and logits for response tokens only."""

    def compute_loss(self, model: Any, inputs: dict[str, Tensor], return_outputs: bool = False, num_items_in_batch: Any = None) -> Any:
        row = lay_out(inputs["ids"][0], inputs["lengths"])
        labels_N = inputs["labels"][0]
        predictors_K = (labels_N[1:] != IGNORED_LABEL).nonzero()[:, 0]
        policy: Any = self.accelerator.unwrap_model(model)
        arguments, _ = make_inputs(policy, row.reading(predictors_K))
        if len(predictors_K) * policy.config.get_text_config().vocab_size <= _MAX_LOGITS:
            logits_KV = model(**arguments, logits_to_keep=predictors_K).logits[0]
            logprobs_K = -F.cross_entropy(logits_KV.float(), labels_N[predictors_K + 1], reduction="none")
        else:  # TRL's tiles: slower, but the logits never exist
            labels_1N = F.pad(inputs["labels"], (0, len(row.ids_N) - len(labels_N)), value=IGNORED_LABEL)
            logprobs_K = model(**arguments, labels=labels_1N, fused_lm_head=True).log_probs.flatten()[predictors_K]
        loss = -logprobs_K.sum() / (len(predictors_K) if num_items_in_batch is None else num_items_in_batch)
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            loss = loss * self.accelerator.num_processes  # the count is that of all ranks, whose gradients are averaged
        return (loss, {"loss": loss}) if return_outputs else loss


def collate_comparisons(comparisons: list[dict[str, Any]]) -> dict[str, Tensor]:
    """Lay the documents of comparisons end to end: a prompt, then the answers that continue it, and so on.

    Returns:
        `ranks` and `prompts` (which comparison) of each answer; `ids`, and `lengths` and `parents` of each document (see stages.packing).
    """
    documents, parents = list_documents((item["prompt_ids"], item["responses"]) for item in comparisons)
    return {
        "ranks": torch.tensor([rank for item in comparisons for rank in item["ranks"]]),
        "prompts": torch.tensor([index for index, item in enumerate(comparisons) for _ in item["responses"]]),
        "ids": torch.tensor([token for document in documents for token in document]),
        "lengths": torch.tensor([len(document) for document in documents]),
        "parents": torch.tensor(parents),
    }


class RankingTrainer(RewardTrainer):
    """TRL's RewardTrainer with the K-way ranking loss in place of its pairwise one, and each prompt computed once for its K answers."""

    def _prepare_dataset(self, dataset: Any, processing_class: Any, args: Any, dataset_name: str) -> Any:
        return dataset  # already token ids

    def compute_loss(self, model: Any, inputs: dict[str, Tensor], return_outputs: bool = False, num_items_in_batch: Any = None) -> Any:
        pairs: Pairs = make_pairs(inputs["ranks"], inputs["prompts"])
        row = lay_out(inputs["ids"], inputs["lengths"], inputs["parents"])
        scores_N = self._compute_logits(model, row)[row.parents_D >= 0]
        loss = ranking_loss(scores_N, pairs)
        metrics = self._metrics["train" if model.training else "eval"]
        metrics["accuracy"].append((pair_accuracy(scores_N.detach(), pairs) * pairs.weight_Q).sum().item())
        metrics["mean_score"].append(scores_N.detach().mean().item())
        return (loss, {"logits": scores_N}) if return_outputs else loss

    def _compute_logits(self, model: Any, row: PackedRow) -> Tensor:
        """Compute the logit at each document's last token, through the whole (maybe wrapped) model.

        A sequence classifier returns one logit per row of the batch; its head computes one per token, so they are read there.
        """
        head_model = find_model(self.accelerator.unwrap_model(model))
        arguments, places_N = make_inputs(head_model, row.reading(row.lasts_D))
        computed: list[Tensor] = []
        hook = head_model.get_submodule(HEAD).register_forward_hook(lambda _head, _input, logits: computed.append(logits))
        try:
            output = model(**arguments)
        finally:
            hook.remove()
        # DeepSpeed learns from the output that a backward pass begins; without this it is no part of the loss.
        return computed[0].flatten()[places_N[row.lasts_D]] + 0.0 * output.logits.sum()


class _StageCallback(TrainerCallback):
    """Speak our events, stop at a step's end when asked, and mark each checkpoint complete after it is written."""

    def __init__(self, context: StageContext) -> None:
        self.context = context
        self.latest: dict[str, float] = {}
        self.last_event_s = 0.0

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        row = {_our_name(key): float(value) for key, value in (logs or {}).items() if isinstance(value, int | float)}
        if "train_runtime" in (logs or {}):
            return  # the trainer's closing line repeats what the rows say
        loss = row.get("train/loss", 0.0)
        if loss != loss or loss in (float("inf"), float("-inf")):
            raise StageError(
                f"the loss is {loss} at step {state.global_step}; finite losses are needed; lower learning_rate or use float32"
            )
        self.latest.update(row)
        self.context.write_metrics(state.global_step, row)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        now = time.monotonic()
        if now - self.last_event_s >= 1 / _EVENTS_PER_S or state.global_step == state.max_steps:
            self.context.progress("train", state.global_step, state.max_steps, self.latest)
            self.last_event_s = now
        if self.context.stop_requested:
            control.should_save = control.should_training_stop = True

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.context.world_size > 1:
            torch.distributed.barrier()
        if state.is_world_process_zero:
            path = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            mark_complete(path, state.global_step, layout=describe_layout(self.context))
            prune(path.parent)
        self.context.event("checkpoint", step=state.global_step)


def _our_name(key: str) -> str:
    return f"eval/{key.removeprefix('eval_')}" if key.startswith("eval_") else f"train/{key}"


def _training_arguments(context: StageContext, settings: SFTSettings | RMSettings, has_held_out: bool) -> dict[str, Any]:
    spec = context.spec
    per_process = settings.batch_size // context.world_size
    micro_batch_size = max(size for size in range(1, settings.micro_batch_size + 1) if per_process % size == 0)
    accumulation_steps = per_process // micro_batch_size
    deepspeed = None
    if choose_engine(context) == "deepspeed":
        deepspeed = make_deepspeed_config(
            spec.hardware,
            max_grad_norm=settings.max_grad_norm,
            micro_batch_size=micro_batch_size,
            accumulation_steps=accumulation_steps,
        )
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
        "bf16": spec.hardware.precision == "bfloat16" and deepspeed is None,  # under DeepSpeed its configuration says so
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
        "optim": "adamw_torch_fused",
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
        "save_total_limit": None,  # stages.checkpoint prunes: it knows which ones are complete
        "report_to": [],
        "disable_tqdm": True,
        **evaluation,
    }


def _make_config(config_class: Any, arguments: dict[str, Any], extra: dict[str, Any], stage: StageName) -> Any:
    known = {field.name for field in fields(config_class)}
    for key, message in find_unknown_arguments(stage, extra, known, config_class.__name__):
        raise StageError(f"{key}: {message}", EXIT_USAGE)
    try:
        return config_class(**(arguments | extra))
    except (ValueError, TypeError) as error:
        raise StageError(f"{stage}: {config_class.__name__} refuses these settings: {error}", EXIT_USAGE) from error


def _language_rows(pairs: list[EncodedPair]) -> Dataset:
    return Dataset.from_dict(
        {
            "input_ids": [pair.prompt_ids + pair.response_ids for pair in pairs],
            "labels": [[IGNORED_LABEL] * len(pair.prompt_ids) + pair.response_ids for pair in pairs],
        }
    )


def _comparison_rows(comparisons: list[EncodedComparison]) -> Dataset:
    return Dataset.from_dict(
        {
            "prompt_ids": [item.prompt_ids for item in comparisons],
            "responses": [item.responses for item in comparisons],
            "ranks": [item.ranks for item in comparisons],
        }
    )
