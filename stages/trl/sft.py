"""TRL's SFTTrainer on our token stream (demonstrations, pieces of texts), without padding where our attention fits the model."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from torch.nn import functional as F
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from data.pieces import Pieces
from data.token_file import TokenRows
from data.tokens import EncodedPair
from stages.models.adapters import find_model
from stages.models.forward import is_packed, make_inputs
from stages.models.logprobs import compute_logprobs
from stages.models.packing import lay_out
from stages.process.context import StageContext, Told
from stages.process.dealing import Numbers
from stages.process.errors import StageError
from stages.process.gpu import send
from stages.settings import PretrainSettings, SFTSettings
from stages.spec import EXIT_USAGE
from stages.trl.batches import draw_step, evaluate_records, leave_on_cpu
from stages.trl.best import BestKeeper
from stages.trl.fitting import fused_head_fits, packing_fits
from stages.trl.rows import Row, make_rows, pack_rows, write_rows
from stages.trl.sampler import deal_evenly, deals_evenly
from stages.trl.training import StageCallback, is_mixture, make_arguments, make_config

IGNORED_LABEL = -100
_ROW_LENGTHS = "row_lengths"  # tokens of each row of a batch, however the rows lie in it
_MAX_LOGITS = 2**26  # 256 MB in float32; of a padded batch, which has them for prompts and padding too, 1 GB
_MAX_PADDED_LOGITS = 2**28


def make_sft_trainer(
    context: StageContext,
    settings: SFTSettings,
    model: Any,
    tokenizer: Any,
    train: Sequence[EncodedPair],
    held_out: Sequence[EncodedPair],
    keeper: BestKeeper | None = None,
) -> SFTTrainer:
    """Build TRL's SFTTrainer on our token stream; the loss is on response tokens only, every one weighted alike in a batch."""
    limits = context.spec.tokens
    max_length, packing = limits.max_prompt_tokens + limits.max_response_tokens, settings.packing
    return make_language_trainer(
        context, settings, model, tokenizer, train, held_out, max_length=max_length, packing=packing, keeper=keeper
    )


def make_language_trainer(
    context: StageContext,
    settings: PretrainSettings | SFTSettings,
    model: Any,
    tokenizer: Any,
    train: Sequence[EncodedPair],
    held_out: Sequence[EncodedPair],
    *,
    max_length: int,
    packing: bool,
    keeper: BestKeeper | None = None,
) -> SFTTrainer:
    """Build TRL's SFTTrainer on pairs; the loss is on their responses.

    Args:
        context: where it runs, and what is told of it.
        settings: of the stage.
        model: that learns.
        tokenizer: its tokenizer.
        train: no longer than `max_length`.
        held_out: whose loss is told on the way.
        max_length: of a packed row, in tokens.
        packing: fill rows with whole pairs; those of a batch are then rows.
        keeper: holds the best model so far.
    """
    arguments = make_arguments(context, settings, len(held_out) > 0)
    arguments |= {"max_length": max_length, "packing": packing, "eval_packing": False}
    config = make_config(SFTConfig, arguments, settings.trainer_args, context.spec.stage, model)
    rows, held_out_rows = _language_rows(train), _language_rows(held_out) if held_out else None
    ours, head_fits = _takes_our_loss(context, model, config)
    sizes: Numbers | None = _count_tokens(train)
    if ours and config.packing:
        # TRL's collator would make one row of them, with dense attention and logits for every token: 0.6 times as fast as no packing.
        rows, sizes = pack_rows(rows, sizes, config.max_length, config.packing_strategy, context.own_directory)
        config.packing = False
    if config.packing:
        sizes = None  # TRL will make the rows, each about as long as the others
        rows = write_rows(rows, context.own_directory / "train.arrow")
        held_out_rows = held_out_rows and write_rows(held_out_rows, context.own_directory / "held_out.arrow")
    else:  # the rows are ids and labels; only TRL's packing prepares them
        config.dataset_kwargs, config.remove_unused_columns = {"skip_prepare_dataset": True}, False
    trainer_class = partial(ResponseSFTTrainer, fused_head_fits=head_fits) if ours else EvenSFTTrainer
    return trainer_class(
        model=model,
        args=config,
        train_dataset=rows,
        eval_dataset=held_out_rows,
        processing_class=tokenizer,
        data_collator=collate_demonstrations if ours else None,
        callbacks=[keeper, StageCallback(context, keeper.measure)] if keeper else [StageCallback(context)],
        told=context.tells("evaluation"),
        sizes=sizes if deals_evenly(context) else None,
    )


