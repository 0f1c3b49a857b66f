"""Runs cells on a Ray cluster: several at a time, but never two on the same cores or GPU.

A cell is a Ray task on a chosen node. It requests one GPU and its share of the cores, or all cores. On the node it runs
in a process of its own, as it does on a single machine (`bench.execution.ray_node`). The driver writes the records.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from bench.execution.base import NO_LIMITS, Emit, Events, Job, Limits, Outcome, PairEvents, PairJob
from bench.execution.process import ProcessExecutor
from bench.execution.ray_cluster import Cluster
from bench.execution.ray_node import MakeExecutor
from bench.execution.ray_schedule import CellWork, PairWork, Schedule, Work


class RayExecutor:
    """See the module."""

    has_limits = True
    runs_here = False
    takes_turns = True

    def __init__(self, address: str | None = None, make: MakeExecutor = ProcessExecutor) -> None:
        """Connect to the cluster at `address`, or start one on this machine.

        `make` makes the executor that runs cells on a node. Raises what `Cluster` raises.
        """
        self.cluster, self._make, self._local = Cluster(address), make, make()

    def prepare(self) -> None:
        """Do nothing: each node loads the libraries before its first cell."""

    def call(self, function: str, *arguments: Any, limits: Limits = NO_LIMITS, on_event: Emit | None = None) -> Outcome:
        """Run the function on the driver: names of backbones are the same everywhere, and it sends the weights."""
        return self._local.call(function, *arguments, limits=limits, on_event=on_event)

    def devices(self) -> dict[str, str]:
        """See `Cluster.devices`."""
        return self.cluster.devices()

    def run_jobs(self, jobs: Iterable[Job], events: Events, stop: Callable[[], bool]) -> None:
        """Run each job on a free node of the kind that it needs. A job whose node is lost is retried a few times."""
        self._run((CellWork(job, events) for job in jobs), events.warned, stop)

    def run_pairs(self, jobs: Iterable[PairJob], events: PairEvents, stop: Callable[[], bool]) -> None:
        """Time each pair on a free node, as `run_jobs` runs a cell: all its processes are on that node."""
        self._run((PairWork(job, events) for job in jobs), events.warned, stop)

    def _run(self, jobs: Iterable[Work], warned: Callable[[str], None], stop: Callable[[], bool]) -> None:
        schedule = Schedule(self.cluster, self._make, jobs, warned, stop)
        try:
            while schedule.step():
                pass
        finally:
            schedule.cancel()
