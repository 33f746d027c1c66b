"""What a recipe asks of its base model, for all stages, is known before the first of them trains."""

import json
import shutil

import pytest

from data.fingerprint import fingerprint
from data.load import load_records
from stages.blocks import LoRASettings, TokenSettings
from stages.process.errors import StageError
from stages.spec import EXIT_USAGE, DataSource, DataSplits, TokensSpec
from stages.tokens import make_all


@pytest.fixture
def make_spec(tmp_path, demo_dir, base_model_dir):
    """A TokensSpec over 40 records of each kind."""

    def make(base=base_model_dir, **changes):
        data, fingerprints = {}, {}
        for kind in ("demonstrations", "comparisons", "prompts"):
            path = tmp_path / f"{kind}.jsonl"
            path.write_text("".join((demo_dir / f"{kind}.train.jsonl").read_text().splitlines(keepends=True)[:40]))
            source = DataSource(path=str(path))
            data[kind] = DataSplits(train=source)
            fingerprints[kind] = {"train": fingerprint(load_records(source, kind))}
        values = {
            "base_model": str(base),
            "revision": None,
            "tokens": TokenSettings(max_prompt_tokens=96, max_response_tokens=96),
            "data": data,
            "fingerprints": fingerprints,
            "records": {f"{kind}.train": 40 for kind in data},
            "skip_bad": 0,
            "eval_fraction": 0.1,
            "seed": 3,
            "adapters": {},
            "stop_tokens": {},
            "max_rollout_tokens": 64,
            "tokens_dir": tmp_path / "tokens",
            "events_path": tmp_path / "events.jsonl",
            "report_path": tmp_path / "report.json",
        }
        return TokensSpec(**(values | changes))

    return make


def shorten_positions(base, directory, positions):
    shutil.copytree(base, directory)
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"max_position_embeddings": positions}))
    return directory


def test_a_recipe_that_fits_its_base_model_passes(make_spec):
    lora = LoRASettings(target_modules=["q_proj", "v_proj"])
    counts = make_all(make_spec(adapters={"sft": None, "rm": lora, "ppo": lora}))["counts"]
    assert {kind: sum(split[f"{kind}"] for split in splits.values()) for kind, splits in counts.items()} == {
        "demonstrations": 40,
        "comparisons": 40,
        "prompts": 40,
    }


@pytest.mark.parametrize("stage", ["sft", "rm", "ppo"])
def test_adapters_of_a_later_stage_are_tried_too(make_spec, stage):
    with pytest.raises(StageError, match=rf"{stage}\.lora\.target_modules.*no_such_proj") as caught:
        make_all(make_spec(adapters={stage: LoRASettings(target_modules=["no_such_proj"])}))
    assert caught.value.exit_code == EXIT_USAGE


def test_one_target_of_several_that_no_module_is_called_is_told(make_spec):
    with pytest.raises(
        StageError, match=r"rm\.lora\.target_modules.*found v_porj, which no module is called; beside it is q_proj"
    ) as caught:
        make_all(make_spec(adapters={"rm": LoRASettings(target_modules=["q_proj", "v_porj"])}))
    assert caught.value.exit_code == EXIT_USAGE


@pytest.mark.parametrize("stage", ["ppo", "evaluate"])
def test_a_stop_token_that_pads_is_refused(make_spec, base_model_dir, stage):
    pad = json.loads((base_model_dir / "tokenizer_config.json").read_text())["pad_token"]
    with pytest.raises(StageError, match=rf"{stage}\.stop_token"):
        make_all(make_spec(stop_tokens={stage: pad if isinstance(pad, str) else pad["content"]}))


@pytest.mark.parametrize(("positions", "rollout", "kind"), [(40, 1, "demonstrations"), (110, 96, "prompts")])
def test_records_longer_than_the_models_positions_are_refused(tmp_path, make_spec, base_model_dir, positions, rollout, kind):
    base = shorten_positions(base_model_dir, tmp_path / "base", positions)
    with pytest.raises(StageError, match=rf"^{kind}: found \d+ tokens .* at most the {positions} .*; lower tokens") as caught:
        make_all(make_spec(base, max_rollout_tokens=rollout))
    assert caught.value.exit_code == EXIT_USAGE


def test_of_ranked_answers_each_follows_the_prompt_alone(tmp_path, make_spec, base_model_dir):
    """All answers of a comparison together are longer than the positions, none is with its prompt."""
    base = shorten_positions(base_model_dir, tmp_path / "base", 160)
    spec = make_spec(base)
    spec = spec.model_copy(update={"data": {"comparisons": spec.data["comparisons"]}})
    assert make_all(spec)["counts"]["comparisons"]["train"]["comparisons"]
