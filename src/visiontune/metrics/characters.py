"""Characters (code points) of written answers: how many are wrong, and how long an answer is."""

import jiwer


def character_errors(truth: str, answer: str) -> int:
    """The fewest characters to replace, insert or remove to make the truth of the answer (Levenshtein 1966), by jiwer.

    White space around the two does not count.
    """
    found = jiwer.process_characters(truth, answer)
    return found.substitutions + found.deletions + found.insertions
