"""Pictures of a run's images: training crops, predictions of the best cell, and images on which cells disagree.

They need the image files; a run records only their digest. Loads neither torch nor timm.
"""

from __future__ import annotations

import base64
import io
import warnings
from collections import Counter
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from bench.analysis.groups import Group, most_accurate
from bench.report.summary import Summary
from tl.datasets import Splits, load_splits
from tl.errors import DataWarning, FallbackWarning, UserError
from tl.images import Store, crops, open_store
from tl.regimes import REGIMES
from tl.seeding import seed_for

PIXELS = 144
"""Side of a picture in pixels, before the page scales it."""
EPOCHS = 4
"""Number of epochs for which augmented images are shown."""
MOST = 8
"""Largest number of pictures per gallery."""
COLUMNS = 4
"""Number of columns of a montage."""
GALLERIES = ("augmented", "wrong", "right", "disputed")
"""Names of all galleries."""
LEFT_OUT = "Pictures were left out (--no-images)."


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One image with its caption."""

    image: Image.Image
    caption: str
    alternative: str
    """Alternative text for readers who can't see the image."""

    @property
    def source(self) -> str:
        """The image as a data URI."""
        data = io.BytesIO()
        self.image.save(data, format="JPEG", quality=80)
        return f"data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode()}"


@dataclass(frozen=True, kw_only=True)
class Gallery:
    """Pictures of one kind, with a title and a caption."""

    name: str
    title: str
    caption: str
    pictures: tuple[Picture, ...]


def find_images(summary: Summary, data: str | None = None) -> Splits:
    """Find the images of a report's first run: in `data`, else where its commands found them, else by the set's name.

    Raises `UserError` if there are none, or if they are not the images of the run.
    """
    _, manifest = summary.runs[0]
    given = [call.data for _, each in summary.runs for call in each.invocations if call.data]
    places = [data] if data else [*given, manifest.dataset.name]
    for place in dict.fromkeys(places):
        try:
            with warnings.catch_warnings():
                for shown in (FallbackWarning, DataWarning):  # by the report, from the manifest
                    warnings.simplefilter("ignore", shown)
                splits = load_splits(place, task=manifest.dataset.task, download=False)
        except UserError:
            if data:
                raise
            continue
        if splits.digest == manifest.dataset.digest:
            return splits
        if data:
            raise UserError(
                f"--data {data}: has other images ({splits.digest[:8]}) than {summary.runs[0][0]} "
                f"({manifest.dataset.digest[:8]})"
            )
    raise UserError(f"the images of {manifest.dataset.name} ({manifest.dataset.digest[:8]}) were not found; see --data")


def images_or_reason(summary: Summary, data: str | None = None) -> Splits | str:
    """The images of a report's first run, or a sentence on why there are no pictures.

    Raises `UserError` only if `data` was given and doesn't hold them.
    """
    try:
        return find_images(summary, data)
    except UserError as error:
        if data is not None:
            raise
        return f"No pictures: {error}."


def galleries(summary: Summary, splits: Splits) -> list[Gallery]:
    """Make all galleries that the records allow. Raises `DataError` for an image that can't be decoded."""
    store = open_store(splits)
    crops_of = [group for group in summary.groups if _crops_each_epoch(group) and group.run == summary.runs[0][0]]
    found = [_augmented(crops_of[0].results[0].config.seed, splits, store)] if crops_of else []
    rated = [g for g in summary.groups if g.accuracy is not None and g.run == summary.runs[0][0]]
    picks = [choice.pick for choice in summary.choices if choice.run == summary.runs[0][0]]
    best = picks[0] if picks else most_accurate(rated)
    files = summary.runs[0][1].dataset.val_files
    if best is not None:
        found += _right_and_wrong(best, summary, files, splits, store)
    voting = [group for group in rated if not REGIMES[group.config.regime].control]
    if len(voting) > 1:
        found.append(_disputed(voting, summary, files, splits, store))
    return [gallery for gallery in found if gallery.pictures]


def _crops_each_epoch(group: Group) -> bool:
    """True if training made new crops of the whole training set in every epoch."""
    regime = REGIMES[group.config.regime]
    return regime.trains and regime.features != "once" and group.config.protocol != "kfold"


