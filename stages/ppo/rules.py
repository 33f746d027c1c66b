"""Sizes and coefficients of the update, as plain numbers."""

from dataclasses import dataclass

from stages.settings import PPOSettings


@dataclass(frozen=True)
class UpdateRules:
    """Sizes (over all ranks) and coefficients of the update."""

    ppo_epochs: int
    minibatch_size: int
    temperature: float
    clip_range: float
    value_clip_range: float
    value_coef: float
    early_stop_kl: float | None
    ptx_coef: float = 0.0


def make_update_rules(settings: PPOSettings) -> UpdateRules:
    """Take from the settings what the update needs."""
    return UpdateRules(
        ppo_epochs=settings.ppo_epochs,
        minibatch_size=settings.minibatch_size,
        temperature=settings.temperature,
        clip_range=settings.clip_range,
        value_clip_range=settings.value_clip_range,
        value_coef=settings.value_coef,
        early_stop_kl=settings.early_stop_kl,
        ptx_coef=settings.ptx_coef,
    )
