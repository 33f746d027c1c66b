"""A model's configuration -> a miniature of the model: a few layers and words, random weights as large as trained ones.

What a family's code can do is tried on it (stages.models.probe) in a tenth of a second, whatever the model's own size.
"""

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PretrainedConfig

from stages.internals import Conv1D, whole_models
from stages.models.quiet import quiet

NUM_WORDS = 64
_WINDOW = 8  # attention windows shrink to it, so that short documents reach beyond them
_CHUNK = 16
_INTERMEDIATE = 64  # a feed-forward's width, which nothing else depends on
_PERIODS = ("period", "interval", "freq", "every", "layer_step", "sparse_step", "pattern", "first_k")  # in the names of settings
_MAX_PERIOD = 8
_MAX_PARAMETERS = 5 * 10**8
_GAIN = 3.0  # of a random weight's standard deviation over 1 / √inputs: attention and output logits come to about 10, where caps act


@whole_models()
def make_miniature(config: PretrainedConfig, attention: str | None = None) -> Any:
    """Build a causal language model of the same code as the configured one, without a word or a weight of it.

    Args:
        config: of any class of the family; left as it is.
        attention: its implementation; None: the one that transformers prefers.

    Raises:
        Exception: whatever the family's own code raises of such a configuration.
    """
    return _build_smallest(config, lambda small: _build(small, attention))


@whole_models()
def make_skeleton(config: PretrainedConfig) -> Any:
    """The same without content, on the meta device: its modules and the shapes of their weights, in a tenth of the time.

    Raises:
        Exception: see `make_miniature`.
    """
    return _build_smallest(config, _build_empty)


def _build_smallest(config: PretrainedConfig, build: Callable[[PretrainedConfig], Any]) -> Any:
    error: Exception | None = None
    # The fewer of its sizes are touched, the more the family's own checks are content.
    for few_layers, narrow in ((True, True), (True, False), (False, True), (False, False)):
        try:
            return build(shrink(config, few_layers=few_layers, narrow=narrow))
        except Exception as found:
            error = error or found
    assert error is not None
    raise error


def _build_empty(config: PretrainedConfig) -> Any:
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


def _build(config: PretrainedConfig, attention: str | None) -> Any:
    size = sum(parameter.numel() for parameter in _build_empty(config).parameters())
    if size > _MAX_PARAMETERS:
        raise ValueError(f"a miniature of {type(config).__name__} would have {size} parameters")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation=attention).eval()
        _enlarge_weights(model)
    quiet(model)
    weights = [weight.detach().clone() for weight in model.parameters()]
    with torch.no_grad():
        logits = model(input_ids=torch.arange(1, 4)[None], use_cache=False).logits
    if not all(map(torch.equal, weights, model.parameters())):
        raise ValueError(f"a forward of {type(config).__name__}'s model changes its weights")
    if not logits.isfinite().all():
        raise ValueError(f"a miniature of {type(config).__name__} gives logits that are not finite")
    return model


class ConfigKey:
    """A configuration, compared by what it says of the computation; a miniature has words and special tokens of its own."""

    def __init__(self, config: PretrainedConfig) -> None:
        self.config = config
        self.text = f"{type(config).__name__} {_tell(with_own_words(config).to_dict())}"

    def __hash__(self) -> int:
        return hash(self.text)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ConfigKey) and self.text == other.text


_SAYS_NOTHING = {
    "architectures",
    "num_labels",
    "id2label",
    "label2id",
    "use_cache",  # each forward is told
    "_name_or_path",
    "dtype",
    "transformers_version",
    "_attn_implementation",
}


def _tell(settings: Mapping[str, Any]) -> str:
    said = {name: _tell(value) if isinstance(value, dict) else value for name, value in settings.items() if name not in _SAYS_NOTHING}
    return str(sorted(said.items(), key=lambda item: str(item[0])))


def shrink(config: PretrainedConfig, *, few_layers: bool = True, narrow: bool = True) -> PretrainedConfig:
    """Copy a configuration with few words, short windows and narrow feed-forwards.

    Args:
        config: left as it is.
        few_layers: keep as few layers as show each kind of layer once.
        narrow: divide the hidden size and the number of heads, as far as they are large.
    """
    config = with_own_words(config)
    vars(config).pop("quantization_config", None)
    for part in _list_parts(config):
        if few_layers:
            _shrink_layers(part)
        if narrow:
            _shrink_width(part)
        for name, value in vars(part).copy().items():
            if "window" in name and isinstance(value, int) and not isinstance(value, bool) and "layers" not in name:
                setattr(part, name, min(value, _WINDOW))
            elif name.endswith("chunk_size") and isinstance(value, int):  # of tokens that recurrent layers take at a time
                setattr(part, name, min(value, _CHUNK))
            elif "intermediate_size" in name or name in ("ffn_dim", "n_inner", "ffn_hidden_size"):
                setattr(part, name, _narrow(value))
    return config


