"""How alike two texts are, and how varied many texts are. No model takes part."""

from collections.abc import Hashable, Sequence


def rouge_l(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """Rouge-L F1 of each prediction, in percent: against the one of its references that it is closest to.

    Words are lower-cased and stemmed, as in the instruction-following evaluations of MiniLLM (arXiv 2306.08543).

    predictions  B texts.
    references   B sequences of at least one text each.

    Returns float [B] in 0..100. Raises ValueError if the lengths differ or an example has no reference.
    """
    from rouge_score.rouge_scorer import RougeScorer

    if len(predictions) != len(references):
        raise ValueError(f"{len(predictions)} predictions and {len(references)} lists of references; expected as many")
    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    scores = []
    for index, (prediction, accepted) in enumerate(zip(predictions, references, strict=True)):
        if isinstance(accepted, str) or not accepted:
            raise ValueError(f"references[{index}] is {accepted!r}; expected a list of at least one text")
        scores.append(100.0 * max(scorer.score(reference, prediction)["rougeL"].fmeasure for reference in accepted))
    return scores


def distinct_n(sequences: Sequence[Sequence[Hashable]] | Sequence[str], n: int) -> float:
    """Share of the n-grams of all `sequences` together that are different ones: 1 for no repetition at all.

    sequences  Lists of tokens (ids or words); a text is split into words at white space.

    Returns a float in 0..1; nan if no sequence has n tokens. Raises ValueError if n < 1.
    """
    num_different, num_all = count_ngrams(sequences, n)
    return num_different / num_all if num_all else float("nan")


def count_ngrams(sequences: Sequence[Sequence[Hashable]] | Sequence[str], n: int) -> tuple[int, int]:
    """(different ones, all) of the n-grams of all `sequences` together, as `distinct_n` counts them."""
    if n < 1:
        raise ValueError(f"n is {n}; expected at least 1")
    grams: list[tuple[Hashable, ...]] = []
    for sequence in sequences:
        tokens = sequence.split() if isinstance(sequence, str) else sequence
        grams += [tuple(tokens[start : start + n]) for start in range(len(tokens) - n + 1)]
    return len(set(grams)), len(grams)
