"""Cutting a text into its words and putting some of them back together, as the recipes that damage or crop texts do."""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Sequence

# Han, kana, Thai, Lao, Burmese and Khmer are written without spaces between words: there a word is one character and its marks
_UNSPACED = "\u0e01-\u0e30\u0e32\u0e33\u0e3f-\u0e46\u0e4f-\u0eb0\u0eb2\u0eb3\u0ebd-\u0ec7\u0ecf-\u0eff\u1000-\u102a\u103f-\u109f"
_UNSPACED += "\u1780-\u17b3\u17d4-\u17dc\u17de-\u17ff\u3005-\u3007\u3040-\u3098\u309b-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff"
_UNSPACED += "\uf900-\ufaff\U00020000-\U0003ffff"
_MARKS = "\u0e31\u0e34-\u0e3a\u0e47-\u0e4e\u0eb1\u0eb4-\u0ebc\u0ec8-\u0ece\u102b-\u103e\u17b4-\u17d3\u17dd\u3099\u309a"
_UNIT = re.compile(rf"(?:[{_UNSPACED}][{_MARKS}]*|[^\s{_UNSPACED}]+)\s*")


def split(text: str) -> list[str]:
    """Return the words of a text, each with the white space behind it: joined they are the text again.

    Words end at white space, and punctuation stays with its word. Of scripts without spaces between words (Han, kana, Thai, Lao,
    Burmese, Khmer), each character with its marks counts as a word.

    Parameters
    ----------
    text : str
        Without white space at its start.
    """
    return _UNIT.findall(text)


def delete(words: Sequence[str], share: float, draw: random.Random) -> str:
    """Return the text without some of its words, each deleted with probability ``share``; at least one stays.

    The one that stays where all would go is drawn evenly (as in sentence-transformers' ``DenoisingAutoEncoderDataset``).

    Parameters
    ----------
    words : sequence of str
        As :func:`split` gives them; at least one.
    """
    kept = [draw.random() >= share for _ in words]
    if not any(kept):
        kept[draw.randrange(len(words))] = True
    parts: list[str] = []
    for word, stays in zip(words, kept, strict=True):
        if stays:
            parts.append(word)
        elif parts and word[-1].isspace() and not parts[-1][-1].isspace():
            parts.append(" ")  # a word without a space behind it must not grow together with the next but one
    return "".join(parts).strip()


def draw(seed: int, text: str) -> random.Random:
    """Return a source of random numbers that depends on the seed and the text alone, on every machine the same."""
    return random.Random(int.from_bytes(hashlib.sha256(f"{seed}\0{text}".encode(errors="surrogatepass")).digest()[:8], "big"))
