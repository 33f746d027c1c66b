"""What `stages.track` is given: the rows of one stage's metrics, and the tracker that they go to. Torch-free."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from stages.blocks import Closed

Tracker = Literal["tensorboard", "trackio", "mlflow", "wandb"]


class TrackingSpec(Closed):
    """What `stages.track` is given: which rows go to which tracker, for as long as a stage runs."""

    tracker: Tracker
    project: str = Field(description="Name of the recipe.")
    run: str = Field(description="Name of the run.")
    config: dict[str, str | int | float | bool | None] = Field(description="Of the stage, by dotted names; no secret is in it.")
    directory: Path = Field(description="Where trackers keep their files, each in one of its own.")
    metrics_path: Path = Field(description="Is followed; need not be there yet.")
    result_path: Path = Field(description="Has the final figures, once the stage has ended well.")
    events_path: Path = Field(description="Gets a note where the tracker fails.")
    state_path: Path = Field(description="What was sent; is kept for a resumed run.")
