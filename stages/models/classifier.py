"""Which class a reward model is of: the family's own sequence classifier, or one of ours around its backbone.

Ours has the parts of those in transformers (a backbone by the family's name for it, and a linear `score`), so that `AutoModel` opens its
backbone; see stages/README.md for how to open it without this code.
"""

import functools
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoModel,
    PretrainedConfig,
    PreTrainedModel,
)

from stages.internals import SequenceClassifierOutput
from stages.models.head import HEAD
from stages.models.miniature import ConfigKey, shrink


def find_classifier(config: PretrainedConfig) -> Any:
    """Get the class of a family's reward models: the one that transformers has, if its head and its backbone are as ours need them."""
    config_class = type(config)
    known: Any = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING.get(config_class, None)
    return known if known is not None and _fits(known, ConfigKey(config)) else _make_class(config_class)


def is_ours(model_class: type) -> bool:
    """Whether a classifier is one of ours."""
    return issubclass(model_class, _Classifier)


@functools.cache
def _fits(model_class: Any, key: ConfigKey) -> bool:
    """Whether a classifier is a scalar head, without a bias, on the very backbone of the family's causal language model."""
    config = shrink(key.config, few_layers=False, narrow=False)
    config.num_labels = 1
    language_model: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    try:
        with torch.device("meta"):
            model, policy = model_class(config), language_model(config)
    except Exception:  # a classifier that does not know how to be built is none
        return False
    head = getattr(model, HEAD, None)
    return isinstance(head, nn.Linear) and head.bias is None and type(model.base_model) is type(policy.base_model)


@functools.cache
def _make_class(config_class: type[PretrainedConfig]) -> type:
    language_model: Any = MODEL_FOR_CAUSAL_LM_MAPPING[config_class]
    family = next(each for each in language_model.__mro__ if PreTrainedModel in each.__bases__)
    name = language_model.__name__.removesuffix("ForCausalLM").removesuffix("LMHeadModel") + "ForSequenceClassification"
    attributes = {
        "config_class": config_class,
        "base_model_prefix": language_model.base_model_prefix,
        # `from_pretrained` leaves buffers that are not saved as they come in classes from elsewhere (falcon_h1's `mup_vector`).
        "__module__": family.__module__,
    }
    return type(name, (_Classifier, family), attributes)


class _Classifier:
    """A backbone and its scalar head; mixed into the family's `PreTrainedModel`, which knows how to open and save it."""

    base_model_prefix: str

    def __init__(self, config: PretrainedConfig) -> None:
        super().__init__(config)  # pyright: ignore[reportCallIssue]
        text_config: Any = config.get_text_config()
        num_labels: Any = config.num_labels
        self.num_labels = num_labels
        setattr(self, self.base_model_prefix, AutoModel.from_config(config))
        setattr(self, HEAD, nn.Linear(text_config.hidden_size, num_labels, bias=False))
        self.post_init()  # pyright: ignore[reportAttributeAccessIssue]

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, **inputs: Any) -> SequenceClassifierOutput:
        """Compute one logit per row of the batch: at its last token that the mask calls real."""
        model: Any = self
        logits = model.get_submodule(HEAD)(model.base_model(input_ids=input_ids, attention_mask=attention_mask, **inputs).last_hidden_state)
        if attention_mask is None or attention_mask.dim() != 2:
            lasts_B = torch.full(logits.shape[:1], logits.shape[1] - 1, device=logits.device)
        else:
            columns = torch.arange(logits.shape[1], device=logits.device)
            lasts_B = (columns * attention_mask.bool()).argmax(dim=1)
        return SequenceClassifierOutput(logits=logits[torch.arange(len(logits), device=logits.device), lasts_B])
