"""Shows predictions of a saved model as text, CSV or JSON."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from typing import Literal

from rich.cells import cell_len, set_cell_size

from bench.analysis.words import counted
from bench.sweep.predict import Predictions
from tl.text import csv_text, visible, visible_json

WIDTH = 80
"""Columns of the text."""
LONGEST_CLASS = 24
"""Columns of a class's name."""
MOST_CONFUSED = 20
"""Pairs of classes that the text names where the matrix is too wide for it."""
Format = Literal["text", "csv", "json"]


def show_predictions(found: Predictions, form: Format) -> str:
    """Return the predictions as a text that ends with a newline."""
    return {"text": _text, "csv": _csv, "json": _json}[form](found)


def _text(found: Predictions) -> str:
    return "".join(f"{line.rstrip()}\n" for part in (_table(found), _unread(found), _summary(found)) for line in part)


def _table(found: Predictions) -> Iterator[str]:
    if not found.readable:
        return
    names = [_class(found.card.classes[one.best]) for one in found.readable]
    wide = max(len("class"), *map(cell_len, names))
    room = WIDTH - wide - len("confidence") - 4
    paths = [_from_left(visible(one.photograph.path), room) for one in found.readable]
    left = max(len("path"), *map(cell_len, paths))
    yield f"{set_cell_size('path', left)}  {set_cell_size('class', wide)}  confidence"
    for one, path, name in zip(found.readable, paths, names, strict=True):
        yield f"{set_cell_size(path, left)}  {set_cell_size(name, wide)}  {one.probabilities[one.best]:10.1%}"


def _unread(found: Predictions) -> Iterator[str]:
    if found.unreadable:
        yield f"can't be read: {len(found.unreadable)} of {counted(len(found.all), 'image')}"
    for one in found.unreadable:
        reason = visible(one.reason)
        yield f"  {_from_left(visible(one.photograph.path), max(20, WIDTH - cell_len(reason) - 4))}: {reason}"
    for each in found.left_out:
        yield visible(each)


def _summary(found: Predictions) -> Iterator[str]:
    counts = found.confusion
    if counts is None or found.accuracy is None:
        return
    right = sum(row[index] for index, row in enumerate(counts))
    yield ""
    yield f"accuracy: {found.accuracy:.1%} ({right} of {counted(found.labelled, 'image')})"
    if found.same_data:
        yield "The model was trained on images of this data set, so this is too high for new ones."
    yield from _matrix(found, counts)


def _matrix(found: Predictions, counts: list[list[int]]) -> Iterator[str]:
    """The confusion matrix, or the most frequent confusions if it is wider than the text."""
    names = [_class(name) for name in found.card.classes]
    first = max(cell_len("true class"), *map(cell_len, names))
    wide = [max(cell_len(name), *(len(str(row[i])) for row in counts)) for i, name in enumerate(names)]
    if first + sum(each + 2 for each in wide) <= WIDTH:
        yield "predicted class, by true class:"
        heads = "".join(f"  {' ' * (width - cell_len(name))}{name}" for name, width in zip(names, wide, strict=True))
        yield f"{set_cell_size('true class', first)}{heads}"
        for name, row in zip(names, counts, strict=True):
            yield set_cell_size(name, first) + "".join(f"  {n:{w}}" for n, w in zip(row, wide, strict=True))
        return
    wrong = [(n, i, j) for i, row in enumerate(counts) for j, n in enumerate(row) if i != j and n]
    for n, i, j in sorted(wrong, key=lambda each: -each[0])[:MOST_CONFUSED]:
        yield f"{n} of {sum(counts[i])} {names[i]} taken for {names[j]}"
    if len(wrong) > MOST_CONFUSED:
        yield f"… and {len(wrong) - MOST_CONFUSED} more pairs of classes; --format json has all"


def _csv(found: Predictions) -> str:
    """A row for each image; `true_class` is empty where it is unknown, and `reason` where the image was read."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["path", "class", "confidence", "true_class", "reason"])
    for one in found.all:
        said = (
            ["", ""] if one.reason else [csv_text(found.card.classes[one.best]), f"{one.probabilities[one.best]:.6f}"]
        )
        writer.writerow(
            [csv_text(str(one.photograph.path)), *said, csv_text(one.photograph.label or ""), csv_text(one.reason)]
        )
    return out.getvalue()


def _json(found: Predictions) -> str:
    classes = found.card.classes
    content = {
        "model": str(found.folder),
        "backbone": found.card.backbone,
        "classes": classes,
        "images": [
            {
                "path": str(one.photograph.path),
                "class": classes[one.best],
                "confidence": one.probabilities[one.best],
                "probabilities": dict(zip(classes, one.probabilities, strict=True)),
                "true_class": one.photograph.label,
            }
            for one in found.readable
        ],
        "unreadable": [{"path": str(one.photograph.path), "reason": one.reason} for one in found.unreadable],
        "left_out": [each.model_dump(mode="json") for each in found.left_out],
        "accuracy": found.accuracy,
        "trained_on_these_images": found.same_data,
        "confusion": found.confusion,
    }
    return visible_json(json.dumps(content, indent=1, ensure_ascii=False)) + "\n"


def _class(name: str) -> str:
    shown = visible(name)
    return shown if cell_len(shown) <= LONGEST_CLASS else set_cell_size(shown, LONGEST_CLASS - 1).rstrip() + "…"


def _from_left(path: str, room: int) -> str:
    """A path without its beginning where it is too long: it ends with its name."""
    if cell_len(path) <= room:
        return path
    while path and cell_len(path) > room - 1:
        path = path[1:]
    return f"…{path}"
