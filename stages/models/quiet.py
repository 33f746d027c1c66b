"""What is random or off the task in a model, switched off while we compute with it, and published as it was.

Dropout and routers' jitter would make log-probabilities of two passes differ; a router's auxiliary loss is no part of RM's and PPO's.
"""

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

_RANDOM = ("drop", "jitter")  # in the names of attributes and settings, whatever the family calls them
# Set to nothing while we compute: the collection of routers' logits, and RWKV's halving of its weights, in place, in evaluation mode.
_OFF = ("output_router_logits", "rescale_every")
_CHANGED = (*_OFF, "router_aux_loss_coef")  # the last by TRL's trainer


def quiet(model: Any) -> None:
    """Switch dropout of every kind off, functional ones included, and the collection of routers' logits.

    What the configuration says is remembered at the first call, for `as_published`; a second call undoes what a trainer has set.
    """
    configs = [model.config, model.config.get_text_config(), *(getattr(module, "config", None) for module in model.modules())]
    configs = list({id(config): config for config in configs if config is not None}.values())
    if not hasattr(model, "published_settings"):
        model.published_settings = [
            (config, name, getattr(config, name))
            for config in configs
            for name in [*_find_random(vars(config)), *(name for name in _CHANGED if hasattr(config, name))]
        ]
    for module in model.modules():
        if "Dropout" in type(module).__name__ and isinstance(getattr(module, "p", None), float):
            module.p = 0.0
        _silence(module)
    for config in configs:
        _silence(config)
        for name in _OFF:
            if getattr(config, name, None):
                setattr(config, name, type(getattr(config, name))())


def _silence(thing: Any) -> None:
    for name in _find_random(vars(thing)):
        setattr(thing, name, 0.0)


@contextmanager
def as_published(model: Any) -> Generator[None]:
    """Inside, a model's configuration is that of the model that it was loaded from; to save it."""
    settings: list[tuple[Any, str, Any]] = getattr(model, "published_settings", [])
    quieted = [(config, name, getattr(config, name)) for config, name, _ in settings]
    _write(settings)
    try:
        yield
    finally:
        _write(quieted)


def _write(settings: list[tuple[Any, str, Any]]) -> None:
    for config, name, value in settings:
        setattr(config, name, value)


def _find_random(attributes: dict[str, Any]) -> list[str]:
    return [name for name, value in attributes.items() if isinstance(value, float) and value and any(word in name for word in _RANDOM)]
