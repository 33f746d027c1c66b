"""Run by test_zero.py on each rank: the stages of some specs, one after the other in one process, to pay for the imports once.

zero_driver.py STAGE SPEC.json...        a spec in a directory named `.stopped` is left at its first checkpoint, then gone on with
"""

import importlib
import sys
from pathlib import Path

from accelerate.state import AcceleratorState
from transformers import set_seed
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from stages.runtime import StageContext, _leave_result, start_process
from stages.spec import read_spec


class Killed(BaseException):
    """Stands for the end of the process: nothing may catch it."""


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
    if context.is_main:
        _leave_result(context, result)
    return None


if __name__ == "__main__":
    for argument in sys.argv[2:]:
        run(sys.argv[1], Path(argument))
        print(f"done {argument}", flush=True)
