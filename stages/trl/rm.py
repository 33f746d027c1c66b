"""TRL's RewardTrainer with the K-way ranking loss: one batch element is a prompt with all its ranked answers."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from trl.trainer.reward_config import RewardConfig
from trl.trainer.reward_trainer import RewardTrainer

from data.token_file import TokenRows
from data.tokens import EncodedComparison
from stages.models.adapters import find_model
from stages.models.forward import make_inputs
from stages.models.head import HEAD
from stages.models.packing import PackedRow, lay_out, list_documents
from stages.process.context import StageContext, Told
from stages.process.dealing import Numbers
from stages.process.gpu import send
from stages.process.ranks import Ranks
from stages.ranking import Pairs, grade_margins, make_pairs, pair_accuracy, ranking_loss
from stages.settings import RMSettings
from stages.trl.batches import draw_step, evaluate_records, leave_on_cpu
from stages.trl.rows import Row, make_rows
from stages.trl.sampler import deal_evenly, deals_evenly
from stages.trl.training import StageCallback, make_arguments, make_config


def make_ranking_trainer(
    context: StageContext,
    settings: RMSettings,
    model: Any,
    tokenizer: Any,
    train: Sequence[EncodedComparison],
    held_out: Sequence[EncodedComparison],
) -> "RankingTrainer":
    """Build the reward trainer: one batch element is a prompt with all its ranked answers."""
    arguments = make_arguments(context, settings, len(held_out) > 0)
    arguments |= {"max_length": None, "remove_unused_columns": False, "prediction_loss_only": True}
    return RankingTrainer(
        model=model,
        args=make_config(RewardConfig, arguments, settings.trainer_args, "rm", model),
        train_dataset=_comparison_rows(train),
        eval_dataset=_comparison_rows(held_out) if held_out else None,
        processing_class=tokenizer,
        data_collator=collate_comparisons,
        callbacks=[StageCallback(context)],
        told=context.tells("evaluation"),
        margin_scale=settings.margin_scale if settings.margin == "grade" else 0.0,
        sizes=_count_tokens(train) if deals_evenly(context) else None,
    )


def collate_comparisons(comparisons: list[dict[str, Any]]) -> dict[str, Tensor]:
    """Lay the documents of comparisons end to end: a prompt, then the answers that continue it, and so on.

    Returns:
        `ranks`, `grades` (NaN: none) and `prompts` (which comparison) of each answer; `ids`, and `lengths` and `parents` of each
        document (see `pack`).
    """
    documents, parents = list_documents((item["prompt_ids"], item["responses"]) for item in comparisons)
    return {
        "ranks": torch.tensor([rank for item in comparisons for rank in item["ranks"]]),
        "grades": torch.tensor([grade for item in comparisons for grade in item.get("grades") or [math.nan] * len(item["responses"])]),
        "prompts": torch.tensor([index for index, item in enumerate(comparisons) for _ in item["responses"]]),
        "ids": torch.tensor([token for document in documents for token in document]),
        "lengths": torch.tensor([len(document) for document in documents]),
        "parents": torch.tensor(parents),
    }


def keep_comparisons(batch: dict[str, Tensor], kept: int) -> dict[str, Tensor]:
    """Leave all comparisons but the first `kept` out of the loss: answers that are tied make no pair."""
    return batch | {"ranks": torch.where(batch["prompts"] < kept, batch["ranks"], 1)}


def weigh_comparisons(batch: dict[str, Tensor]) -> Tensor:
    """Count the comparisons that have a pair."""
    return torch.tensor(make_pairs(batch["ranks"], batch["prompts"]).num_prompts, device=batch["ranks"].device)


class RankingTrainer(RewardTrainer):
    """TRL's RewardTrainer with the K-way ranking loss in place of its pairwise one, and each prompt computed once for its K answers."""

    loss_is_scaled_for_ga = True  # by `num_items_in_batch`, the comparisons of the whole batch

    def __init__(self, *, told: Told, sizes: Numbers | None, margin_scale: float = 0.0, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.told, self.sizes, self.margin_scale = told, sizes, margin_scale
        self._sums = {"train": torch.zeros(4), "eval": torch.zeros(4)}  # see `_measure`; since the last row of metrics

    def _prepare_dataset(self, dataset: Any, processing_class: Any, args: Any, dataset_name: str) -> Any:
        return dataset  # already token ids

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """Write none: a checkpoint is nobody's to read."""

    def get_train_dataloader(self) -> Any:
        return leave_on_cpu(deal_evenly(self, super().get_train_dataloader(), self.sizes))

    def get_eval_dataloader(self, *given: Any, **named: Any) -> Any:
        return leave_on_cpu(super().get_eval_dataloader(*given, **named))

    def _prepare_inputs(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        return inputs  # see `leave_on_cpu`

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> Any:
        return draw_step(self, epoch_iterator, num_batches, keep_comparisons, weigh_comparisons)

    def evaluation_loop(self, dataloader: Any, *_: Any, metric_key_prefix: str = "eval", **__: Any) -> Any:
        return evaluate_records(self, dataloader, metric_key_prefix, keep_comparisons, weigh_comparisons, self.told)

    def compute_loss(self, model: Any, inputs: dict[str, Tensor], return_outputs: bool = False, num_items_in_batch: Any = None) -> Any:
        device, pairs = self.accelerator.device, make_pairs(inputs["ranks"], inputs["prompts"])
        has_margin = self.margin_scale and model.training  # held out, a pair's probability is that of its scores' difference
        required_Q = send(self.margin_scale * grade_margins(inputs["grades"], pairs), device) if has_margin else None
        pairs = pairs.send(device)
        row = lay_out(send(inputs["ids"], device), inputs["lengths"], inputs["parents"])
        answers_N = (inputs["parents"] >= 0).nonzero()[:, 0]
        scores_N = self._compute_logits(model, row)[send(answers_N, device)]
        loss = ranking_loss(scores_N, pairs, required_Q)  # a mean over this micro-batch's prompts
        self._measure(scores_N.detach(), pairs, mode="train" if model.training else "eval")
        if num_items_in_batch is not None:  # a mean over those of the whole batch; the ranks' gradients are averaged
            loss = loss * (pairs.num_prompts * self.accelerator.num_processes / num_items_in_batch)
        return (loss, {"logits": scores_N}) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        model: Any = self.model
        mode, device = "train" if model.training else "eval", self.accelerator.device
        right, comparisons, scores, answers = Ranks(self.accelerator).sum(self._sums[mode].to(device)).tolist()
        self._sums[mode] = torch.zeros(4)
        if comparisons:
            self._metrics[mode] |= {"accuracy": [right / comparisons], "mean_score": [scores / answers]}
        super().log(logs, start_time)

    def _measure(self, scores_N: Tensor, pairs: Pairs, mode: str) -> None:
        """Take in what a micro-batch says: accuracy, mean over comparisons of mean over pairs, and mean score of answers that have one."""
        paired_N = torch.zeros_like(scores_N, dtype=torch.bool)
        paired_N[pairs.better_Q] = paired_N[pairs.worse_Q] = True
        right = (pair_accuracy(scores_N, pairs) * pairs.weight_Q).sum() * pairs.num_prompts
        comparisons = torch.full_like(right, pairs.num_prompts)
        figures = torch.stack([right, comparisons, scores_N.where(paired_N, 0.0).float().sum(), paired_N.sum()])
        self._sums[mode] = self._sums[mode].to(figures.device) + figures

    def _compute_logits(self, model: Any, row: PackedRow) -> Tensor:
        """Compute the logit at each document's last token, through the whole (maybe wrapped) model.

        A sequence classifier returns one logit per row of the batch; its head computes one per token, so they are read there.
        """
        head_model = find_model(self.accelerator.unwrap_model(model))
        arguments, places_N = make_inputs(head_model, row)
        computed: list[Tensor] = []
        hook = head_model.get_submodule(HEAD).register_forward_hook(lambda _head, _input, logits: computed.append(logits))
        try:
            output = model(**arguments)
        finally:
            hook.remove()
        # DeepSpeed learns from the output that a backward pass begins; without this it is no part of the loss.
        return computed[0].flatten()[places_N[row.lasts_D]] + 0.0 * output.logits.sum()


def _comparison_rows(comparisons: Sequence[EncodedComparison]) -> Dataset:
    def read(number: int) -> Row:
        item = comparisons[number]
        return {"prompt_ids": item.prompt_ids, "responses": item.responses, "ranks": item.ranks, "grades": list(item.grades)}

    return make_rows(len(comparisons), read)


def _count_tokens(comparisons: Sequence[EncodedComparison]) -> Numbers:
    if isinstance(comparisons, TokenRows):
        return comparisons.count_tokens()
    return np.array([len(item.prompt_ids) + sum(map(len, item.responses)) for item in comparisons])
