"""The bench's models as our stages load them: written once, and opened by stages.models, which sets them up for our code."""

import tempfile
from pathlib import Path
from typing import Any

from stages.blocks import HardwareSettings
from stages.models.calibration import Calibration
from stages.models.policy import load_policy
from stages.models.reward_model import load_reward_model
from tests.bench.workload import add_biased_head, make_plain_policy, make_reward_model


def make_hardware(precision: str, **changes: Any) -> HardwareSettings:
    """Describe this machine to our code; attention and the like stay at the project's defaults."""
    return HardwareSettings.model_validate({"device": "cpu", "precision": precision, **changes})


def open_policy(size: str, hazard: float, hardware: HardwareSettings) -> Any:
    """Open a policy that ends a response at each token with about the chance `hazard`."""
    with tempfile.TemporaryDirectory() as directory:
        make_plain_policy(size, seed=0).save_pretrained(directory)
        policy = load_policy(directory, hardware)
    add_biased_head(policy, hazard)
    return policy


def open_reward_model(size: str, seed: int, hardware: HardwareSettings) -> Any:
    """Open a reward model, or what a critic starts from."""
    with tempfile.TemporaryDirectory() as directory:
        make_reward_model(size, seed).save_pretrained(directory)
        Calibration().write(Path(directory))
        return load_reward_model(directory, hardware)
