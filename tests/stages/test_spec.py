"""What a stage process is given."""

import pytest
from pydantic import ValidationError

from stages.blocks import HardwareSettings, TokenSettings
from stages.settings import SFTSettings
from stages.spec import STAGES, StageSpec, read_spec


def make_spec(tmp_path, stage, settings):
    return StageSpec(
        stage=stage,
        settings=settings,
        tokens=TokenSettings(),
        hardware=HardwareSettings(),
        models={},
        data={},
        seed=3,
        output_dir=tmp_path / "output",
        checkpoint_dir=tmp_path / "checkpoints",
        events_path=tmp_path / "events.jsonl",
    )


@pytest.mark.parametrize("stage", STAGES)
def test_the_stage_says_of_which_class_its_settings_are(tmp_path, stage):
    """What is given fits several of them."""
    name = "temperature" if stage in ("evaluate", "sample") else "learning_rate"
    spec = make_spec(tmp_path, stage, {name: 0.5})
    assert type(spec.settings) is STAGES[stage].settings and getattr(spec.settings, name) == 0.5
    path = tmp_path / "spec.json"
    path.write_text(spec.model_dump_json())
    assert read_spec(path) == spec


@pytest.mark.parametrize(("stage", "settings"), [("rm", SFTSettings()), ("rm", {"kl_coef": 0.1}), ("dpo", {})])
def test_settings_of_another_stage_are_refused(tmp_path, stage, settings):
    with pytest.raises(ValidationError, match=r"settings|stage"):
        make_spec(tmp_path, stage, settings)
