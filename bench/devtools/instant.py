"""The command line with cells that take no time and thousands of backbones, to measure the suite alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from bench.devtools.made_up import RANDOM, result_of
from bench.execution.attempt import RUN_CELL, run_one_by_one
from bench.execution.base import NO_LIMITS, Emit, Events, Job, Limits, Outcome, PairEvents, PairJob
from tl.errors import ConfigError
from tl.folds import evaluated_images

MOST_BACKBONES = 12_500


class InstantExecutor:
    """Returns a made-up result at once, in this process."""

    has_limits = True
    runs_here = False
    takes_turns = False

    def prepare(self) -> None:
        """Do nothing: there are no libraries to load."""

    def call(self, function: str, *arguments: Any, limits: Limits = NO_LIMITS, on_event: Emit | None = None) -> Outcome:
        """See `bench.execution.base.Executor`."""
        value: Any = None
        if function == RUN_CELL:
            cell, splits, weights = arguments[:3]
            truth = evaluated_images(cell.config, splits).labels
            value = result_of(cell.config, weights, truth=truth, classes=splits.classes, seconds=1e-5), "default"
        elif function == "bench.execution.worker:list_names":
            value = {"timm": [f"b{number:05}" for number in range(MOST_BACKBONES)], "torchvision": []}
        elif function == "bench.execution.worker:resolve_weights":
            value = dict.fromkeys(arguments[0], RANDOM)
        return Outcome(status="done", value=value, wall_seconds=0.001)

    def devices(self) -> dict[str, str]:
        """A single device, independent of the machine."""
        return {"cpu": "instant"}

    def run_jobs(self, jobs: Iterable[Job], events: Events, stop: Callable[[], bool]) -> None:
        """Run one job after the other."""
        run_one_by_one(self, jobs, events, stop)

    def run_pairs(self, jobs: Iterable[PairJob], events: PairEvents, stop: Callable[[], bool]) -> None:
        """Raise `ConfigError`: nothing here takes time."""
        raise ConfigError("made-up cells take no time, so they can't be timed")


def main() -> None:
    """Run `bench` with this executor and the arguments of this process."""
    from bench import cli
    from bench.execution import executors

    executors.EXECUTORS["process"] = lambda address: InstantExecutor()
    cli.main()


if __name__ == "__main__":
    main()
