"""`sft.publish: best`: at each evaluation on held-out demonstrations the model may be the best so far; it is held, and gone back to.

evaluation -> its loss, or what the judge says of sampled answers -> Candidate -> best/<step>/ beside the checkpoints (stages.process.best)
"""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback

from stages.models.sizes import measure_trained
from stages.process import best
from stages.process.best import Candidate
from stages.process.context import StageContext
from stages.process.distributed import decide_in_main
from stages.process.need import KEPT
from stages.spec import BEST_DIR, checkpoint_name

_WEIGHTS_FILE, _STATE_FILE = "trained.safetensors", "best.json"  # of what is held, and in each checkpoint
FindValue = Callable[[Any, float], float]  # (model, held-out loss) -> what is chosen by, the higher the better; NaN: it cannot be


class BestKeeper(TrainerCallback):
    """Holds the best model so far. To be called before a checkpoint is marked complete, which names it."""

    def __init__(self, context: StageContext, find_value: FindValue) -> None:
        self.best: Candidate | None = None
        self._context, self._find_value = context, find_value

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        directory, step = self._context.spec.checkpoint_dir, state.global_step

        def resume() -> Candidate | None:
            best.drop_after(directory / BEST_DIR, step)
            found = directory / checkpoint_name(step) / _STATE_FILE
            named = best.from_state(json.loads(found.read_text(encoding="utf-8"))) if step and found.is_file() else None
            best.require_held(self._context, named)
            return named

        self.best = decide_in_main(self._context, resume)

    def on_evaluate(
        self, args: Any, state: Any, control: Any, model: Any = None, metrics: dict[str, float] | None = None, **_: Any
    ) -> None:
        loss = (metrics or {}).get("eval_loss", math.nan)
        before = self.best
        self.best = best.choose(before, self.consider(state.global_step, model, loss))
        if self.best != before:
            best.hold(self._context, state.global_step, lambda draft: self._write(model, draft))

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.is_world_process_zero:
            path = Path(args.output_dir) / checkpoint_name(state.global_step) / _STATE_FILE
            path.write_text(json.dumps(best.to_state(self.best)), encoding="utf-8")

    def consider(self, step: int, model: Any, loss: float) -> Candidate | None:
        """Find what the model of a step is chosen by; every rank calls it, and goes by what the main one found."""
        found = self._find_value(model, loss)
        value = decide_in_main(self._context, lambda: found)
        return Candidate(step, value) if math.isfinite(value) else None

    def go_back(self, model: Any, last: Candidate | None, last_step: int) -> int:
        """Load the best into the model, unless that is the last; every rank calls it.

        Args:
            model: After training, without what wraps it.
            last: What the last one is chosen by.
            last_step: Of training.

        Returns:
            The step whose model is published.
        """
        chosen = best.choose(self.best, last)
        if chosen is None or chosen.step == last_step:
            return last_step
        held = load_file(best.place_held(self._context, chosen) / _WEIGHTS_FILE)
        with torch.no_grad():
            for name, parameter in _list_trained(model).items():
                parameter.copy_(held[name])
        return chosen.step

    def measure(self, model: Any) -> int:
        """Say how many bytes are held at most beside what is."""
        return best.count_room(self._context.spec.checkpoint_dir, KEPT + 1) * measure_trained(model, 1)

    def _write(self, model: Any, draft: Path) -> None:
        if self._context.is_main:
            trained = {name: parameter.detach().cpu().contiguous().clone() for name, parameter in _list_trained(model).items()}
            save_file(trained, draft / _WEIGHTS_FILE)


def _list_trained(model: Any) -> dict[str, Any]:
    """List what learns, by its name in the model without what wraps it."""
    inner = getattr(model, "module", model)
    return {name: parameter for name, parameter in inner.named_parameters() if parameter.requires_grad}