def _takes_our_loss(context: StageContext, model: Any, config: SFTConfig) -> tuple[bool, bool]:
    """Decide who computes the loss: what changes TRL's (its variants, label smoothing, a router's loss) or its batches is left to TRL.

    Returns:
        (whether we compute it, whether TRL's fused head fits the model).

    Raises:
        StageError: TRL should, and its head does not fit.
    """
    router_loss = wants_router_loss(model, config)
    plain_loss = config.loss_type == "nll" and not config.label_smoothing_factor and not router_loss
    plain_batches = not config.padding_free and not (config.packing and config.packing_strategy == "wrapped")
    head_fits = fused_head_fits(model.config)
    ours = is_packed(model) or not head_fits or (config.packing and not packing_fits(model.config))
    ours = ours and plain_loss and plain_batches
    stage = context.spec.stage
    if not ours and not head_fits:
        raise StageError(
            f"{stage}.trainer_args: found a loss or batches of TRL's own, whose head does not make the logits of "
            f"{type(find_model(model)).__name__}; needed: ours; leave them out, and set router_aux_loss_coef: 0 for a mixture of experts",
            EXIT_USAGE,
        )
    if router_loss and is_packed(model):
        context.note(
            f"the routers' loss of this mixture of experts is TRL's: batches are padded; {stage}.trainer_args: "
            "{router_aux_loss_coef: 0} omits it"
        )
    return ours, head_fits


def wants_router_loss(model: Any, config: SFTConfig) -> bool:
    """Whether TRL will add the load-balancing loss of a mixture of experts, by its own default or by `trainer_args`."""
    text_config = model.config.get_text_config()
    coef = config.router_aux_loss_coef
    coef = getattr(text_config, "router_aux_loss_coef", 0.0) if coef is None else coef
    return is_mixture(model) and coef != 0.0


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


def keep_demonstrations(batch: dict[str, Tensor], kept: int) -> dict[str, Tensor]:
    """Leave all rows but the first `kept` out of the loss."""
    labels, lengths = batch["labels"].clone(), batch[_ROW_LENGTHS]
    if len(labels) == len(lengths):
        labels[kept:] = IGNORED_LABEL
    else:  # laid end to end
        labels[0, int(lengths[:kept].sum()) :] = IGNORED_LABEL
    return batch | {"labels": labels}


def weigh_demonstrations(batch: dict[str, Tensor]) -> Tensor:
    """Count the tokens that are trained on; nothing predicts a row's first one."""
    return (batch["labels"][..., 1:] != IGNORED_LABEL).sum()


