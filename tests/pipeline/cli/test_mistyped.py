"""Keys of a recipe that are typed as options are told as what they are."""

import typer

from pipeline.cli import app
from pipeline.cli.mistyped import tell_mistyped


def tell(*words: str) -> str:
    return tell_mistyped(typer.main.get_command(app).commands["run"].params, words)  # pyright: ignore[reportAttributeAccessIssue]


def test_a_key_that_is_typed_as_an_option_is_told_with_its_block_and_its_value():
    assert tell("mine.yaml", "--seed", "3") == "No such option: --seed. Keys of the recipe are given by: --set seed=3"
    assert tell("--ppo.kl-coef=0.1").endswith("given by: --set ppo.kl_coef=0.1")
    assert tell("--device", "cuda", "mine.yaml").endswith("given by: --set hardware.device=cuda")
    assert tell("--kl-coef", "--force").endswith("given by: --set ppo.kl_coef=VALUE")
    all_of_them = ", or ".join(f"--set {stage}.learning_rate=1e-4" for stage in ("pretrain", "sft", "rm", "ppo"))
    assert tell("--learning-rate", "1e-4").endswith(f"given by: {all_of_them}")


def test_a_value_apart_from_its_key_is_told():
    assert tell("--set", "ppo.kl_coef", "0.1") == "--set: found the key ppo.kl_coef and apart from it a value; write: --set ppo.kl_coef=0.1"


def test_what_is_right_unknown_or_a_value_is_left_to_others():
    for words in (
        ("mine.yaml", "--set", "seed=3", "--set=seed=4", "--store", "seed", "--force"),
        ("--set", "--seed"),  # a value, however it looks
        ("--set", "seed"),
        ("--", "--seed", "3"),
        ("--nope", "3"),
    ):
        assert tell(*words) == ""


def test_neither_secrets_nor_escapes_are_repeated():
    assert "hf_" not in tell("--revision", "hf_" + "a1B2" * 9)
    assert tell("--seed=\x1b[2J").endswith("--set seed=VALUE")
