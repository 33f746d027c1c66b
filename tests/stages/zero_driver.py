"""Run by test_zero.py on each rank: the stages of some specs, one after the other in one process, to pay for the imports once.

zero_driver.py STAGE SPEC.json...        a spec in a directory named `.stopped` is left at its first checkpoint, then gone on with

At DeepSpeed's stage 3 each rank leaves `resident-RANK.json` beside the spec: how many elements the models' weights have, the largest of
them too, and how many the rank held at most while it loaded, until the last of DeepSpeed's engines was made.
"""

import gc
import importlib
import json
import sys
import weakref
from pathlib import Path

import torch
from accelerate.state import AcceleratorState
from accelerate.utils import set_seed
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from stages.ppo import guards
from stages.process.context import StageContext
from stages.process.distributed import start_deepspeed
from stages.process.runtime import leave_result, start_process
from stages.spec import read_spec
from stages.trl import training


class Killed(BaseException):
    """Stands for the end of the process: nothing may catch it."""


class Resident:
    """Counts the elements of weights that this rank holds, whenever some are gathered and when an engine is made."""

    def __init__(self):
        self.path = self.parameters = None

    def _watch(self):
        import deepspeed

        def note(module, name, parameter):
            if parameter is not None:
                self.parameters[id(parameter)] = weakref.ref(parameter)

        def count_after(gather):
            def enter(context):
                gather(context)
                self.count()

            return enter

        def count_before(initialize):
            def make_engine(*arguments, **keywords):
                self.write()
                return initialize(*arguments, **keywords)

            return make_engine

        def spoil_before(check):
            def check_all(model, rank, **which):
                spoil_padding(model, rank)
                return check(model, rank, **which)

            return check_all

        for module in (guards, training):
            module.count_broken_weights = spoil_before(module.count_broken_weights)
        torch.nn.modules.module.register_module_parameter_registration_hook(note)
        deepspeed.zero.GatheredParameters.__enter__ = count_after(deepspeed.zero.GatheredParameters.__enter__)
        deepspeed.initialize = count_before(deepspeed.initialize)

    def begin(self, path):
        if self.parameters is None:
            self._watch()
        gc.collect()  # the run before
        self.path, self.peak, self.parameters = path, 0, {}

    def end(self):
        self.path = None

    def count(self):
        alive = [parameter for reference in self.parameters.values() if (parameter := reference()) is not None and not parameter.is_meta]
        pieces = [getattr(parameter, "ds_tensor", None) for parameter in alive]
        held = sum(tensor.numel() for tensor in (*alive, *pieces) if tensor is not None)
        self.peak = max(self.peak, held)
        return [getattr(parameter, "ds_numel", parameter.numel()) for parameter in alive]

    def write(self):
        if self.path is None:  # a run whose weights are whole: nobody asks
            return
        gc.collect()  # what loading has thrown away
        sizes = self.count()
        self.path.write_text(json.dumps({"elements": sum(sizes), "largest": max(sizes), "held": self.peak}))


def spoil_padding(model, rank):
    """Fill what lies behind the last number of a weight in pieces, which DeepSpeed leaves as the memory was: nobody may look there."""
    for weight in model.parameters():
        if (piece := getattr(weight, "ds_tensor", None)) is not None and piece.is_floating_point():
            piece[max(0, weight.ds_numel - rank * piece.numel()) :] = torch.nan


RESIDENT = Resident()


def run(stage, path):
    # A process of its own would begin without what the libraries keep of the run before.
    AcceleratorState._reset_state(reset_partial_state=True)
    unset_hf_deepspeed_config()
    spec = read_spec(path)
    for directory in (spec.output_dir, spec.checkpoint_dir):
        directory.mkdir(parents=True, exist_ok=True)
    context = StageContext(spec)
    start_process(context)
    set_seed(spec.seed)
    if spec.hardware.engine == "deepspeed":
        start_deepspeed(gpu=False)  # the processes are joined already, by a run without it
        if spec.hardware.zero_stage == 3:
            RESIDENT.begin(path.with_name(f"resident-{context.rank}.json"))
    stops = path.parent.name.endswith(".stopped") and not list(spec.checkpoint_dir.glob("checkpoint-*"))
    if stops:
        tell = context.event

        def tell_and_stop(name, **fields):
            tell(name, **fields)
            if name == "checkpoint":
                raise Killed

        context.event = tell_and_stop
    try:
        result = importlib.import_module("stages.ppo.stage" if stage == "ppo" else f"stages.{stage}").main(context)
    except Killed:
        return run(stage, path)
    finally:
        RESIDENT.end()
    if context.is_main:
        leave_result(context, result)
    return None


if __name__ == "__main__":
    for argument in sys.argv[2:]:
        run(sys.argv[1], Path(argument))
        print(f"done {argument}", flush=True)