def _collate_with_lengths(collate: Any, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
    return collate(rows) | {_ROW_LENGTHS: torch.tensor([len(row["input_ids"]) for row in rows])}


class EvenSFTTrainer(SFTTrainer):
    """TRL's SFTTrainer; each token of a batch weighs alike, and each demonstration of an epoch comes once."""

    loss_is_scaled_for_ga = True  # by `num_items_in_batch`, the response tokens of the whole batch

    def __init__(self, *, told: Told, sizes: Numbers | None, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.told, self.sizes = told, sizes  # tokens of each row
        self.data_collator = partial(_collate_with_lengths, self.data_collator)

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """Write none: a checkpoint is nobody's to read."""

    def get_train_dataloader(self) -> Any:
        return deal_evenly(self, super().get_train_dataloader(), self.sizes)

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> Any:
        return draw_step(self, epoch_iterator, num_batches, keep_demonstrations, weigh_demonstrations)

    def evaluation_loop(self, dataloader: Any, *_: Any, metric_key_prefix: str = "eval", **__: Any) -> Any:
        return evaluate_records(self, dataloader, metric_key_prefix, keep_demonstrations, weigh_demonstrations, self.told)

    def compute_loss(self, model: Any, inputs: dict[str, Tensor], return_outputs: bool = False, num_items_in_batch: Any = None) -> Any:
        for_model = {name: tensor for name, tensor in inputs.items() if name != _ROW_LENGTHS}
        return super().compute_loss(model, for_model, return_outputs, num_items_in_batch)


class ResponseSFTTrainer(EvenSFTTrainer):
    """Logits for response tokens only, on packed rows; padded, and all logits, where ours do not fit the model."""

    def __init__(self, *, fused_head_fits: bool, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.fused_head_fits = fused_head_fits

    def get_train_dataloader(self) -> Any:
        return leave_on_cpu(super().get_train_dataloader())

    def get_eval_dataloader(self, *given: Any, **named: Any) -> Any:
        return leave_on_cpu(super().get_eval_dataloader(*given, **named))

    def _prepare_inputs(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        return inputs  # see `leave_on_cpu`

    def compute_loss(self, model: Any, inputs: dict[str, Tensor], return_outputs: bool = False, num_items_in_batch: Any = None) -> Any:
        device, labels_N = self.accelerator.device, inputs["labels"][0]
        row = lay_out(send(inputs["ids"][0], device), inputs["lengths"])
        predictors_K = (labels_N[1:] != IGNORED_LABEL).nonzero()[:, 0]
        targets_K, predictors_K = send(labels_N[predictors_K + 1], device), send(predictors_K, device)
        policy: Any = self.accelerator.unwrap_model(model)
        arguments, places_N = make_inputs(policy, row)
        packed, places_K = is_packed(policy), places_N[predictors_K]
        num_logits = (len(predictors_K) if packed else arguments["input_ids"].numel()) * policy.config.get_text_config().vocab_size
        if self.fused_head_fits and num_logits > (_MAX_LOGITS if packed else _MAX_PADDED_LOGITS):
            # TRL's tiles: slower, but the logits never exist.
            labels_BW = torch.full_like(arguments["input_ids"], IGNORED_LABEL)
            labels_BW.view(-1)[places_N[: len(labels_N)]] = send(labels_N, device)
            logprobs_BW = F.pad(model(**arguments, labels=labels_BW, fused_lm_head=True).log_probs, (0, 1))
            logprobs_K = logprobs_BW.flatten()[places_K]
        elif packed:
            logits_KV = model(**arguments, logits_to_keep=predictors_K).logits[0]
            logprobs_K = compute_logprobs(logits_KV, targets_K, 1.0)
        else:
            logits_KV = model(**arguments).logits.flatten(0, 1)[places_K]
            logprobs_K = compute_logprobs(logits_KV, targets_K, 1.0)
        loss = -logprobs_K.sum() / (len(predictors_K) if num_items_in_batch is None else num_items_in_batch)
        if num_items_in_batch is not None:
            loss = loss * self.accelerator.num_processes  # the count is that of all ranks, whose gradients are averaged
        return (loss, {"loss": loss}) if return_outputs else loss


def _language_rows(pairs: Sequence[EncodedPair]) -> Dataset:
    def read(number: int) -> Row:
        pair = pairs[number]
        return {"input_ids": pair.prompt_ids + pair.response_ids, "labels": [IGNORED_LABEL] * len(pair.prompt_ids) + pair.response_ids}

    return make_rows(len(pairs), read)


def _count_tokens(pairs: Sequence[EncodedPair]) -> Numbers:
    if isinstance(pairs, TokenRows | Pieces):
        return pairs.count_tokens()
    return np.array([len(pair.prompt_ids) + len(pair.response_ids) for pair in pairs])
