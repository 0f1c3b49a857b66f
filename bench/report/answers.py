"""The answer, in sentences."""

from __future__ import annotations

from bench.claims import HALF_THE_TIME
from bench.report.summary import Summary
from bench.report.tables import accuracy, median


def answers(summary: Summary) -> list[str]:
    """What to use on each device, and whether the claim holds: a paragraph each."""
    said = []
    for choice in summary.choices:
        use = f"On {choice.device}: use" if len(summary.choices) > 1 else "Use"
        pick, best = choice.pick, choice.best
        seconds = median(pick, "epoch_seconds")
        text = f"{use} {pick.backbone}, {pick.regime}: best accuracy {accuracy(pick)}, {seconds} s an epoch."
        if pick is not best:
            text += f" It is the quickest of {choice.tied + 1} that these images can't tell apart;"
            text += f" {best.label} has {accuracy(best)}."
        elif choice.tied:
            text += f" {choice.tied} more can't be told from it on these images, and none of them is quicker."
        if choice.left_out:
            text += f" Not in the choice, for want of pretrained weights: {', '.join(choice.left_out)}."
        said.append(text)
    if not summary.choices and summary.groups:
        said.append("No cell had pretrained weights: accuracy says nothing here, time and memory hold.")
    if summary.comparisons:
        verdicts = [row.verdict for row in summary.comparisons]
        counts = ", ".join(f"{verdicts.count(verdict)} {verdict}" for verdict in dict.fromkeys(verdicts))
        ratios = [f"{row.speed_up.value:.1f}×" for row in summary.comparisons if row.speed_up]
        spread = f" Speed-ups: {', '.join(ratios)}." if ratios else ""
        said.append(f"{HALF_THE_TIME.statement}? Of {len(verdicts)} comparisons: {counts}.{spread}")
    return said
