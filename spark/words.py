"""Texts into words and n-grams, inside the JVM.

A word is a run of two or more word characters (letters with their marks, digits, underscore), as scikit-learn's default
pattern has it, by Unicode's classes: in Hindi, Arabic or Thai the marks belong to the word. Scripts without spaces
(Chinese, Japanese, Thai, Lao, Khmer, Burmese) are taken apart by Spark's ``sentences``, which asks Java's word
iterator: with the ICU locale provider (see ``spark/jars.py``) it knows these languages' dictionaries. Where the
provider is missing, as on a foreign Spark Connect server, Chinese and Japanese become pairs of characters.
"""

from __future__ import annotations

from collections.abc import Sequence

from pyspark.sql import Column, SparkSession
from pyspark.sql import functions as F

# variation selectors and the keycap mark count as marks, and would make "words" of emoji
_MARKS = r"\uFE00-\uFE0F\u20E3\x{E0100}-\x{E01EF}"
_WORD = rf"(?U)[\p{{IsAlphabetic}}\p{{IsDigit}}_][\w&&[^{_MARKS}]]+"
_HAN = r"\p{IsHan}\p{IsHiragana}\p{IsKatakana}\u30FC"
_UNSPACED = rf"[{_HAN}\p{{IsThai}}\p{{IsLao}}\p{{IsKhmer}}\p{{IsMyanmar}}]"
_RUN = rf"{_UNSPACED}[{_HAN}\p{{IsThai}}\p{{IsLao}}\p{{IsKhmer}}\p{{IsMyanmar}}\p{{M}}]*"


def has_dictionaries(spark: SparkSession) -> bool:
    """Return whether the Java that does this session's work knows where Chinese words end."""
    # a text that only a row gives: of a constant the driver's Java would see to itself
    text = F.concat(F.lit("今天天气很好"), F.regexp_replace(F.col("id").cast("string"), "0", ""))
    found = spark.range(1).select(F.size(F.flatten(F.sentences(text, F.lit("zh"), F.lit("CN")))))
    return bool(found.collect()[0][0] > 1)


def is_unspaced(text: Column) -> Column:
    """Return whether a text has a script without spaces, whose words depend on the Java that looks for them."""
    return text.rlike(_UNSPACED)


def words(text: Column, *, dictionaries: bool, lowercase: bool = True) -> Column:
    """Return the words of ``text`` in their order: array<string>."""
    text = F.lower(text) if lowercase else text
    # two steps in text order: runs without spaces are set apart, each part is then taken apart by its own rule
    spaced = F.regexp_extract_all(text, F.lit(_WORD), F.lit(0))
    parts = F.regexp_extract_all(text, F.lit(rf"{_RUN}|(?:(?!{_UNSPACED}){_WORD_CHARACTER})+"), F.lit(0))
    segmented = F.flatten(
        F.transform(parts, lambda part: F.when(part.rlike(rf"^{_UNSPACED}"), _segment(part, dictionaries)).otherwise(_kept(part)))
    )
    return F.when(is_unspaced(text), segmented).otherwise(spaced)


_WORD_CHARACTER = rf"(?U:[\w&&[^{_MARKS}]])"


def _kept(part: Column) -> Column:
    return F.regexp_extract_all(part, F.lit(_WORD), F.lit(0))


def _segment(run: Column, dictionaries: bool) -> Column:
    thai = F.flatten(F.sentences(run, F.lit("th"), F.lit("TH")))
    if dictionaries:
        found = thai
    else:
        pairs = F.transform(F.sequence(F.lit(1), F.greatest(F.length(run) - 1, F.lit(1))), lambda i: F.substring(run, i, 2))
        found = F.when(run.rlike(rf"^[{_HAN}]"), pairs).otherwise(thai)
    return F.filter(found, lambda word: F.length(word) > 1)


def ngrams(tokens: Column, ngram_range: tuple[int, int]) -> Column:
    """Return all runs of ``low`` to ``high`` neighbouring words, joined by a space: array<string>."""
    low, high = ngram_range
    sizes = [tokens if n == 1 else _grams(tokens, n) for n in range(low, high + 1)]
    return sizes[0] if len(sizes) == 1 else F.concat(*sizes)


def _grams(tokens: Column, n: int) -> Column:
    last = F.size(tokens) - n
    starts = F.when(last >= 0, F.sequence(F.lit(0), F.greatest(last, F.lit(0)))).otherwise(F.array().cast("array<int>"))
    return F.transform(starts, lambda i: F.array_join(F.slice(tokens, i + 1, n), " "))


def without(tokens: Column, stop_words: Sequence[str]) -> Column:
    """Return the words that are no stop words."""
    return F.filter(tokens, lambda word: ~word.isin(list(stop_words))) if stop_words else tokens
