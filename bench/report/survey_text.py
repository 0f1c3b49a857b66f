"""Prints what was found in a data set before anything trains, for `bench data`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from bench.analysis.words import in_words
from tl.survey import ObjectCounts, Range, Repeats, ShareRange, Survey
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
    """The lines of the text: tables of classes and of objects, a line for each kind of finding, and the sentences."""
    several = len(found.classes)
    yield f"{found.name}: {found.images} images, {several} class{'es' if several > 1 else ''}"
    if found.origin:
        yield f"split: {found.origin}"
    yield ""
    yield from _table("class", found.classes, found.splits)
    yield ""
    if found.boxes:
        yield from _boxes(found.boxes, found.splits)
        yield ""
    if found.sizes:
        yield f"width × height: {_sizes(found.sizes.width)} × {_sizes(found.sizes.height)} pixels"
    if found.baseline:
        rate = f"{found.baseline.rate:.1%} of the validation images"
        yield f"baseline: always answering {found.baseline.name!r} is right for {rate}"
    if several > 1:
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


def _boxes(found: ObjectCounts, splits: Mapping[str, int]) -> Iterator[str]:
    """Objects by class and split, and the sizes of their boxes."""
    whole = {split: sum(counts[split] for counts in found.objects.values()) for split in splits}
    yield from _table("objects of", found.objects, whole)
    yield ""
    without = ", ".join(f"{split} {count}" for split, count in found.without.items() if count)
    yield f"images without objects: {without or 'none'}; the most in an image: {found.most}"
    yield f"boxes, width × height: {_shares(found.width)} × {_shares(found.height)} of the image"


def _table(title: str, classes: Mapping[str, Mapping[str, int]], splits: Mapping[str, int]) -> Iterator[str]:
    """A row for each class, a column for each split, and a last row for all; `splits` has its numbers."""
    names = list(classes)[:MOST_CLASSES]
    rows = [[title, *splits]]
    rows += [[visible(name), *map(str, classes[name].values())] for name in names]
    rows += [["all", *map(str, splits.values())]]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        yield "  ".join([row[0].ljust(widths[0]), *cells])
        if row is rows[-2] and len(classes) > len(names):
            yield f"… and {len(classes) - len(names)} more classes"


def _sizes(pixels: Range) -> str:
    return f"{pixels.min} to {pixels.max} (median {pixels.median:g})" if pixels.min < pixels.max else f"{pixels.min}"


def _shares(found: ShareRange) -> str:
    return f"{found.min:.0%} to {found.max:.0%} (median {found.median:.0%})"


def _repeats(found: Repeats) -> str:
    if not found.count:
        return "none"
    such = "; ".join(f"{pair.file!r} {'=' if not pair.distance else '~'} {pair.other!r}" for pair in found.examples[:1])
    counts = {"identical": found.identical, "nearly identical": found.near}
    return ", ".join([*(f"{count} {kind}" for kind, count in counts.items() if count), f"such as {such}"])
