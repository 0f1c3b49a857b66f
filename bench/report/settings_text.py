"""Describes the images and settings of a run, and how its protocol measures accuracy, in a report's words."""

from __future__ import annotations

from bench.analysis.groups import Group
from bench.analysis.metrics import listed
from bench.analysis.stats import MIN_IN_ORDER
from bench.analysis.words import counted
from bench.report.summary import Summary
from bench.store.records import Manifest
from tl.config import TrainConfig
from tl.folds import HELD_OUT
from tl.regimes import REGIMES

INDEPENDENCE = (
    "Intervals over seeds assume that seeds are independent, which is wrong on a machine that slows down for a while: "
    "r is the "
    f"correlation of a seed's ratio with that of the seed that ran before it, from {MIN_IN_ORDER} seeds on; if it is "
    "positive, the interval is as wide as with correspondingly fewer seeds. With few seeds r is hardly known, so a "
    "small r is no proof of independence."
)
_UNEQUAL = (
    "Classes have unequal numbers of images, so look at balanced accuracy and macro-F1 too, in which each class weighs "
    "the same."
)
_FIXED = (
    "is the share of validation images that were predicted right after the last epoch: with one seed it has its Wilson "
    "95% interval, with more it is the mean over seeds ± one standard deviation. The table also has the best accuracy "
    "of all epochs, the tutorial's figure. That one is optimistic: the best epoch was picked on the same images."
)
_OTHER_SCORE = (
    "It is that of the validation images after the last epoch, with several seeds the mean ± one standard deviation. "
    "The best of all epochs, which the table also has, is optimistic: that epoch was picked on the same images."
)
_TUNED = (
    "is the share of validation images that were predicted right after the last epoch: with one seed it has its Wilson "
    "95% interval, with more it is the mean over seeds ± one standard deviation. Nothing is chosen on these images, "
    "so best and last accuracy are the same."
)
_KFOLD = (
    "is the share of all images that were predicted right after the last epoch, each by the network that was trained "
    "without it: with one seed it has its Wilson 95% interval, with more (repeats with other folds) it is the mean "
    "over seeds ± one standard deviation. Nothing is chosen on these images, so best and last accuracy are the same. "
    "The interval treats images as independent, although the trainings share most of theirs. Seconds per epoch are the "
    "sum over all folds."
)


def image_counts(manifest: Manifest) -> tuple[int, ...]:
    """Numbers of training and validation images, or of all of them for protocol `kfold`, where each is both."""
    validation = len(manifest.dataset.val_files)
    return (validation,) if _protocol(manifest) == "kfold" else (manifest.dataset.train_images, validation)


def images(manifest: Manifest) -> str:
    """Number of images: training + validation, or all of them."""
    return " + ".join(map(str, image_counts(manifest)))


def settings(manifest: Manifest) -> str:
    """The settings that all cells of a run share, in one line."""
    shared, protocol = manifest.protocol, _protocol(manifest)
    rate, more = f"at {shared['learning_rate']}", ""
    if protocol == "tuned":
        rates = ", ".join(f"{rate:g}" for rate in shared["learning_rates"])
        rate = f"at the best of {rates}"
        more = (
            "; tuned: each cell tries these learning rates on the same split of the training images, one in "
            f"{HELD_OUT} of them held out, and then trains on all of them; the validation images choose nothing"
        )
    if protocol == "kfold":
        more = f"; kfold: stratified {shared['folds']}-fold cross-validation over all images, one repeat per seed"
    used = {cell.config.regime for cell in manifest.cells.values()}
    if fitted := [name for name, regime in REGIMES.items() if name in used and regime.fit != "steps"]:
        more += f"; heads of {listed(fitted)} are fitted at once, which reads none of these settings"
    if begun := [name for name, regime in REGIMES.items() if name in used and regime.head_start != "random"]:
        more += f"; {listed(begun)} begins with a fitted head, and multiplies learning rates by "
        more += f"{shared['rate_after_head']:g}"
    if any(REGIMES[name].adapter == "lora" for name in used):
        more += f"; low-rank updates have rank {shared['lora_rank']}"
    if joining := [name for name, regime in REGIMES.items() if name in used and regime.trainable.in_turn]:
        each = shared["unfreeze_every"]
        more += (
            f"; {listed(joining)} trains one stage more every {'epoch' if each == 1 else f'{each} epochs'}, and its "
        )
        more += "times per epoch are means"
    if shared["freeze_bn"]:
        more += "; BatchNorm layers stay frozen where a pretrained backbone trains"
    if shared["layer_decay"] != 1:
        more += (
            f"; each stage of a pretrained backbone has {shared['layer_decay']:g} times the rate of the one after it"
        )
    if shared["ema"]:
        more += f"; what is validated and kept are moving averages of the weights, with a decay of {shared['ema']:g}"
    if patience := shared["early_stopping"]:
        more += (
            f"; a training ends when {patience} epoch{'s' * (patience != 1)} in a row had no lower validation loss: "
        )
        more += "the validation images choose the number of epochs, so accuracy after the last one is optimistic, too"
    if shared["checkpointing"]:
        more += "; activation checkpointing where the backbone trains"
    return (
        f"{counted(shared['epochs'], 'epoch')}, batch size {shared['batch_size']}, {shared['optimizer']} {rate}, "
        f"momentum {shared['momentum']}, schedule {shared['schedule']}, "
        f"{shared['loss']}{_weighted(shared['class_weights'])}, head {shared['head']}"
        f"{_frozen_backbones(shared['fold'], shared['lookahead'])}{more}"
    )


