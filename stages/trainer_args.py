"""The fields of TRL's configs that are not a user's to give by `trainer_args`: whose they are, and what to set instead. Torch-free.

A test compares this with what `stages.trl` sets.
"""

import difflib
import importlib.util
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from stages.rules import Refusal
from stages.spec import StageName
from stages.trainer_values import find_bad_value

# Field -> the keys of the recipe that say it; {stage} is the stage's block.
_OF_THE_RECIPE = {
    **{
        name: f"{{stage}}.{name}"
        for name in ("learning_rate", "warmup_steps", "adam_beta1", "adam_beta2", "adam_epsilon", "weight_decay", "max_grad_norm")
    },
    "num_train_epochs": "{stage}.epochs",
    "lr_scheduler_type": "{stage}.lr_schedule",
    "lr_scheduler_kwargs": "{stage}.min_lr_ratio",
    "per_device_train_batch_size": "{stage}.micro_batch_size",
    "per_device_eval_batch_size": "{stage}.micro_batch_size",
    "auto_find_batch_size": "{stage}.micro_batch_size",
    "gradient_accumulation_steps": "{stage}.batch_size and {stage}.micro_batch_size",
    "activation_checkpointing": "{stage}.gradient_checkpointing",
    "gradient_checkpointing": "{stage}.gradient_checkpointing",
    "logging_steps": "{stage}.log_every",
    "logging_strategy": "{stage}.log_every",
    "save_steps": "{stage}.save_every",
    "save_strategy": "{stage}.save_every",
    "eval_steps": "{stage}.eval_every",
    "eval_strategy": "{stage}.eval_every",
    "seed": "seed",
    **dict.fromkeys(("bf16", "fp16", "bf16_full_eval", "fp16_full_eval"), "hardware.precision"),
    "use_cpu": "hardware.device",
    "tf32": "hardware.tf32",
    **dict.fromkeys(("deepspeed", "fsdp", "fsdp_config", "parallelism_config", "accelerator_config", "ddp_backend"), "hardware.engine"),
    **dict.fromkeys(("torch_compile", "torch_compile_backend", "torch_compile_mode"), "hardware.compile"),
    **dict.fromkeys(("max_length", "truncation_mode"), "tokens.max_prompt_tokens and tokens.max_response_tokens"),
    "chat_template_path": "tokens.chat_template",
    "eos_token": "tokens.end_token",
    "packing": "sft.packing",
    "eval_packing": "sft.packing",
}
_SHOWN_CHARS = 100
_SUGGESTIONS = 40  # a search for each of thousands takes minutes
_BATCHES = "each record of an epoch comes once and weighs alike, in the same batches on any number of processes; leave it out"
_CHECKPOINTS = "a run goes on from its newest whole checkpoint, and its last weights are published; leave it out"
_FIGURES = "a stage's figures go into metrics.jsonl of its artifact, and nowhere else; leave it out"
_HUB = "a stage sends nothing away; upload model/ of its artifact"
_MODEL = "the stage opens base_model itself; leave it out"
_RECORDS = "the records are token ids by then, with what is trained on marked; leave it out"
# Field -> why it would break the contract with the pipeline, or do nothing.
_OF_THE_CONTRACT = {
    "output_dir": "the store decides where a stage writes; set store, or give --store",
    **dict.fromkeys(("save_total_limit", "save_only_model", "save_on_each_node", "enable_jit_checkpoint"), _CHECKPOINTS),
    **dict.fromkeys(("load_best_model_at_end", "metric_for_best_model", "greater_is_better", "resume_from_checkpoint"), _CHECKPOINTS),
    **dict.fromkeys(("ignore_data_skip", "restore_callback_states_from_checkpoint"), _CHECKPOINTS),
    **dict.fromkeys(("report_to", "run_name", "project", "disable_tqdm"), _FIGURES),
    **dict.fromkeys(("trackio_space_id", "trackio_bucket_id", "trackio_static_space_id"), _FIGURES),
    **dict.fromkeys(("average_tokens_across_devices", "dataloader_drop_last", "train_sampling_strategy"), _BATCHES),
    "logging_nan_inf_filter": "a loss that is not a number ends the run; leave it out",
    **dict.fromkeys(("push_to_hub", "hub_token", "hub_private_repo", "hub_model_id", "hub_strategy", "hub_always_push"), _HUB),
    "hub_revision": _HUB,
    **dict.fromkeys(("model_init_kwargs", "trust_remote_code"), _MODEL),
    **dict.fromkeys(("remove_unused_columns", "dataset_kwargs", "dataset_text_field", "dataset_num_proc", "shuffle_dataset"), _RECORDS),
    **dict.fromkeys(("completion_only_loss", "assistant_only_loss"), _RECORDS),
    "pad_token": "the stage finds one that is not the end token; leave it out",
    **dict.fromkeys(("do_train", "do_eval", "do_predict", "local_rank"), "the pipeline starts the stage; leave it out"),
}
_RANKING = "the reward model's loss and batches are our own; leave it out"
_OF_ONE_STAGE: dict[StageName, dict[str, str]] = {
    "pretrain": {
        **dict.fromkeys(("max_length", "truncation_mode"), "the recipe says that elsewhere; set pretrain.sequence_length"),
        **dict.fromkeys(("packing", "eval_packing"), "texts always fill whole rows; leave it out"),
    },
    "rm": dict.fromkeys(
        ("prediction_loss_only", "label_smoothing_factor", "center_rewards_coefficient", "pad_to_multiple_of", "label_names"), _RANKING
    ),
}


