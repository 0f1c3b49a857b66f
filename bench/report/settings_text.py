"""What a report says of the protocol: which images and settings, and what its accuracy is."""

from __future__ import annotations

from bench.analysis.groups import Group
from bench.report.summary import Summary
from bench.store.records import Manifest
from tl.config import TrainConfig
from tl.folds import HELD_OUT

_BEST = (
    "with one seed, the best of all epochs with its Wilson 95% interval; with more, the mean over seeds ± one standard "
    "deviation. It is chosen on the images that it is measured on, so it flatters; the last epoch's stands beside it."
)
_TUNED = (
    "of the validation images at the last epoch; with one seed with its Wilson 95% interval, with more the mean over "
    "seeds ± one standard deviation. Nothing is chosen on the images that it is measured on, so best and last are the "
    "same."
)
_KFOLD = (
    "the share of all images that were judged right at the last epoch, each by the network that was trained without "
    "it; with one seed with its Wilson 95% interval, with more (repeats with other folds) the mean over seeds ± one "
    "standard deviation. Nothing is chosen on the images that it is measured on, so best and last are the same. The "
    "interval takes images as independent, though the trainings share most of theirs. Seconds of an epoch are those of "
    "all folds together."
)


def images(manifest: Manifest) -> str:
    """How many images: training and validation, or all where each is both."""
    judged = len(manifest.dataset.val_labels)
    return str(judged) if _kind(manifest) == "kfold" else f"{manifest.dataset.train_images} + {judged}"


def settings(manifest: Manifest) -> str:
    """The protocol that all cells of a run share, in a line."""
    protocol, kind = manifest.protocol, _kind(manifest)
    rate, more = f"at {protocol['learning_rate']}", ""
    if kind == "tuned":
        rates = ", ".join(f"{rate:g}" for rate in protocol["learning_rates"])
        rate = f"at the best of {rates}"
        more = (
            "; tuned: each cell tries these learning rates on the same split of the training images, one in "
            f"{HELD_OUT} of them held out, and then trains on all of them; the validation images choose nothing"
        )
    if kind == "kfold":
        more = f"; kfold: stratified {protocol['folds']}-fold cross-validation over all images, a seed a repeat"
    return (
        f"{protocol['epochs']} epochs, batch size {protocol['batch_size']}, {protocol['optimizer']} {rate}, momentum "
        f"{protocol['momentum']}, schedule {protocol['schedule']}, {protocol['loss']}, head {protocol['head']}{more}"
    )


def accuracy_note(summary: Summary) -> str:
    """What the accuracies of a report are; of each protocol, where it has several."""
    texts = {"fixed": _BEST, "tuned": _TUNED, "kfold": _KFOLD}
    kinds = list(dict.fromkeys(_kind(manifest) for _, manifest in summary.runs))
    return " ".join(f"Accuracy{f' ({kind})' if len(kinds) > 1 else ''}: {texts[kind]}" for kind in kinds)


def accuracy_name(config: TrainConfig) -> str:
    """What a sentence calls the accuracy of a cell."""
    names = {"tuned": "accuracy at the last epoch", "kfold": f"{config.folds}-fold accuracy"}
    return names.get(config.protocol, "best accuracy")


def chosen_rates(group: Group, summary: Summary) -> dict[str, str]:
    """A column with the learning rates that a group's seeds were trained at, in a report where some were tuned."""
    if "tuned" not in summary.levels["protocol"]:
        return {}
    rates = sorted({result.learning_rate for result in group.results if result.learning_rate is not None})
    return {"learning rate": ", ".join(f"{rate:g}" for rate in rates)}


def _kind(manifest: Manifest) -> str:
    return str(manifest.protocol["protocol"])
