"""The bench's models as our stages load them: written once, and opened by stages.models, which sets them up for our code."""

import json
import tempfile
from pathlib import Path
from typing import Any

from stages.models.policy import load_policy
from stages.models.reward_model import CALIBRATION_FILE, load_reward_model
from stages.settings import HardwareSettings
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
        model = make_reward_model(size, seed)
        model.save_pretrained(directory)
        calibration = {"score_bias": model.config.score_bias, "score_scale": model.config.score_scale}
        (Path(directory) / CALIBRATION_FILE).write_text(json.dumps(calibration), encoding="utf-8")
        return load_reward_model(directory, hardware)
