"""`python -P -m stages.ppo SPEC.json`."""

from stages.ppo.stage import main
from stages.process.runtime import run_stage

if __name__ == "__main__":
    run_stage("ppo", main)
