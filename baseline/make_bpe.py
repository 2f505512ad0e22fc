"""Learn the merges of `bpe1024.txt` from the training split. Run once; the file is shipped, this is its source.

    python make_bpe.py > bpe1024.txt        # Python 3.11.7, about 10 s

Plain byte-pair encoding: join the most frequent neighbours, 768 times. Only words that hold a changed pair are looked
at again. Ties go to the smaller pair of ids, so that the result depends on the text alone.
"""

from collections import Counter, defaultdict

from sources import standard_library
from tokenise import SHIPPED_VOCAB, WORD


def learn(words: Counter[bytes], merges: int) -> list[tuple[int, int]]:
    """The `merges` pairs of ids to join, in order, for words that occur so many times."""
    spellings = [(list(word), count) for word, count in words.items()]
    counts: Counter[tuple[int, int]] = Counter()
    places: defaultdict[tuple[int, int], set[int]] = defaultdict(set)

    def tally(index: int, sign: int) -> None:
        ids, count = spellings[index]
        for pair in zip(ids, ids[1:], strict=False):
            counts[pair] += sign * count
            places[pair].add(index)

    for index in range(len(spellings)):
        tally(index, +1)
    learned = []
    for token in range(256, 256 + merges):
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        learned.append(best)
        for index in places.pop(best):
            tally(index, -1)
            spellings[index] = (join(spellings[index][0], best, token), spellings[index][1])
            tally(index, +1)
        del counts[best]
    return learned


def join(ids: list[int], pair: tuple[int, int], token: int) -> list[int]:
    """`ids` with every `pair` replaced by `token`, left to right."""
    joined, i = [], 0
    while i < len(ids):
        fits = (ids[i], ids[i + 1]) == pair if i + 1 < len(ids) else False
        joined.append(token if fits else ids[i])
        i += 2 if fits else 1
    return joined


if __name__ == "__main__":
    training = (document.data for document in standard_library() if document.split == "train")
    occurrences = Counter(word for data in training for word in WORD.findall(data))
    for left, right in learn(occurrences, SHIPPED_VOCAB - 257):
        print(left, right)