def with_own_words(config: PretrainedConfig) -> PretrainedConfig:
    """Copy a configuration with a miniature's words and special tokens in place of the model's."""
    config = copy.deepcopy(config)
    for part in _list_parts(config):
        for name, value in vars(part).copy().items():
            if "vocab_size" in name and isinstance(value, int):
                setattr(part, name, NUM_WORDS)
            elif name in ("pad_token_id", "bos_token_id", "eos_token_id") and value is not None:
                setattr(part, name, 0)
    return config


def _list_parts(config: PretrainedConfig) -> list[PretrainedConfig]:
    """List a configuration and that of its text, if that is another."""
    return list({id(part): part for part in (config, config.get_text_config())}.values())


def _shrink_width(config: PretrainedConfig) -> None:
    """Halve hidden size and heads together, which leaves a head's size, while many heads are left."""
    width, heads = getattr(config, "hidden_size", None), getattr(config, "num_attention_heads", None)
    if not isinstance(width, int) or not isinstance(heads, int | None):
        return
    factor = 1
    while width // factor >= 512 and (heads is None or (heads % (2 * factor) == 0 and heads // factor > 4)):
        factor *= 2
    if width % factor:
        return
    for name, value in vars(config).copy().items():
        if "hidden_size" in name and value == width:
            setattr(config, name, width // factor)
    config.hidden_size = width // factor
    key_heads = getattr(config, "num_key_value_heads", None)
    if heads is not None:
        config.num_attention_heads = heads // factor
    if isinstance(key_heads, int):
        config.num_key_value_heads = max(1, key_heads // factor)


def _narrow(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return type(value)(_narrow(item) for item in value)
    return min(value, _INTERMEDIATE) if isinstance(value, int) else value


def _shrink_layers(config: PretrainedConfig) -> None:
    """Keep the first layers, as many as it takes to have one of each kind."""
    total = getattr(config, "num_hidden_layers", None)
    if not isinstance(total, int):
        return
    kept = 2
    lists = {name: value for name, value in vars(config).items() if isinstance(value, list | tuple) and len(value) == total}
    for value in lists.values():
        kinds = [repr(kind) for kind in value]
        kept = max(kept, *(kinds.index(kind) + 1 for kind in kinds))
    for name, value in vars(config).items():
        # Layers that differ by their number: every n-th, or those after the first n.
        if isinstance(value, int) and value <= _MAX_PERIOD and any(word in name for word in _PERIODS):
            kept = max(kept, value + 1)
    keep_layers(config, min(kept, total))


def keep_layers(config: PretrainedConfig, kept: int) -> None:
    """Have a configuration's model no more than its first layers."""
    total = config.num_hidden_layers
    lists = {name: value for name, value in vars(config).items() if isinstance(value, list | tuple) and len(value) == total}
    count = config.attribute_map.get("num_hidden_layers", "num_hidden_layers")
    setattr(config, count, kept)
    for name, value in vars(config).copy().items():
        if name.endswith("_layers") and type(value) is int and name != count and 0 < value <= total:
            setattr(config, name, max(1, value * kept // total))  # how many of them are special
    for name, value in lists.items():
        setattr(config, name, value[:kept])


@torch.no_grad()
def _enlarge_weights(model: nn.Module) -> None:
    """Give matrices the standard deviation at which what goes through them keeps about its size, times the gain."""
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            std = parameter.std() if parameter.numel() > 1 else torch.zeros(())
            if parameter.dim() < 2 or not std > 0 or not (parameter.dim() == 3 or isinstance(module, nn.Linear | nn.Embedding | Conv1D)):
                continue
            inputs = 1.0 if isinstance(module, nn.Embedding) else max(parameter.shape[-2:]) if parameter.dim() == 3 else _inputs(module)
            parameter.mul_(_GAIN / (std * inputs**0.5))


def _inputs(module: nn.Module) -> int:
    weight: Any = module.weight
    return weight.shape[0] if isinstance(module, Conv1D) else weight.shape[1]
