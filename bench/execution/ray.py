"""Runs cells on a Ray cluster: several at a time, but never two on the same cores or GPU.

A cell is a task on a chosen node, which asks for one GPU and its share of the cores, or for all cores. There it runs
as it does at home, in a process of its own (`bench.execution.ray_node`). The driver writes the records.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from bench.execution.base import NO_LIMITS, Emit, Events, Job, Limits, Outcome
from bench.execution.process import ProcessExecutor
from bench.execution.ray_cluster import Cluster
from bench.execution.ray_node import MakeExecutor
from bench.execution.ray_schedule import Schedule


class RayExecutor:
    """See the module."""

    has_limits = True
    runs_here = False

    def __init__(self, address: str | None = None, make: MakeExecutor = ProcessExecutor) -> None:
        """Connect to the cluster at `address`, or start one on this machine.

        `make` makes the executor that runs cells on a node. Raises as `Cluster`.
        """
        self.cluster, self._make, self._here = Cluster(address), make, make()

    def prepare(self) -> None:
        """Nothing to do here: each node loads the libraries before its first cell."""

    def call(self, function: str, *arguments: Any, limits: Limits = NO_LIMITS, on_event: Emit | None = None) -> Outcome:
        """On this machine, the driver's: names are the same everywhere, and weights are sent from here."""
        return self._here.call(function, *arguments, limits=limits, on_event=on_event)

    def devices(self) -> dict[str, str]:
        """See `Cluster.devices`."""
        return self.cluster.devices()

    def run_jobs(self, jobs: Iterable[Job], events: Events, stop: Callable[[], bool]) -> None:
        """Each on a free node of the kind that it needs. A job whose node is lost starts again, a few times."""
        schedule = Schedule(self.cluster, self._make, jobs, events, stop)
        try:
            while schedule.step():
                pass
        finally:
            schedule.cancel()
