"""Run by test_step_end.py on each rank: SFT, in which a stop signal reaches this rank at a step of its own.

stop_driver.py SPEC.json STEP...        the step of each rank; beside the spec it leaves `rank-<rank>.json`: exit code, files it hashed
"""

import json
import os
import signal
import sys
from pathlib import Path

from stages import sft
from stages.process import checkpoint, runtime
from stages.process.context import StageContext

HASHED = []


def main(spec, *steps):
    step_of_signal, found = int(steps[int(os.environ["RANK"])]), Path(spec).with_name(f"rank-{os.environ['RANK']}.json")
    progress, settle, leave = StageContext.progress, checkpoint._settle_files, runtime._exit

    def tell_and_signal(context, phase, step, total, metrics=None):
        progress(context, phase, step, total, metrics)
        if phase == "train" and step == step_of_signal:
            os.kill(os.getpid(), signal.SIGTERM)

    def settle_and_note(path, names):
        HASHED.append(sorted(names))
        return settle(path, names)

    def note_and_leave(code):
        found.write_text(json.dumps({"code": code, "hashed": HASHED}))
        leave(code)

    StageContext.progress, checkpoint._settle_files, runtime._exit = tell_and_signal, settle_and_note, note_and_leave
    sys.argv = ["sft", spec]
    runtime.run_stage("sft", sft.main)


if __name__ == "__main__":
    main(*sys.argv[1:])
