"""`python -P -m stages.evaluate SPEC.json`."""

from stages.evaluate.stage import main
from stages.process.runtime import run_stage

if __name__ == "__main__":
    run_stage("evaluate", main)
