"""Save policies and reward models, full or as adapters."""

import shutil
from pathlib import Path
from typing import Any

from stages.blocks import HardwareSettings
from stages.models.adapters import find_model, is_adapter
from stages.models.policy import load_policy
from stages.models.quiet import as_published
from stages.models.reward_model import find_calibration, load_reward_model
from stages.models.special_tokens import grow_embeddings, has_grown
from stages.models.tokenizer import align_special_tokens
from stages.spec import MERGED_DIR, MODEL_DIR


def save_model(model: Any, tokenizer: Any, output_dir: Path, *, merge: bool = False) -> None:
    """Write `model/` (safetensors, config, tokenizer) and, for an adapter on request, `merged/`.

    An adapter is merged into the weights on the disk. Trained on the same in 4 bits, it there computes slightly other numbers.
    """
    directory = output_dir / MODEL_DIR
    if is_adapter(model):
        # peft would write all embeddings into an adapter whose base on the disk has one row less: merged/ has them.
        model.save_pretrained(directory, save_embedding_layers=False if has_grown(find_model(model)) else "auto")
        if model.can_generate():
            find_model(model).generation_config.save_pretrained(directory)  # peft writes none
    else:
        with as_published(model):
            model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    calibration = find_calibration(model)
    if calibration:
        calibration.write(directory)
    if not is_adapter(model):
        return
    if merge:
        shutil.rmtree(output_dir / MERGED_DIR, ignore_errors=True)  # of an attempt that was killed: it would be taken for the model
        save_merged(directory, tokenizer, output_dir / MERGED_DIR, generates=model.can_generate())


def save_merged(adapter: Path, tokenizer: Any, directory: Path, *, generates: bool) -> None:
    """Merge an adapter into its base, and write that model in float32 with its tokenizer.

    Onto the base as it lies on the disk: the one in memory may be held in bfloat16 or 4 bits.

    Args:
        adapter: Its directory.
        tokenizer: That lies there.
        directory: Where to.
        generates: Whether it is a policy; else a reward model.
    """
    load = load_policy if generates else load_reward_model
    merged = load(str(adapter), HardwareSettings.model_validate({"device": "cpu", "precision": "float32"}))
    if generates:
        grow_embeddings(merged, tokenizer)
    align_special_tokens(merged, tokenizer)
    with as_published(merged):
        merged.save_pretrained(directory)
    if calibration := find_calibration(merged):
        calibration.write(directory)
    tokenizer.save_pretrained(directory)
