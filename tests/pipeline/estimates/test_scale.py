"""`rlhf plan --cost --scale` of a recipe that not every number of GPUs can run."""

from pytest import mark

from pipeline.cli.recipes import plan_command
from pipeline.estimates.scale import GPU_COUNTS, find_refused, tell_refused
from pipeline.recipe.load import find_recipe, load_recipe


def tell(recipe, *overrides):
    read = load_recipe(find_recipe(str(recipe)), overrides, has_files=False)
    refused = find_refused(read, read.stages)
    return [gpus for gpus in GPU_COUNTS if gpus not in refused], list(tell_refused(refused))


def test_numbers_of_gpus_that_a_recipe_cannot_be_run_on_are_told_with_the_key_that_refuses_them(recipe):
    assert tell(recipe) == ([*GPU_COUNTS], [])
    kept, (line,) = tell(recipe, "sft.batch_size=24")  # 24 of 32 GPUs and more have work
    assert kept == [8, 32, 64, 128, 256, 512, 1024]
    assert line.startswith("16 GPUs left out: sft.batch_size: found 24, needed a multiple of") and "= 16; choose" in line
    kept, (line,) = tell(recipe, "rm.batch_size=12", "rm.micro_batch_size=4")
    assert kept == [] and line.startswith("8 GPUs and more left out: rm.batch_size: found 12, needed a multiple of")
    assert tell(recipe, "sft.batch_size=4", "sft.micro_batch_size=4")[0] == [*GPU_COUNTS]  # four of eight have work
    mixed = tell(recipe, "ppo.rollout_batch_size=64", "ppo.minibatch_size=64", "ppo.ptx_coef=0.1", "ppo.ptx_batch_size=16")
    assert mixed == ([*GPU_COUNTS], [])  # 16 of more have work: no batch of demonstrations has more records
    kept, (line,) = tell(recipe, "ppo.ptx_coef=0.1", "ppo.ptx_batch_size=12")
    assert kept == [] and "ppo.ptx_batch_size: found 12" in line


def test_an_engine_for_one_process_is_told_where_more_are_looked_at(recipe):
    kept, (line,) = tell(recipe, "hardware.engine=none")
    assert kept == [] and line.startswith("8 GPUs and more left out: hardware.engine: found none with 8 processes")


@mark.slow
@mark.usefixtures("warm")
def test_the_rest_of_a_plan_is_printed_where_some_numbers_of_gpus_do_not_divide_a_batch(recipe, tmp_path, capsys):
    def plan(*overrides):
        options = {
            "only": "sft",
            "cost": True,
            "gpu": "h100",
            "store": tmp_path / "store",
            "scale": True,
            "records": ["demonstrations=1000"],
        }
        plan_command(str(recipe), overrides=["sft.micro_batch_size=4", *overrides], **options)
        return capsys.readouterr().out.splitlines()

    some = plan("sft.batch_size=24")
    assert any(line.startswith("sft ") for line in some)
    assert [line.split()[0] for line in some[some.index("on more GPUs, eight to a machine:") + 2 :]][:3] == ["8", "32", "64"]
    assert sum("left out: sft.batch_size" in line for line in some) == 1
    none = plan("sft.batch_size=12")
    assert any(line.startswith("sft ") for line in none)
    assert none[-1].startswith("8 GPUs and more left out: sft.batch_size: found 12")
