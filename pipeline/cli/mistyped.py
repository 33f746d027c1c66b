"""Keys of a recipe that were typed otherwise than `--set KEY=VALUE`: `--seed 3`, `--ppo.kl-coef=0.1`, `--set seed 3`."""

from collections.abc import Sequence
from typing import Any

from data.secrets import redact


def tell_mistyped(params: Sequence[Any], words: Sequence[str]) -> str:
    """Say how the first such key is given; nothing where there is none.

    Args:
        params: Those of the command, which has the option `--set`.
        words: What was typed behind its name.
    """
    takes_value = {option: not getattr(param, "is_flag", False) for param in params for option in (*param.opts, *param.secondary_opts)}
    place = 0
    while place < len(words) and words[place] != "--":
        option, equals, value = words[place].partition("=")
        behind = [word for word in words[place + 1 : place + 3] if not word.startswith("-")]
        if option == "--set" and not equals and len(behind) == 2 and "=" not in behind[0]:
            if keys := _find_keys(behind[0]):
                return f"--set: found the key {behind[0]} and apart from it a value; write: {_write(keys, behind[1])}"
        elif option.startswith("--") and option not in takes_value and (keys := _find_keys(option)):
            return f"No such option: {option}. Keys of the recipe are given by: {_write(keys, value or next(iter(behind), 'VALUE'))}"
        place += 1 + (not equals and takes_value.get(option, False))
    return ""


def _write(keys: Sequence[str], value: str) -> str:
    shown = redact(value) if value.isprintable() else "VALUE"
    return ", or ".join(f"--set {key}={shown}" for key in keys)


def _find_keys(name: str) -> list[str]:
    """Find the keys of a recipe that a name may mean: the whole key, or the last part of one."""
    from pipeline.recipe.explain import declared_keys

    parts = tuple(name.lstrip("-").lower().replace("-", "_").split("."))
    found = [keys for keys in declared_keys() if keys[-len(parts) :] == parts]
    least = min(map(len, found), default=0)  # `seed` is the recipe's own, not that of a block in it
    return [".".join(keys) for keys in found if len(keys) == least]
