"""What the stages share that train a language model by likelihood (pretrain, sft): the model that learns, and its held-out loss."""

import math
from collections.abc import Sequence
from typing import Any

import torch

from data.tokens import EncodedPair
from stages.models.adapters import apply_lora, find_backbone, require_adapter_base
from stages.models.compiling import compile_layers
from stages.models.forward import note_padding
from stages.models.logprobs import compute_token_logprobs
from stages.models.packing import pack, split_by_tokens
from stages.models.policy import load_policy
from stages.models.precision import autocast
from stages.models.special_tokens import grow_embeddings
from stages.models.tokenizer import align_special_tokens
from stages.process.context import StageContext, Told
from stages.process.engine import choose_engine
from stages.process.errors import StageError
from stages.result import Interval
from stages.result_intervals import find_interval
from stages.settings import PretrainSettings, SFTSettings
from stages.warnings.loss import find_ignorance

_FEW = 32
_EVAL_TOKENS = 4096  # of a row in evaluation


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
    quantizes = bool(settings.lora and settings.lora.quantize)
    model: Any = load_policy(spec.models["base"], spec.hardware, spec.revision, engine=choose_engine(context), on_cpu=quantizes)
    _warn_of_unread(context, model)
    if tokenizer is not None:
        grow_embeddings(model, tokenizer)
        align_special_tokens(model, tokenizer)
    if settings.lora:
        require_adapter_base(spec.models["base"], f"{spec.stage}.lora", made_by="pretrain")
        model = apply_lora(model, settings.lora, "CAUSAL_LM", spec.hardware, spec.revision)
    note_padding(context, model)
    compile_layers(context, model)
    return model


def _warn_of_unread(context: StageContext, model: Any) -> None:
    """Warn of weights on the disk that the model does not have: biases or layers that its config.json leaves out, or another head."""
    if not model.unread:
        return
    some = f"{', '.join(model.unread[:3])}{', ...' * (len(model.unread) > 3)}"
    found = f"{context.spec.models['base']}: found {len(model.unread)} tensors that {type(model).__name__} does not read ({some})"
    told = f"{found}: they are left out; if they are more than a head of another use, take the config.json that belongs to these weights"
    context.warn("unread weights", told)


def measure_loss(
    context: StageContext, model: Any, held_out: Sequence[EncodedPair], train: Sequence[EncodedPair]
) -> tuple[float, Interval | None]:
    """Measure the trained model's held-out loss with its interval; where nothing is held out, that of a few training pairs.

    A loss above that of a model which knows nothing is warned of.

    Raises:
        StageError: it is not finite.
    """
    pairs = held_out or train[:_FEW]
    sums, counts = heldout_losses(model, pairs, context.tells("held-out loss"))
    loss = sum(sums) / sum(counts)
    of_chance = math.log(model.config.get_text_config().vocab_size)
    remedy = f"lower {context.spec.stage}.learning_rate"
    if not math.isfinite(loss):
        raise StageError(f"the trained model's loss is {loss}; a finite one is needed; {remedy}")
    context.warn("loss", find_ignorance(loss, of_chance, what="loss", model="model", remedy=remedy))
    means = [total / max(count, 1) for total, count in zip(sums, counts, strict=True)]
    return loss, find_interval(means, [tuple(pair.prompt_ids) for pair in pairs], weights=counts)


@torch.no_grad()
def heldout_losses(model: Any, pairs: Sequence[EncodedPair], told: Told = lambda done, total: None) -> tuple[list[float], list[int]]:
    """Compute for each pair the negative log-likelihood of its response tokens, in nats, and how many they are."""
    model.eval()
    device = next(model.parameters()).device
    sums: list[float] = []
    counts: list[int] = []
    for run in split_by_tokens((len(pair.prompt_ids) + len(pair.response_ids) for pair in pairs), _EVAL_TOKENS):
        batch = pairs[run]
        row = pack([pair.prompt_ids + pair.response_ids for pair in batch], device=device)
        is_target_N = torch.zeros(len(row.ids_N), dtype=torch.bool)
        for pair, start in zip(batch, row.layout_3D[0].tolist(), strict=True):
            # Nothing precedes a document's first token, so nothing can predict it.
            is_target_N[start + max(len(pair.prompt_ids), 1) : start + len(pair.prompt_ids) + len(pair.response_ids)] = True
        predictors_K = is_target_N.nonzero()[:, 0].to(device) - 1
        targets = [len(pair.response_ids) - (not pair.prompt_ids and bool(pair.response_ids)) for pair in batch]
        logprobs_K = torch.zeros(0)
        if len(predictors_K):
            with autocast(find_backbone(model), device):
                logprobs_K, _ = compute_token_logprobs(model, row, predictors_K, 1.0, all_rows=True)
        sums += [-part.sum().item() for part in logprobs_K.double().cpu().split(targets)]
        counts += targets
        told(run.stop, len(pairs))
    return sums, counts
