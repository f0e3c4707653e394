"""What answers are worth, against the rules written out slowly."""

from functools import cache
from random import Random

import pytest

from transformers_flashsloth.answering.scoring import anls, exact_match, scores


def similarity(one: str, other: str) -> float:
    """By the definition: the least of three ways to end, from the end to the beginning."""

    @cache
    def edits(i: int, j: int) -> int:
        if not i or not j:
            return i + j
        return min(edits(i - 1, j) + 1, edits(i, j - 1) + 1, edits(i - 1, j - 1) + (one[i - 1] != other[j - 1]))

    share = 1 - edits(len(one), len(other)) / max(len(one), len(other), 1)
    return share if share >= 0.5 else 0.0


def test_an_exact_match_is_one_to_the_letter():
    assert exact_match(" blue\n", "blue") == 1 == exact_match("a", ["b", "a "])
    assert exact_match("Blue", "blue") == 0 == exact_match("blue.", ["blue", "bl"])


@pytest.mark.parametrize(
    ("answer", "expected", "worth"),
    [
        ("invoice", "invoice", 1),
        ("Invoice  No", "invoice no", 1),
        ("invoise", "invoice", 6 / 7),
        ("abcd", "abxy", 0.5),
        ("abcd", "axyz", 0),
        ("", "", 1),
        ("", "a", 0),
        ("in", "invoice", 0),
        ("invoise", ["other", "invoices", "invoice"], 6 / 7),
        ("größer", "grösser", 5 / 7),
    ],
)
def test_anls_is_the_share_of_letters_that_are_right(answer, expected, worth):
    assert anls(answer, expected) == pytest.approx(worth)


def test_anls_is_what_its_definition_says():
    random = Random(0)
    for _ in range(300):
        one, other = ("".join(random.choices("abc ", k=random.randrange(12))).strip() for _ in range(2))
        one, other = " ".join(one.split()), " ".join(other.split())
        assert anls(one, other) == pytest.approx(similarity(one, other)), (one, other)
    assert any(0.5 <= similarity("abcabc", text) < 1 for text in ("abcab", "abcaab"))


def test_means_of_both():
    found = scores(["red", "blue", "green"], ["red", ["blues", "bluest"], "x"])
    assert found == {"exact_match": pytest.approx(1 / 3), "anls": pytest.approx((1 + 4 / 5) / 3)}


@pytest.mark.parametrize(
    ("answers", "expected", "message"),
    [
        (["a"], ["a", "b"], "There are 1 answers, but 2 are expected"),
        ([], [], "no answers to score"),
        (["a", "b"], ["a", []], "No answer is expected to question 2 of 2"),
    ],
)
def test_what_cannot_be_scored_is_refused(answers, expected, message):
    with pytest.raises(ValueError, match=message):
        scores(answers, expected)
