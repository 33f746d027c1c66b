"""`ppo.start`: the policy at which PPO begins is found, and refused where it does not fit the recipe."""

import pytest

from pipeline.errors import ConfigError, StoreError
from pipeline.inputs.prepare import prepare
from pipeline.inputs.start import find_start, require_same_sft
from pipeline.plan import decide
from pipeline.recipe.load import load_recipe
from stages.spec import EXIT_MISSING, EXIT_VERIFICATION


@pytest.fixture
def open_recipe(recipe_path):
    return lambda *settings: load_recipe(recipe_path, settings)


@pytest.fixture
def policy(store, publish):
    sft = publish(store)
    config = {"ppo": {"lora": {"rank": 4, "alpha": 8, "dropout": 0.1, "merge": True}}}
    return publish(store, "ppo", parents=[{"ref": sft.ref, "content_id": sft.content_id}], config=config)


def test_it_is_found_by_a_ref_with_a_version_and_only_where_it_is_named(store, policy, open_recipe):
    assert find_start(open_recipe(), store.root, verify=True) is None
    with pytest.raises(ConfigError, match=r"ppo\.start"):
        open_recipe("ppo.start=ppo")  # the newest would be another one after each run
    same = open_recipe("ppo.start=ppo@v1", "ppo.lora={rank: 4, alpha: 8}")
    assert find_start(same, store.root, verify=True).ref == "ppo@v1"


def test_what_is_not_there_or_has_other_adapters_is_refused(store, policy, open_recipe):
    with pytest.raises(StoreError, match=r"--set: ppo\.start: ") as refused:
        find_start(open_recipe("ppo.start=ppo@v7"), store.root, verify=True)
    assert refused.value.exit_code == EXIT_MISSING
    for lora in ("null", "{rank: 8, alpha: 8}"):
        with pytest.raises(
            ConfigError, match=r"--set: ppo\.start: found ppo@v1, made with ppo\.lora = .*'rank': 4.*, needed one made with"
        ):
            find_start(open_recipe("ppo.start=ppo@v1", f"ppo.lora={lora}"), store.root, verify=True)


def test_one_of_another_sft_model_is_refused(store, policy, publish, open_recipe):
    recipe = open_recipe("ppo.start=ppo@v1", "ppo.lora={rank: 4, alpha: 8}")
    require_same_sft(recipe, policy, store.get("sft@v1"))
    other = publish(store, "sft", {"model.safetensors": b"other"})
    with pytest.raises(StoreError, match="found ppo@v1, which learnt from sft@v1; needed one of sft@v2, the reference") as refused:
        require_same_sft(recipe, policy, other)
    assert refused.value.exit_code == EXIT_VERIFICATION


def test_one_of_another_sft_model_is_refused_before_the_reward_model_trains(store, policy, publish, open_recipe):
    recipe = open_recipe("ppo.start=ppo@v1", "ppo.lora={rank: 4, alpha: 8}")
    inputs = prepare(recipe, store.root, recipe.stages)
    assert decide("rm", recipe, inputs, {"sft": store.get("sft@v1")}, store).action == "run"
    other = publish(store, "sft", {"model.safetensors": b"other"})
    with pytest.raises(StoreError, match=r"ppo\.start: found ppo@v1, which learnt from sft@v1; needed one of sft@v2"):
        decide("rm", recipe, inputs, {"sft": other}, store)
