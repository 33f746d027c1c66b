"""Whose answers are compared: base model, SFT, PPO and the models that PPO kept of its iterations."""

import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from stages.evaluate.results import Way
from stages.evaluate_settings import EvaluateSettings
from stages.spec import KEPT_DIR, METRICS_FILE, RESULT_FILE, StageSpec


@dataclass(frozen=True)
class Subject:
    """A model that answers, in one way."""

    model: str
    way: Way
    samples: int  # of each prompt
    path: str
    iteration: int | None = None

    @property
    def name(self) -> str:
        """What its files are called, and what it is called on a screen."""
        return f"{self.model}-{self.way}"


def list_subjects(spec: StageSpec, settings: EvaluateSettings) -> tuple[list[Subject], list[str]]:
    """List who answers, model by model, the SFT model last: it is also the reference of the others.

    Returns:
        (subjects, what cannot be told of them).
    """
    ppo = Path(spec.models["ppo"])
    iteration = _read_iteration(ppo.parent)
    kept = {int(path.name): path for path in (ppo.parent / KEPT_DIR).glob("[0-9]*") if path.name.isdecimal()}
    kept.pop(iteration if iteration is not None else -1, None)  # it is what is published
    few, many = settings.policy_samples, max(settings.samples, settings.policy_samples)
    subjects = [
        Subject("base", "sampled", few, spec.models["base"]),
        Subject("base", "greedy", 1, spec.models["base"]),
        *(Subject(f"ppo-{number}", "sampled", few, str(path), number) for number, path in sorted(kept.items())),
        Subject("ppo", "sampled", few, spec.models["ppo"], iteration),
        Subject("ppo", "greedy", 1, spec.models["ppo"], iteration),
        Subject("sft", "sampled", many, spec.models["sft"]),
        Subject("sft", "greedy", 1, spec.models["sft"]),
    ]
    missing: list[str] = []
    if not kept:
        missing.append("how score and judge moved during PPO: it kept no models of its iterations; set ppo.keep_every")
    if iteration is None:
        missing.append(f"which iteration of PPO was published: {ppo.parent} does not say; run the ppo stage, or import its whole artifact")
    return subjects, missing


def _read_iteration(artifact: Path) -> int | None:
    """Read which iteration PPO published; of artifacts that do not say, the last."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        return int(json.loads((artifact / RESULT_FILE).read_text(encoding="utf-8"))["metrics"]["published/iteration"])
    with suppress(OSError, ValueError, KeyError, TypeError, IndexError):
        return int(json.loads((artifact / METRICS_FILE).read_text(encoding="utf-8").splitlines()[-1])["step"])
    return None
