"""A method of a grid that is a search: what is asked for, and the network that it finds."""

from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from lilliput.auto.compress import epochs_for
from lilliput.auto.search.budget import Limits
from lilliput.auto.search.find import Finder, Wish
from lilliput.core.errors import RecipeError
from lilliput.core.target import Target, parse_bytes, parse_seconds
from lilliput.core.task import Task
from lilliput.pipeline.run import Outcome

KEY = "search"


@dataclass(frozen=True, kw_only=True)
class Searched:
    """`{search: {max_bytes: $bytes, trials: 20}}`: as `lilliput compress` with these options, in one thread."""

    max_bytes: int | str | None = None
    max_drop: float | str | None = None
    trials: int | None = None
    time: str | None = None

    def __post_init__(self) -> None:
        if self.max_bytes is None and self.max_drop is None:
            raise RecipeError(KEY, "neither max_bytes nor max_drop", "say what the network may take, such as 4kB")
        if self.trials is None and self.time is None:
            raise RecipeError(KEY, "neither trials nor time", "say how long, such as trials: 20, or time: 1min")
        if self.trials is not None and self.trials < 1:
            raise RecipeError(f"{KEY} trials", f"{self.trials}", "give a whole number from 1 up")
        if self.max_bytes is not None:
            parse_bytes(self.max_bytes)
        if self.time is not None:
            parse_seconds(self.time)

    def to_data(self, seed: int) -> dict[str, Any]:
        return {KEY: asdict(self), "seed": seed}


def find(model: nn.Module, task: Task, data: dict[str, Any], epochs: int | None, batch_size: int) -> Outcome:
    """The best of a search by its plain data; `epochs` of a full training (None: as `compress` has them)."""
    asked = Searched(**data[KEY])
    wish = Wish(
        limits=Limits.of(task.score, max_drop=asked.max_drop, max_bytes=asked.max_bytes, max_latency=None),
        time=asked.time,
        trials=asked.trials,
        epochs=epochs or epochs_for(task),
        seed=data["seed"],
        threads=1,
    )
    return Finder(model=model, task=task, target=Target("onnx-x86"), wish=wish, batch_size=batch_size).find().outcome
