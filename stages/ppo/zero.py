"""DeepSpeed ZeRO for policy and critic (a learner each) and, at stage 3, for the frozen models.

ZeRO (Rajbhandari et al. 2020): stage 1 shares the optimizer's state out over the ranks, stage 2 the gradients too, stage 3 the weights.
"""

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stages.process.engine import Engine

_TAG = "zero"  # of the files in a checkpoint's directory


class ZeroLearner:
    """A learner inside a DeepSpeed engine; see `stages.ppo.learner.Learner`.

    Ranks meet in every backward pass (stages 2 and 3) and every forward (stage 3): all must make equally many.
    """

    can_drop_gradients = False

    def __init__(self, module: nn.Module, optimizer: torch.optim.Optimizer, engine: Engine) -> None:
        """Share out what the stage says.

        Args:
            module: in float32; at stage 3 in pieces, or whole on every rank.
            optimizer: over the module's trainable parameters.
            engine: of the stage.
        """
        import deepspeed

        self.module = module
        self._partitioned = engine.shares_weights
        config: Any = engine.configure_deepspeed()
        self._engine: Any
        self._engine, *_ = deepspeed.initialize(model=module, optimizer=optimizer, config=config)

    def __call__(self, *inputs: Any) -> Any:
        return self._engine(*inputs)

    @contextmanager
    def micro_step(self, *, last: bool) -> Generator[None]:
        self._engine.set_gradient_accumulation_boundary(last)
        yield

    def backward(self, loss: Tensor) -> None:
        self._engine.backward(loss, scale_wrt_gas=False)

    def step(self) -> Tensor:
        self._engine.step()
        # With an optimizer on the CPU the norm lies there too; where gradients overflowed it is a number.
        return torch.as_tensor(self._engine.get_global_grad_norm()).to(self._engine.device)

    def drop_gradients(self) -> None:
        raise NotImplementedError("gradients that are shared out over the ranks are dropped by a step only")

    def set_learning_rate(self, learning_rate: float) -> None:
        for group in self._engine.optimizer.param_groups:
            group["lr"] = learning_rate

    @contextmanager
    def whole_weights(self, *, frozen: bool = True) -> Generator[None]:
        if not self._partitioned:
            yield
            return
        from stages.trl.gathering import gather_weights

        with gather_weights(self._engine, frozen=frozen):
            yield

    def save(self, path: Path) -> None:
        self._engine.save_checkpoint(str(path), tag=_TAG, save_latest=False, exclude_frozen_parameters=True)

    def load(self, path: Path) -> None:
        found, _ = self._engine.load_checkpoint(str(path), tag=_TAG, load_module_strict=False)
        if found is None:
            raise FileNotFoundError(f"{path}: DeepSpeed found no checkpoint to load")


def partition_frozen(module: nn.Module, engine: Engine) -> Any:
    """Share the weights of a frozen module out over the ranks (stage 3); its forward is called by all ranks equally often."""
    import deepspeed

    without_training: Any = {key: value for key, value in engine.configure_deepspeed().items() if key != "gradient_clipping"}
    wrapped, *_ = deepspeed.initialize(model=module, config=without_training)
    wrapped.eval()
    return wrapped
