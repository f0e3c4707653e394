"""What answers are worth beside the expected ones: 1 for an equal one, or the share of letters that are right."""

from collections.abc import Sequence

import numpy as np

# Of the benchmarks that are scored by ANLS: what has less in common than this is worth nothing.
ANLS_THRESHOLD = 0.5


def exact_match(answer: str, expected: str | Sequence[str]) -> float:
    """1.0 if an answer equals the expected one, or one of several, to the letter but for blanks around it; or 0.0."""
    return float(answer.strip() in {text.strip() for text in _listed(expected)})


def anls(answer: str, expected: str | Sequence[str]) -> float:
    """
    The normalised Levenshtein similarity of an answer and the expected one, or the likest of several, from 0 to 1: one
    less the edits over the letters of the longer text, and 0 where that is less than half. Neither case nor the width
    of blanks counts. As ST-VQA (https://arxiv.org/abs/1905.13648) and DocVQA score.
    """
    return max(_similarity(_plain(answer), _plain(text)) for text in _listed(expected))


def scores(answers: Sequence[str], expected: Sequence[str | Sequence[str]]) -> dict[str, float]:
    """
    The means of all that an answer can be worth.

    Args:
        answers (`Sequence[str]`): such as `answer_all` returns.
        expected (`Sequence`): for each the right answer, or several.

    Returns:
        `dict[str, float]`: `exact_match` and `anls`, from 0 to 1.

    Raises:
        ValueError: if there is nothing to score, an answer has nothing beside it, or nothing is expected of it.
    """
    if len(answers) != len(expected):
        raise ValueError(f"There are {len(answers)} answers, but {len(expected)} are expected.")
    if not answers:
        raise ValueError("There are no answers to score.")
    if (bare := next((index for index, texts in enumerate(expected) if not _listed(texts)), None)) is not None:
        raise ValueError(f"No answer is expected to question {bare + 1} of {len(answers)}: give at least one.")
    pairs = list(zip(answers, expected, strict=True))
    return {metric.__name__: sum(metric(*pair) for pair in pairs) / len(pairs) for metric in METRICS}


METRICS = (exact_match, anls)


def _listed(expected: str | Sequence[str]) -> Sequence[str]:
    return (expected,) if isinstance(expected, str) else expected


def _plain(text: str) -> str:
    return " ".join(text.lower().split())


def _similarity(one: str, other: str) -> float:
    longest = max(len(one), len(other))
    similarity = 1 - _edits(one, other) / longest if longest else 1.0
    return similarity if similarity >= ANLS_THRESHOLD else 0.0


def _edits(one: str, other: str) -> int:
    """Levenshtein's distance: insertions, deletions and replacements that make one text of the other."""
    letters = np.array([ord(letter) for letter in other], dtype=np.int64)
    steps = np.arange(len(other) + 1)
    row = steps  # edits from nothing to each beginning of `other`
    for letter in one:
        kept = np.concatenate([row[:1] + 1, np.minimum(row[1:] + 1, row[:-1] + (letters != ord(letter)))])
        row = np.minimum.accumulate(kept - steps) + steps  # insertions, from left to right
    return int(row[-1])
