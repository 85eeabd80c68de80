"""Labels that tell topics apart: when two count as the same, and what is added to make them differ."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from itertools import count

import regex

from topicscale.llm.clean import LONGEST
from topicscale.llm.prompts import shortened

_PLAIN = regex.compile(r"[\p{L}\p{N}][\p{L}\p{M}\p{N} ._+#&'’/-]*")
_LONGEST_ADDED = 30
_ROUNDS = 8


def normalised(label: str) -> str:
    """Return what a label is compared by: two that differ only in case, spaces, punctuation or width are the same."""
    for _ in range(_ROUNDS):  # folding a letter and dropping a character can each undo the normal form
        before = label
        folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", label).casefold())
        label = "".join(c for c in folded if unicodedata.category(c)[0] in "LMNS")
        if label == before:
            break
    return label


def clashes(labels: Mapping[int, str]) -> list[list[int]]:
    """Return the groups of topics with the same label, ascending by id within and by first id among them."""
    groups: dict[str, list[int]] = {}
    for topic in sorted(labels):
        groups.setdefault(normalised(labels[topic]), []).append(topic)
    return [group for group in groups.values() if len(group) > 1]


def distinct(labels: Mapping[int, str], keywords: Mapping[int, Sequence[str]], taken: Mapping[int, str]) -> dict[int, str]:
    """Return a label of its own for every topic, ascending by id: "Card payments", "Card payments (refund)".

    The largest topic (lowest id) of those with the same label keeps it as it is. Another gets the first of its keywords that is not
    in the label and no rival's, else the first that is not in the label, else two, else a number. The result depends on what is in
    the mappings, not on their order.

    Parameters
    ----------
    labels : mapping of int to str
        By topic.
    keywords : mapping of int to sequence of str
        By topic, best first. Those of topics in ``taken`` count as rivals'.
    taken : mapping of int to str
        Names that stay as they are, of these topics or others. No other topic gets one of them.

    Returns
    -------
    dict of int to str
        A label for each topic of ``labels``, at most ``LONGEST`` characters, those of ``taken`` excepted.
    """
    free = {topic: shortened(labels[topic], LONGEST) for topic in sorted(labels) if topic not in taken}
    used = {normalised(name) for name in taken.values()}
    rivals: dict[str, list[int]] = {}
    for topic, label in sorted([*free.items(), *taken.items()]):
        rivals.setdefault(normalised(label), []).append(topic)
    found = {topic: taken[topic] for topic in labels if topic in taken}
    # bare labels first: none of them may be what another topic is given
    for topic, label in free.items():
        key = normalised(label)
        if key and key not in used:
            used.add(key)
            found[topic] = label
    for topic, label in free.items():
        if topic not in found:
            others = [keywords.get(other, ()) for other in rivals[normalised(label)] if other != topic]
            found[topic] = next(name for name in _names(label, keywords.get(topic, ()), others) if normalised(name) not in used)
            used.add(normalised(found[topic]))
    return dict(sorted(found.items()))


def sharpened(label: str, keywords: Sequence[str], number: int) -> list[str]:
    """Return up to ``number`` forms of a label, each with one of the topic's keywords that it does not hold, the best first."""
    added = [word for word in keywords if _addable(word, normalised(label))]
    return [_named(label, word) for word in added[:number]]


def _addable(word: str, said: str) -> bool:
    return len(word) <= _LONGEST_ADDED and _PLAIN.fullmatch(word) is not None and normalised(word) not in said


def _names(label: str, keywords: Sequence[str], others: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yield names for a topic without end, the best first."""
    said = normalised(label)
    plain = [word for word in keywords if _addable(word, said)]
    shared = {normalised(word) for words in others for word in words}
    own = [word for word in plain if normalised(word) not in shared]
    for word in [*own, *plain]:
        yield _named(label, word)
    for second in plain[1:]:
        yield _named(label, f"{plain[0]}, {second}")
    for number in count(2):
        yield _named(label, str(number))


def _named(label: str, added: str) -> str:
    if not normalised(label):  # a topic that nobody found a label for
        return f"Topic {added}" if added.isdecimal() else added
    return f"{shortened(label, LONGEST - len(added) - 3)} ({added})"
