"""Start equal `rlhf run` at once: equal_runs_driver.py COUNT OUTPUT_DIR ARGUMENTS...; prints their process ids, then how they ended.

They are forks of one process that has imported everything, so that sixteen cost little more than one, and all begin at the same moment.
"""

import json
import os
import sys
from pathlib import Path

import pipeline.report.progress
import pipeline.run  # noqa: F401  (imported before the forks)
from pipeline.cli import main

count, directory, arguments = int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]
sys.argv = ["rlhf", *arguments]
gate, opens = os.pipe()
processes = []
for number in range(count):
    process = os.fork()
    if process == 0:
        os.close(opens)
        for stream, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(directory / f"{number}.{name}", os.O_WRONLY | os.O_CREAT), stream)
        os.read(gate, 1)
        main()
    processes.append(process)
os.close(gate)
print(json.dumps(processes), flush=True)
os.close(opens)
ended = dict(os.wait() for _ in processes)
print(json.dumps([os.waitstatus_to_exitcode(ended[process]) for process in processes]))
