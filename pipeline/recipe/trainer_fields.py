"""The fields of TRL's configs and their types, read from its source: importing it would take seconds and torch."""

import ast
import importlib.util
from functools import cache
from pathlib import Path

from stages.spec import StageName

# Class of each stage's trainer_args, and the classes that it inherits fields from: package -> (file, class).
_TRANSFORMERS = ("transformers", "training_args.py", "TrainingArguments")
_TRL_BASE = ("trl", "trainer/base_config.py", "_BaseConfig")
_SFT_CONFIG = (("trl", "trainer/sft_config.py", "SFTConfig"), _TRL_BASE, _TRANSFORMERS)
_SOURCES: dict[StageName, tuple[tuple[str, str, str], ...]] = {
    "pretrain": _SFT_CONFIG,
    "sft": _SFT_CONFIG,
    "rm": (("trl", "trainer/reward_config.py", "RewardConfig"), _TRL_BASE, _TRANSFORMERS),
}


def config_class(stage: StageName) -> str:
    """Name the class that takes a stage's trainer_args."""
    return _SOURCES[stage][0][2]


@cache
def trainer_fields(stage: StageName) -> dict[str, str] | None:
    """Return the fields of a stage's config class, each with its type as written; None where they cannot be read."""
    types: dict[str, str] = {}
    for package, file, class_name in _SOURCES[stage]:
        spec = importlib.util.find_spec(package)  # of a top-level package: nothing is imported
        if spec is None or spec.origin is None:
            return None
        try:
            tree = ast.parse((Path(spec.origin).parent / file).read_text(encoding="utf-8"))
        except (OSError, SyntaxError):
            return None
        classes = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == class_name]
        if not classes:
            return None
        for node in classes[0].body:
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and not node.target.id.startswith("_"):
                types.setdefault(node.target.id, ast.unparse(node.annotation))  # a class's own field goes before one that it inherits
    return types
