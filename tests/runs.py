"""Writes runs of made-up records to disk."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from zlib import crc32

from bench.analysis.groups import make_groups
from bench.analysis.picking import cards, chosen
from bench.devtools.made_up import PRETRAINED, RANDOM, TRUTH, pair_record, record, this_environment
from bench.store.pairs import PairRecord
from bench.store.picks import PickRecord
from bench.store.records import Cell, DatasetIdentity, Invocation, Manifest, PlannedPair, Record
from bench.store.runs import RunFolder
from tl.config import TrainConfig
from tl.weights import Weights

__all__ = [
    "PRETRAINED",
    "RANDOM",
    "TRUTH",
    "judged",
    "of_images",
    "pair_record",
    "record",
    "says_nothing_of_accuracies",
    "shown_on",
    "untrained",
    "write_pick",
    "write_run",
]


def untrained(backbone: str, *, right: int = 95, weights: Weights = PRETRAINED) -> Record:
    """A record of regime `zeroshot`, which has only a validation pass of 2 seconds."""
    return record(backbone, "zeroshot", right=right, frozen=True, weights=weights).replace(wall_seconds=4.0)


def of_images(one: Record, digest: str) -> Record:
    """The record as one of other images; `write_run` writes a run on those of its first cell."""
    cell = one.cell.replace(dataset_digest=digest)
    return one.replace(cell=cell, cell_id=cell.id)


def write_pick(run: RunFolder, one: Record, priority: str = "accuracy") -> None:
    """Let a run have picked the combination of a record, as if no other had been there."""
    groups = make_groups([(run.name, one)], {run.name: run.manifest().dataset.val_labels})
    (card,) = [card for card in cards(groups) if card.priority == priority]
    run.write_pick(
        PickRecord(
            command="bench pick",
            ended=datetime.now(UTC),
            priority=priority,
            cards={priority: chosen(card)},
            candidates=(),
            val_images=len(groups[0].truth),
            first_answer_seconds=30.0,
            seconds=500.0,
        )
    )


def judged(one: Record, right: int, truth: Sequence[int]) -> Record:
    """The record with other validation images, of which the first `right` are classified right after its only epoch."""
    assert one.result is not None
    labels = [label if place < right else 1 - label for place, label in enumerate(truth)]
    said = one.result.last.replace(labels=labels, confidences=[0.9] * len(truth))
    rows = tuple(row.replace(val_accuracy=right / len(truth)) for row in one.result.epochs)
    return one.replace(result=one.result.replace(epochs=rows, best=said.replace(epoch=0), last=said))


def write_run(
    folder: Path,
    records: list[Record],
    *,
    classes: tuple[str, ...] = (),
    fallback: str = "",
    missing: Sequence[Cell] = (),
    truth: tuple[int, ...] = TRUTH,
    pairs: Sequence[PairRecord] = (),
    missing_pairs: Sequence[PlannedPair] = (),
) -> RunFolder:
    """Write a run with these records and pairs.

    The cells in `missing` and pairs in `missing_pairs` were planned and have no record; `truth` has the labels of the
    validation images, and `classes` are those of the records.
    """
    run = RunFolder(folder)
    cells = {record.cell_id: record.cell for record in records} | {cell.id: cell for cell in missing}
    now = datetime(2026, 1, 1, tzinfo=UTC)
    run.write_manifest(
        Manifest(
            name=folder.name,
            protocol=(records[0].cell.config if records else TrainConfig(backbone="x")).model_dump(),
            dataset=DatasetIdentity(
                name="own",
                digest=next(iter(cells.values())).dataset_digest,
                classes=classes or next((one.result.classes for one in records if one.result), ("ants", "bees")),
                train_images=244,
                val_files=tuple(f"{i}.jpg" for i in range(len(truth))),
                val_labels=truth,
                fallback=fallback,
            ),
            weights={},
            cells=cells,
            pairs={one.pair_id: one.pair for one in pairs} | {one.id: one for one in missing_pairs},
            invocations=(
                Invocation(
                    command="python -m bench run",
                    started=now,
                    grid={},
                    environment=this_environment(),
                    cell_ids=tuple(cells),
                ),
            ),
        )
    )
    # As in reality, no two cells start at the same time: a record that is the same in two runs is a copy.
    apart = timedelta(microseconds=crc32(str(folder.resolve()).encode()) % 1_000_000)
    for one in records:
        run.write_record(one.replace(started=one.started + apart))
    for pair in pairs:
        run.write_pair(pair.replace(started=pair.started + apart))
    return run


def shown_on(page: str) -> str:
    """The body of a page, up to its first script."""
    return page[page.index("<body") :].split("<script")[0]


def says_nothing_of_accuracies(text: str) -> None:
    """Assert that a report is in the words of another score; file names and fields of records keep theirs."""
    words = text.replace("accuracy-time", "").replace("accuracy-curve", "").replace("val_accuracy", "")
    for not_said in ("accuracy", "Accuracy", "accuracies", "accurate", "largest class", "predicted right"):
        assert not_said not in words, words[max(0, words.index(not_said) - 100) :][:250]
