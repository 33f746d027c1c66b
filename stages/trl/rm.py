"""TRL's RewardTrainer with the K-way ranking loss: one batch element is a prompt with all its ranked answers."""

from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from trl.trainer.reward_config import RewardConfig
from trl.trainer.reward_trainer import RewardTrainer

from data.tokens import EncodedComparison
from stages.models.adapters import find_model
from stages.models.forward import make_inputs
from stages.models.head import HEAD
from stages.models.packing import PackedRow, lay_out, list_documents
from stages.process.context import StageContext
from stages.ranking import Pairs, make_pairs, pair_accuracy, ranking_loss
from stages.settings import RMSettings
from stages.trl.training import StageCallback, make_arguments, make_config


def make_ranking_trainer(
    context: StageContext,
    settings: RMSettings,
    model: Any,
    tokenizer: Any,
    train: list[EncodedComparison],
    held_out: list[EncodedComparison],
) -> "RankingTrainer":
    """Build the reward trainer: one batch element is a prompt with all its ranked answers."""
    arguments = make_arguments(context, settings, len(held_out) > 0)
    arguments |= {"max_length": None, "remove_unused_columns": False, "prediction_loss_only": True}
    return RankingTrainer(
        model=model,
        args=make_config(RewardConfig, arguments, settings.trainer_args, "rm"),
        train_dataset=_comparison_rows(train),
        eval_dataset=_comparison_rows(held_out) if held_out else None,
        processing_class=tokenizer,
        data_collator=collate_comparisons,
        callbacks=[StageCallback(context)],
    )


def collate_comparisons(comparisons: list[dict[str, Any]]) -> dict[str, Tensor]:
    """Lay the documents of comparisons end to end: a prompt, then the answers that continue it, and so on.

    Returns:
        `ranks` and `prompts` (which comparison) of each answer; `ids`, and `lengths` and `parents` of each document (see `pack`).
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
        arguments, places_N = make_inputs(head_model, row)
        computed: list[Tensor] = []
        hook = head_model.get_submodule(HEAD).register_forward_hook(lambda _head, _input, logits: computed.append(logits))
        try:
            output = model(**arguments)
        finally:
            hook.remove()
        # DeepSpeed learns from the output that a backward pass begins; without this it is no part of the loss.
        return computed[0].flatten()[places_N[row.lasts_D]] + 0.0 * output.logits.sum()


def _comparison_rows(comparisons: list[EncodedComparison]) -> Dataset:
    return Dataset.from_dict(
        {
            "prompt_ids": [item.prompt_ids for item in comparisons],
            "responses": [item.responses for item in comparisons],
            "ranks": [item.ranks for item in comparisons],
        }
    )
