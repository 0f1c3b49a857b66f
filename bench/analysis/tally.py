"""Counts how far cells and process pairs are, in the one way that every line and page shows."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace

from bench.analysis.words import counted
from bench.store.pairs import PairRecord
from bench.store.records import Record
from bench.store.runs import RunFolder


@dataclass(frozen=True, kw_only=True)
class Tally:
    """How many planned cells or process pairs are done, skipped, failed and left; `str(tally)` is the text for users.

    `failed` are all that were started and have no result, whatever the reason.
    """

    done: int = 0
    skipped: int = 0
    failed: int = 0
    left: int = 0
    noun: str = "cell"

    @property
    def planned(self) -> int:
        """All of them."""
        return self.ended + self.left

    @property
    def ended(self) -> int:
        """Those with a record."""
        return self.done + self.skipped + self.failed

    @property
    def _rest(self) -> list[str]:
        counts = {"skipped": self.skipped, "failed": self.failed}
        return [f"{count} {word}" for word, count in counts.items() if count]

    @property
    def short(self) -> str:
        """How many have ended, for a line that moves, such as `3/8 cells, 1 failed`."""
        return ", ".join([f"{self.ended}/{self.planned} {self.noun}s", *self._rest])

    def __str__(self) -> str:
        planned = counted(self.planned, self.noun)
        first = planned if self.done == self.planned else f"{self.done} of {planned}"
        left = [f"{self.left} left"] if self.left else []
        return ", ".join([f"{first} done", *self._rest, *left])

    def after(self, status: str) -> Tally:
        """The tally after one of those that are left has ended."""
        word = status if status in ("done", "skipped") else "failed"
        return replace(self, left=self.left - 1, **{word: getattr(self, word) + 1})


def tally(statuses: Iterable[str], left: int = 0, noun: str = "cell") -> Tally:
    """Count the statuses of records; `left` are planned and have none."""
    ended = list(statuses)
    count = Tally(left=left + len(ended), noun=noun)
    for status in ended:
        count = count.after(status)
    return count


def tally_of(
    planned: Collection[str], records: Mapping[str, Record | PairRecord], noun: str = "cell", *, picked: bool = False
) -> Tally:
    """Count the cells or pairs with these ids, by the records that there are.

    Of a run of `bench pick` none is left: it plans more cells than it has time for, and says so of its candidates.
    """
    statuses = [records[one].status for one in planned if one in records]
    return tally(statuses, 0 if picked else len(planned) - len(statuses), noun)


def tally_of_run(run: RunFolder) -> Tally:
    """Count the cells of a run. Those with a damaged record are left. Raises `UserError` if the run can't be read."""
    return tally_of(run.manifest().cells, run.survey()[0], picked=run.pick() is not None)
