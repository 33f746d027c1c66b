"""A reward model for tests of rounds."""

import pytest


@pytest.fixture
def fresh_model_dir(base_model_dir, tmp_path):
    """A reward model with a fresh head on the demo's base model."""
    from stages.blocks import HardwareSettings
    from stages.models.reward_model import init_reward_model
    from stages.models.save import save_model
    from stages.models.tokenizer import align_special_tokens, load_tokenizer

    hardware = HardwareSettings(device="cpu", precision="float32", attention="eager", threads=1)
    model, tokenizer = init_reward_model(str(base_model_dir), hardware, seed=3), load_tokenizer(str(base_model_dir))
    align_special_tokens(model, tokenizer)
    save_model(model, tokenizer, tmp_path / "fresh")
    return tmp_path / "fresh" / "model"