def owned_arguments(stage: StageName) -> dict[str, str]:
    """Return the fields that a stage's `trainer_args` may not have: name -> whose it is, and what to do."""
    by_recipe = {name: f"the recipe says that elsewhere; set {key.format(stage=stage)}" for name, key in _OF_THE_RECIPE.items()}
    return by_recipe | _OF_THE_CONTRACT | _OF_ONE_STAGE.get(stage, {})


def recipe_keys(stage: str, name: str) -> str | None:
    """Return the keys of the recipe that say what a field of TRL's is called; None where there are none of another name."""
    keys = {"lr": "{stage}.learning_rate", **_OF_THE_RECIPE}.get(name, "").format(stage=stage)
    return keys if stage in ("pretrain", "sft", "rm") and keys and keys != f"{stage}.{name}" else None


def find_refused_arguments(
    stage: StageName, arguments: Mapping[str, Any], known: Mapping[str, str], config_class: str
) -> Iterator[Refusal]:
    """Find the `trainer_args` that are no fields of TRL's class, not a user's to give, or have a value that cannot be used.

    Args:
        stage: Whose trainer_args.
        arguments: What was given.
        known: The class's fields, each with its type as its source has it.
        config_class: Its name, for the message.
    """
    owned = owned_arguments(stage)
    num_unknown = 0
    for name in sorted(arguments):
        key, value = f"{stage}.trainer_args.{name[:_SHOWN_CHARS]}", arguments[name]
        if name not in known:
            num_unknown += 1
            yield Refusal(key, f"unknown key of TRL's {config_class}{_suggest(name, known) if num_unknown <= _SUGGESTIONS else ''}")
        elif name in owned:
            yield Refusal(key, f"found {value!r:.60}, but {owned[name]}")
        elif name == "use_liger_kernel" and value and importlib.util.find_spec("liger_kernel") is None:
            yield Refusal(key, f"found {value!r}, needed liger-kernel, which is not installed; install it, or leave it out")
        elif bad := find_bad_value(name, arguments, known[name], config_class):
            yield Refusal(key, bad)


def _suggest(name: str, known: Collection[str]) -> str:
    near = difflib.get_close_matches(name[:_SHOWN_CHARS], sorted(known), n=1)
    return f"; did you mean {near[0]}?" if near else "; see its documentation"
