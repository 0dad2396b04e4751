"""How near predicted texts are to what is right: `measure`, and one function for each metric.

All take predictions and, for each of them, at least one reference, and give one number for the whole corpus; no
predictions give 0. Characters and words are taken as they are, but for surrounding and repeated blanks in words; CIDEr
and ROUGE-L, which ask what is said and not how it is written, compare lower-cased words without punctuation.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from ved_core.errors import ConfigError

Predictions = Sequence[str]
References = Sequence[Sequence[str]]
Metric = Callable[[Predictions, References], float]

_WORD = re.compile(r"\w+")


def measure(names: Iterable[str], predictions: Predictions, references: References) -> dict[str, float]:
    """The metrics with these names. Raises ConfigError for one that there is not, ValueError where a prediction has no
    reference."""
    names = list(names)
    check_names(names)
    if len(predictions) != len(references) or not all(references):
        raise ValueError("each prediction needs at least one reference")
    if not predictions:
        return dict.fromkeys(names, 0.0)
    return {name: METRICS[name](predictions, references) for name in names}


def check_names(names: Iterable[str]) -> None:
    """Raise ConfigError for a name that is no metric's."""
    if unknown := [name for name in names if name not in METRICS]:
        raise ConfigError(f"no metric {', '.join(map(repr, unknown))}; there are {', '.join(METRICS)}")


def exact_match(predictions: Predictions, references: References) -> float:
    """Share of predictions that are equal to one of their references."""
    return sum(map(_contains, references, predictions)) / len(predictions)


def _contains(references: Sequence[str], prediction: str) -> bool:
    return prediction in references


def cer(predictions: Predictions, references: References) -> float:
    """Character error rate: edits by characters of the references. Of several, the nearest reference counts. Where all
    references are empty, the number of edits."""
    return _error_rate(predictions, references, list)


def wer(predictions: Predictions, references: References) -> float:
    """Word error rate, as `cer`."""
    return _error_rate(predictions, references, str.split)


def _error_rate(predictions: Predictions, references: References, units: Callable[[str], list[str]]) -> float:
    import jiwer
    from rapidfuzz.distance import Levenshtein

    def nearest(prediction: str, several: Sequence[str]) -> str:
        def rate(reference: str) -> float:
            return Levenshtein.distance(units(prediction), units(reference)) / max(1, len(units(reference)))

        return min(several, key=rate)

    chosen = list(map(nearest, predictions, references))
    measured: jiwer.CharacterOutput | jiwer.WordOutput
    if units is list:
        letters = jiwer.Compose([jiwer.ReduceToListOfListOfChars()])  # its default cuts surrounding blanks off
        measured = jiwer.process_characters(chosen, list(predictions), letters, letters)
    else:
        measured = jiwer.process_words(chosen, list(predictions))
    edits = measured.substitutions + measured.deletions + measured.insertions
    return edits / max(1, measured.hits + measured.substitutions + measured.deletions)


def bleu(predictions: Predictions, references: References) -> float:
    """Corpus BLEU of sacrebleu with its default tokenisation, 0 to 100."""
    import sacrebleu

    return float(sacrebleu.corpus_bleu(list(predictions), _streams(references)).score)


def chrf(predictions: Predictions, references: References) -> float:
    """Corpus chrF of sacrebleu with its defaults, 0 to 100."""
    import sacrebleu

    return float(sacrebleu.corpus_chrf(list(predictions), _streams(references)).score)


def _streams(references: References) -> list[list[Any]]:
    """The first references of all predictions, the second ones, and so on; None where there are no more."""
    most = max(map(len, references))
    return [[several[i] if i < len(several) else None for several in references] for i in range(most)]


def words(text: str) -> list[str]:
    """Lower-cased words and numbers, in any script."""
    return _WORD.findall(text.lower())


def rouge_l(predictions: Predictions, references: References) -> float:
    """ROUGE-L (Lin 2004): F1 of the longest common subsequence of words, 0 to 1; mean over predictions, each with its
    best reference."""
    return sum(
        max(_rouge_l(words(prediction), words(reference)) for reference in several)
        for prediction, several in zip(predictions, references, strict=True)
    ) / len(predictions)


def _rouge_l(prediction: list[str], reference: list[str]) -> float:
    from rapidfuzz.distance import LCSseq

    if not prediction or not reference:
        return float(prediction == reference)
    return 2 * LCSseq.similarity(prediction, reference) / (len(prediction) + len(reference))


# CIDEr-D (Vedantam et al., arXiv:1411.5726): no library computes it without Java or PyTorch ---------------------------

_LONGEST = 4
_SIGMA = 6.0
"""Of the Gaussian that punishes another length."""

Counts = Counter[tuple[str, ...]]


def cider(predictions: Predictions, references: References) -> float:
    """CIDEr-D: cosine of tf-idf weighted n-grams of 1 to 4 words, clipped, times 10; mean over images. Document
    frequencies are those of the references, so that a corpus of one image has 0, and more images tell more."""
    documents = [[_ngrams(words(reference)) for reference in several] for several in references]
    frequency: Counts = Counter()
    for several in documents:
        frequency.update({gram for counts in several for gram in counts})
    log_images = math.log(len(references))

    def weight(gram: tuple[str, ...], count: int) -> float:
        return count * (log_images - math.log(max(1, frequency[gram])))

    total = 0.0
    for prediction, several in zip(predictions, documents, strict=True):
        counts = _ngrams(words(prediction))
        total += sum(_similarity(counts, reference, weight) for reference in several) / len(several)
    return 10 * total / len(predictions)


def _ngrams(tokens: list[str]) -> Counts:
    return Counter(tuple(tokens[i : i + n]) for n in range(1, _LONGEST + 1) for i in range(len(tokens) - n + 1))


def _similarity(prediction: Counts, reference: Counts, weight: Callable[[tuple[str, ...], int], float]) -> float:
    """Mean over n of the clipped cosines, with the length penalty."""
    dots, norms, others = [0.0] * _LONGEST, [0.0] * _LONGEST, [0.0] * _LONGEST
    for gram, count in prediction.items():
        own = weight(gram, count)
        norms[len(gram) - 1] += own**2
        if gram in reference:
            other = weight(gram, reference[gram])
            dots[len(gram) - 1] += min(own, other) * other
    for gram, count in reference.items():
        others[len(gram) - 1] += weight(gram, count) ** 2
    cosines = [
        dot / math.sqrt(own * other) if own and other else 0.0
        for dot, own, other in zip(dots, norms, others, strict=True)
    ]
    difference = _length(prediction) - _length(reference)
    return math.exp(-(difference**2) / (2 * _SIGMA**2)) * sum(cosines) / _LONGEST


def _length(counts: Counts) -> int:
    return sum(count for gram, count in counts.items() if len(gram) == 1)


METRICS: dict[str, Metric] = {
    "exact_match": exact_match,
    "cer": cer,
    "wer": wer,
    "bleu": bleu,
    "chrf": chrf,
    "rouge_l": rouge_l,
    "cider": cider,
}
LOWER_IS_BETTER = frozenset({"cer", "wer"})
