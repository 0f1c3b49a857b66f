"""The words of a task: what is said of accuracies, for scores that are called otherwise.

Texts of reports, tables and terminals are written for classification, whose score is accuracy. For other tasks they are
said in the words of the task's score.
"""

from __future__ import annotations

import re

from tl.tasks import Task

_NOT_IN_A_NAME = r"(?<![\w:./-])"
"""Backbones and files keep their names."""
_BY_IMAGE = (
    (r"\bare right with only one of the two regimes\b", "have other scores with the two regimes"),
    (r"\bexact McNemar tests\b", "exact sign tests"),
)
_COMPARED = (
    (r"\bmost accurate\b", "best"),
    (r"\bmore accurate\b", "better"),
    (r"\bless accurate\b", "worse"),
    (r"\b(as|equally) accurate\b", r"\1 good"),
    (r"\bMost accurate\b", "Best"),
)


def in_words(text: str, task: Task, *, by_image: bool = False) -> str:
    """A text about accuracies in the words of a task's score, or with `by_image` of the score of single images.

    Differences between cells are of the latter. For classification both are accuracy, and the text stays as it is.
    """
    if task.right_or_wrong:
        return text
    score = task.image_score if by_image else task.score
    for pattern, words in (*_BY_IMAGE, *_COMPARED):
        text = re.sub(pattern, words, text)
    text = re.sub(rf"{_NOT_IN_A_NAME}[Aa]ccuracies\b", f"{score} values", text)
    return re.sub(rf"{_NOT_IN_A_NAME}[Aa]ccuracy(?![\w-])", score, text)


def counted(number: int, noun: str, plural: str = "") -> str:
    """Such as `1 cell` and `2 cells`; `plural` is that of a noun which takes more than an s."""
    return f"{number} {noun}" if number == 1 else f"{number} {plural or f'{noun}s'}"
