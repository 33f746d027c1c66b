"""What the stages share that train a language model by likelihood (pretrain, sft): the model that learns, and its held-out loss."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional as F

from data.tokens import EncodedPair
from stages.models.adapters import apply_lora, find_backbone, require_adapter_base
from stages.models.compiling import compile_layers
from stages.models.forward import note_padding
from stages.models.policy import load_policy
from stages.models.precision import autocast
from stages.models.special_tokens import grow_embeddings
from stages.models.tokenizer import align_special_tokens
from stages.process.context import StageContext
from stages.process.engine import choose_engine
from stages.process.errors import StageError
from stages.settings import PretrainSettings, SFTSettings
from stages.trl.sft import IGNORED_LABEL

_EVAL_BATCH = 32
_MAX_EVAL_LOGITS = 2**28  # 1 GB in float32; 32 demonstrations of 1536 tokens and 128,256 words of vocabulary would be 25


def load_learner(context: StageContext, settings: PretrainSettings | SFTSettings, tokenizer: Any | None = None) -> Any:
    """Load the model that a stage starts from, with a fresh adapter on it where the settings say so.

    Args:
        context: names the model.
        settings: of the stage.
        tokenizer: the model shall end and pad by its tokens, and have a row for each; None: by its own.

    Raises:
        StageError: it cannot be opened, or is an adapter itself where another one shall stand on it.
    """
    spec = context.spec
    model: Any = load_policy(spec.models["base"], spec.hardware, spec.revision, engine=choose_engine(context))
    if tokenizer is not None:
        grow_embeddings(model, tokenizer)
        align_special_tokens(model, tokenizer)
    if settings.lora:
        require_adapter_base(spec.models["base"], f"{spec.stage}.lora", made_by="pretrain")
        model = apply_lora(model, settings.lora, "CAUSAL_LM", spec.hardware, spec.revision)
    note_padding(context, model)
    compile_layers(context, model)
    return model


def measure_loss(
    context: StageContext, model: Any, held_out: Sequence[EncodedPair], train: Sequence[EncodedPair], pad_token_id: int
) -> float:
    """Measure the trained model's held-out loss; where nothing is held out, that of a few training pairs.

    A loss above that of a model which knows nothing is noted.

    Raises:
        StageError: it is not finite.
    """
    loss = heldout_loss(model, held_out or train[:_EVAL_BATCH], pad_token_id)
    of_chance = math.log(model.config.get_text_config().vocab_size)
    remedy = f"lower {context.spec.stage}.learning_rate"
    if not math.isfinite(loss):
        raise StageError(f"the trained model's loss is {loss}; a finite one is needed; {remedy}")
    if loss > of_chance:
        context.note(f"the loss {loss:.3g} is above {of_chance:.3g}, that of a model which knows nothing; {remedy}")
    return loss


@torch.no_grad()
def heldout_loss(model: Any, pairs: Sequence[EncodedPair], pad_token_id: int) -> float:
    """Mean negative log-likelihood per held-out response token, in nats; every token weighs alike, whatever its batch."""
    model.eval()
    device = next(model.parameters()).device
    total, tokens = 0.0, 0
    longest = max(len(pair.prompt_ids) + len(pair.response_ids) for pair in pairs)
    vocab_size = model.config.get_text_config().vocab_size
    batch_size = max(1, min(_EVAL_BATCH, _MAX_EVAL_LOGITS // (longest * vocab_size)))
    for start in range(0, len(pairs), batch_size):
        batch = pairs[start : start + batch_size]
        width = max(len(pair.prompt_ids) + len(pair.response_ids) for pair in batch)
        ids_BT = torch.full((len(batch), width), pad_token_id)
        labels_BT = torch.full((len(batch), width), IGNORED_LABEL)
        for row, pair in enumerate(batch):
            ids = pair.prompt_ids + pair.response_ids
            ids_BT[row, : len(ids)] = torch.tensor(ids)
            labels_BT[row, len(pair.prompt_ids) : len(ids)] = torch.tensor(pair.response_ids)
        # Right padding under a causal mask: no real token sees a pad, so no attention mask is needed.
        with autocast(find_backbone(model), device):
            logits_BTV = model(input_ids=ids_BT.to(device)).logits[:, :-1]
        targets_BT = labels_BT[:, 1:].to(device)
        total += F.cross_entropy(logits_BTV.float().flatten(0, 1), targets_BT.flatten(), ignore_index=IGNORED_LABEL, reduction="sum").item()
        tokens += int((targets_BT != IGNORED_LABEL).sum())
    return total / tokens