def _weighted(class_weights: str) -> str:
    """Say how classes count in the loss, if some count more than others."""
    return "" if class_weights == "none" else f" with {class_weights} class weights"


def _frozen_backbones(fold: bool | None, lookahead: int | str) -> str:
    """Say how frozen backbones run, if it isn't the usual way."""
    text = "" if not fold else "; frozen backbones are folded into networks for inference"
    if lookahead != 1:
        many = "several" if lookahead == "auto" else str(lookahead)
        text += f"; frozen backbones run on {many} batches at once"
    return text


def accuracy_note(summary: Summary) -> str:
    """Explain how accuracies are measured, for each protocol in the report."""
    task = summary.task
    if not task.right_or_wrong:
        return f"{task.score} {task.scored}. {_OTHER_SCORE} {task.compared}"
    texts = {"fixed": _FIXED, "tuned": _TUNED, "kfold": _KFOLD}
    protocols = list(dict.fromkeys(_protocol(manifest) for _, manifest in summary.runs))
    return " ".join(f"Accuracy{f' ({name})' if len(protocols) > 1 else ''} {texts[name]}" for name in protocols)


def accuracy_name(config: TrainConfig) -> str:
    """The name of a cell's accuracy in a sentence."""
    if config.protocol == "kfold":
        return f"{config.folds}-fold accuracy"
    return "accuracy after the last epoch" if REGIMES[config.regime].by_steps else "accuracy"


def largest_class_note(summary: Summary) -> str:
    """What always answering the largest class would achieve, for each run if they differ; empty if unknown."""
    if not summary.task.right_or_wrong:
        reached = [f"{summary.task.same_answer(manifest.dataset.truth):.1%}" for _, manifest in summary.runs]
        shown = " and ".join(dict.fromkeys(reached))
        answering = summary.task.answering
        return f"{answering[0].upper()}{answering[1:]} has {summary.task.score} {shown}."
    found = summary.largest_classes
    if not found:
        return ""
    if len(set(found.values())) == 1:
        ((name, rate), *_) = found.values()
        said = f"Always answering {name!r}, the largest class, is right for {rate:.1%} of the validation images."
    else:
        rates = "; ".join(f"{run}: {name!r} {rate:.1%}" for run, (name, rate) in found.items())
        said = f"Accuracy of always answering the largest class of the validation images: {rates}."
    return f"{said} {_UNEQUAL}" if summary.unequal_classes else said


def chosen_rates(group: Group, summary: Summary) -> dict[str, str]:
    """A table column with a group's learning rates; empty in a report without tuned ones."""
    if "tuned" not in summary.levels["protocol"]:
        return {}
    rates = sorted({result.learning_rate for result in group.results if result.learning_rate is not None})
    return {"learning rate": ", ".join(f"{rate:g}" for rate in rates)}


def _protocol(manifest: Manifest) -> str:
    return str(manifest.protocol["protocol"])
