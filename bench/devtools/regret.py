"""Compares what `bench pick` chose with a run of the whole grid on the same images.

    python -m bench pick FOLDER --name picked
    python -m bench run --grid pick --data FOLDER --weights pretrained \\
        --regime finetune,frozen,knn,ridge,logistic --name whole
    python -m bench.devtools.regret results/picked results/whole

It prints how many points less accurate the pick is than the most accurate combination of the whole grid, with a 95%
interval (`bench.analysis.stats.regret`), both by the grid's own trainings, and how the combinations rank there.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from bench.analysis.groups import Group, make_groups
from bench.analysis.picking import seconds_to_train
from bench.analysis.recommend import NO_WORSE
from bench.analysis.stats import regret
from bench.program import end
from bench.store.runs import RunFolder
from tl.errors import UserError
from tl.regimes import REGIMES


def compare(picked: RunFolder, whole: RunFolder) -> str:
    """Say in a few lines what the pick lost. Raises `UserError` if the runs can't be compared."""
    found, manifest = picked.pick(), whole.manifest()
    if found is None or found.pick is None:
        raise UserError(f"{picked.folder}: has no pick")
    if picked.manifest().dataset.digest != manifest.dataset.digest:
        raise UserError(f"{picked.folder} and {whole.folder} are of different images")
    records = [(whole.name, record) for record in whole.records().values()]
    groups = [
        group
        for group in make_groups(records, {whole.name: manifest.dataset.val_labels})
        if group.accuracy is not None and not REGIMES[group.config.regime].control
    ]
    groups.sort(key=lambda group: -(group.accuracy or 0.0))
    chosen = (found.pick.backbone, found.pick.regime)
    place = next((i for i, one in enumerate(groups) if (one.config.backbone, one.config.regime) == chosen), None)
    if place is None:
        raise UserError(f"{whole.folder}: has no result of {found.pick}")
    seeds = {seed for group in groups for seed in group.by_image()}
    answers = [_for_all(group, seeds) for group in groups]
    said = regret(answers, place, NO_WORSE)
    if said is None:
        raise UserError(f"{whole.folder}: its combinations have no seed in common")
    images = len(manifest.dataset.val_labels)
    interval = "" if said.low is None or said.high is None else f" ({100 * said.low:.1f} to {100 * said.high:.1f})"
    lines = [
        f"picked: {found.pick}, after {found.seconds:.0f} s ({found.first_answer_seconds:.0f} s to the first ranking)",
        f"regret: {100 * said.value:.1f} points{interval}, n = {said.n} seeds, {images} images",
        f"place: {place + 1} of {len(groups)} combinations",
    ]
    for group in groups:
        seconds = seconds_to_train(group)
        lines.append(
            f"  {100 * (group.accuracy or 0.0):5.1f}%  {group.label}, n = {len(group.records)}"
            + ("" if seconds is None else f", {seconds:.1f} s")
        )
    return "\n".join(lines)


def _for_all(group: Group, seeds: set[int]) -> dict[int, list[float]]:
    """Seed → the score of each image. A head that is fitted at once is the same with every seed."""
    right = group.by_image()
    if REGIMES[group.config.regime].by_steps:
        return right
    (only,) = right.values()
    return dict.fromkeys(seeds, only)


def main() -> int:
    """Compare the two runs that the arguments name."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("picked", type=Path, help="the folder of a pick")
    parser.add_argument("whole", type=Path, help="the folder of the run of the whole grid")
    given = parser.parse_args()
    print(compare(RunFolder(given.picked), RunFolder(given.whole)))
    return 0


if __name__ == "__main__":
    end(main)