def _augmented(seed: int, splits: Splits, store: Store) -> Gallery:
    """A gallery of one image of each of several classes, cropped and flipped as in the first epochs of training."""
    firsts = [splits.train.labels.index(label) for label in range(len(splits.classes))][: MOST // 2]
    sizes = store.sizes(splits.train)
    pictures = []
    for place in firsts:
        for epoch in range(EPOCHS):
            top, left, height, width, flipped = crops(sizes, seed_for("crops", seed, epoch))[place]
            pixels = store.read(splits.train.files[place])[top : top + height, left : left + width]
            picture = _small(pixels[:, ::-1] if flipped else pixels)
            name = splits.classes[splits.train.labels[place]]
            pictures.append(Picture(image=picture, caption=f"{name}, epoch {epoch}", alternative=f"a crop of {name}"))
    return Gallery(
        name="augmented",
        title="What training sees",
        caption=f"The same training images in several epochs, cropped and flipped as for seed {seed}.",
        pictures=tuple(pictures),
    )


def _right_and_wrong(
    group: Group, summary: Summary, files: tuple[str, ...], splits: Splits, store: Store
) -> list[Gallery]:
    result = group.results[0]
    last = result.last
    rows = list(zip(files, group.truth, last.labels, last.confidences, strict=True))
    wrong = sorted((row for row in rows if row[1] != row[2]), key=lambda row: -row[3])
    right = sorted((row for row in rows if row[1] == row[2]), key=lambda row: row[3])
    named = f"{summary.short(group)}, {group.config.regime}, seed {result.config.seed}"
    chosen = {
        "wrong": (f"Wrong predictions of {named}", f"{len(wrong)} of {len(rows)}; the most confident first.", wrong),
        "right": (f"Right predictions of {named}", f"{len(right)} of {len(rows)}; the least confident first.", right),
    }
    return [
        Gallery(
            name=name,
            title=title,
            caption=caption,
            pictures=tuple(_picture_of(row, splits, store) for row in some[:MOST]),
        )
        for name, (title, caption, some) in chosen.items()
    ]


def _picture_of(row: tuple[str, int, int, float], splits: Splits, store: Store) -> Picture:
    file, truth, label, confidence = row
    wrong = f" (is {splits.classes[truth]})" if label != truth else ""
    caption = f"{splits.classes[label]} {confidence:.0%}{wrong}"
    return Picture(
        image=_centre_square(store.read(file)), caption=caption, alternative=f"a picture of {splits.classes[truth]}"
    )


def _disputed(groups: list[Group], summary: Summary, files: tuple[str, ...], splits: Splits, store: Store) -> Gallery:
    """A gallery of the images on which groups, by their first seed, disagree most, and are then most often wrong."""
    votes = np.array([group.results[0].last.labels for group in groups])
    truth = np.array(groups[0].truth)
    counts = [Counter(votes[:, image].tolist()) for image in range(votes.shape[1])]
    divided = [len(groups) - max(count.values()) for count in counts]
    wrong = (votes != truth).sum(axis=0)
    ranked = sorted(range(len(files)), key=lambda image: (-divided[image], -wrong[image]))
    pictures = []
    for image in [image for image in ranked if divided[image]][:MOST]:
        predicted = ", ".join(f"{splits.classes[label]} {count}" for label, count in counts[image].most_common())
        name = splits.classes[truth[image]]
        pictures.append(
            Picture(
                image=_centre_square(store.read(files[image])),
                caption=f"{predicted} (is {name})",
                alternative=f"a picture of {name}",
            )
        )
    return Gallery(
        name="disputed",
        title="Where they disagree most",
        caption=f"Predictions of {len(groups)} combinations of backbone, regime and device, each by its first seed.",
        pictures=tuple(pictures),
    )


def _centre_square(pixels: npt.NDArray[np.uint8]) -> Image.Image:
    """Crop the centre of an image, `(H, W, 3) uint8`, to a small square."""
    height, width = pixels.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return _small(pixels[top : top + side, left : left + side])


def _small(pixels: npt.NDArray[np.uint8]) -> Image.Image:
    """Resize a whole image to a small square, ignoring its aspect ratio, as training does with a crop."""
    return Image.fromarray(np.ascontiguousarray(pixels)).resize((PIXELS, PIXELS), Image.Resampling.BILINEAR)


def montage(gallery: Gallery) -> Image.Image:
    """Join all pictures of a gallery into one image, for Markdown, which shows the captions below it."""
    rows = -(-len(gallery.pictures) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * (PIXELS + 4), rows * (PIXELS + 4)), "white")
    for place, picture in enumerate(gallery.pictures):
        sheet.paste(picture.image, ((place % COLUMNS) * (PIXELS + 4) + 2, (place // COLUMNS) * (PIXELS + 4) + 2))
    return sheet
