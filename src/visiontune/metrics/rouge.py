"""ROUGE of written answers (Lin 2004), by Google's rouge-score, with words of every script.

rouge-score's own words are runs of a-z and 0-9, which leaves nothing of most languages. Here a word is a run of
letters, marks and digits, and scripts that write without spaces count character by character. On ASCII text both are
the same.
"""

import functools
from collections.abc import Sequence
from typing import Any

import regex

NAMES = ("rouge1", "rouge2", "rougeL")
REPEATED_WORDS = 4

_NO_SPACES = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
_WORD = regex.compile(rf"[{_NO_SPACES}]\p{{M}}*|(?:(?![{_NO_SPACES}])[\p{{L}}\p{{M}}\p{{N}}])+")


def words(text: str) -> list[str]:
    """The words of a text in lower case."""
    return _WORD.findall(text.lower())


class _Words:
    """`words` in the shape that rouge-score asks for."""

    def tokenize(self, text: str) -> list[str]:
        return words(text)


@functools.cache
def _scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(list(NAMES), use_stemmer=False, tokenizer=_Words())


def rouge(truth: str, answer: str) -> dict[str, float]:
    """F1 of ROUGE-1, ROUGE-2 and ROUGE-L (the longest common subsequence), each in [0, 1]; no stemming."""
    return {name: float(score.fmeasure) for name, score in _scorer().score(truth, answer).items()}


def repetition(text: str) -> float:
    """The share of runs of four words that stood in the text before, in [0, 1]; 0 for fewer than five words."""
    found: Sequence[str] = words(text)
    runs = [tuple(found[i : i + REPEATED_WORDS]) for i in range(len(found) - REPEATED_WORDS + 1)]
    return 1 - len(set(runs)) / len(runs) if len(runs) > 1 else 0.0
