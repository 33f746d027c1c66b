"""What our TRL-based trainers want of a stage process, for a worker: a spec and directories that vanish with it."""

from pathlib import Path

from stages.blocks import HardwareSettings, TokenSettings
from stages.process.context import StageContext
from stages.settings import StageSettings
from stages.spec import StageName, StageSpec
from tests.bench.our_models import make_hardware


def make_context(
    stage: StageName,
    settings: StageSettings,
    tokens: TokenSettings,
    precision: str,
    directory: Path,
    models: dict[str, str] | None = None,
    hardware: HardwareSettings | None = None,
) -> StageContext:
    """Make the context of a stage that is given its records by hand, and its models too if none are named."""
    checkpoint_dir = directory / "checkpoints"
    checkpoint_dir.mkdir(exist_ok=True)  # several processes share it
    spec = StageSpec(
        stage=stage,
        settings=settings,
        tokens=tokens,
        hardware=hardware or make_hardware(precision),
        models=models or {},
        data={},
        seed=0,
        output_dir=directory / "output",
        checkpoint_dir=checkpoint_dir,
        events_path=directory / "events.jsonl",
    )
    return StageContext(spec)
