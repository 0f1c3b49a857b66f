"""Prints what was found in a data set before anything trains, for `bench data`."""

from __future__ import annotations

from collections.abc import Iterator

from bench.analysis.words import in_words
from tl.survey import Range, Repeats, Survey
from tl.tasks import TASKS
from tl.text import visible, visible_json

MOST_CLASSES = 30
"""Classes that the table has a row for; the JSON has all."""


def print_survey(found: Survey, format: str) -> None:
    """Print a survey as text or as JSON."""
    if format == "json":
        print(visible_json(found.model_dump_json(indent=1)))
        return
    for line in lines(found):
        print(visible(line))


def lines(found: Survey) -> Iterator[str]:
    """The lines of the text: a table of the classes, a line for each kind of finding, and the sentences."""
    several = len(found.classes)
    yield f"{found.name}: {found.images} images, {several} classes"
    if found.origin:
        yield f"split: {found.origin}"
    yield ""
    yield from _table(found)
    yield ""
    if found.sizes:
        yield f"width × height: {_sizes(found.sizes.width)} × {_sizes(found.sizes.height)} pixels"
    if found.baseline:
        rate = f"{found.baseline.rate:.1%} of the validation images"
        yield f"baseline: always answering {found.baseline.name!r} is right for {rate}"
    yield f"imbalance: the largest class has {found.imbalance:.1f} times the training images of the smallest"
    yield f"duplicates within splits: {_repeats(found.duplicates_within_splits)}"
    yield f"duplicates across splits: {_repeats(found.duplicates_across_splits)}"
    # The warning on images in two classes counts each image once, whatever its number of files.
    every = " (every file of such an image counts)" if found.conflicting_labels.count else ""
    yield f"conflicting labels: {_repeats(found.conflicting_labels)}{every}"
    yield f"unreadable: {found.unreadable.count or 'none'}"
    for damaged in found.unreadable.first:
        yield f"  {damaged.file!r}: {damaged.reason}"
    if found.unreadable.count > len(found.unreadable.first):
        yield f"  and {found.unreadable.count - len(found.unreadable.first)} more"
    yield f"left out: {sum(each.count for each in found.left_out) or 'none'}"
    for said in found.notes:
        yield f"note: {in_words(said, TASKS[found.task])}"
    for said in found.warnings:
        yield f"WARNING: {in_words(said, TASKS[found.task])}"


def _table(found: Survey) -> Iterator[str]:
    names = list(found.classes)[:MOST_CLASSES]
    rows = [["class", *found.splits]]
    rows += [[visible(name), *map(str, found.classes[name].values())] for name in names]
    rows += [["all", *map(str, found.splits.values())]]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        yield "  ".join([row[0].ljust(widths[0]), *cells])
        if row is rows[-2] and len(found.classes) > len(names):
            yield f"… and {len(found.classes) - len(names)} more classes"


def _sizes(pixels: Range) -> str:
    return f"{pixels.min} to {pixels.max} (median {pixels.median:g})"


def _repeats(found: Repeats) -> str:
    if not found.count:
        return "none"
    such = "; ".join(f"{pair.file!r} {'=' if not pair.distance else '~'} {pair.other!r}" for pair in found.examples[:1])
    return f"{found.identical} identical, {found.near} nearly identical, such as {such}"
