"""Wrong characters (code points) and wrong words of written answers, by jiwer (Levenshtein 1966)."""

import jiwer


def character_errors(truth: str, answer: str) -> int:
    """The fewest characters to replace, insert or remove to make the truth of the answer.

    White space around the two does not count.
    """
    found = jiwer.process_characters(truth, answer)
    return found.substitutions + found.deletions + found.insertions


def word_errors(truth: str, answer: str) -> tuple[int, int]:
    """The fewest words to replace, insert or remove to make the truth of the answer, and the words of the truth.

    A word is what stands between white space of any kind: in scripts that write without spaces read the character
    errors instead.
    """
    # jiwer itself parts words at spaces alone, and would take those of two lines for one.
    found = jiwer.process_words(" ".join(truth.split()), " ".join(answer.split()))
    return found.substitutions + found.deletions + found.insertions, len(found.references[0])
