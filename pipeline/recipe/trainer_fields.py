"""Names of the fields of TRL's configs, read from its source: importing it would take seconds and torch."""

import ast
import importlib.util
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


def trainer_fields(stage: StageName) -> set[str] | None:
    """Return the names that a stage's `trainer_args` may have; None where the installed versions are laid out otherwise."""
    names: set[str] = set()
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
        fields = [node.target for node in classes[0].body if isinstance(node, ast.AnnAssign)]
        names |= {field.id for field in fields if isinstance(field, ast.Name) and not field.id.startswith("_")}
    return names
