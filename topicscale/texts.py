"""Other people's text where it is shown: no character of it may command a terminal or turn a line around."""

from __future__ import annotations

import re
import unicodedata

LONGEST = 200
"""Characters of a name."""
UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
"""Letters of scripts that put no space between words, as the package regex writes them within a set."""
VISIBLE = r"[^\s\x00-\x1f\x7f-\x9f\u200b-\u200f\u2060\ufeff\ufffd]"
"""A character that is neither space, control, nor one of the marks that show nothing: a text needs one. Python and, after ``(?U)``, Java
read it alike."""
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_COMMANDS = ("Cc", "Cs", "Zl", "Zp")
_OVERRIDES = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def commands(character: str) -> bool:
    """Return whether a character ends a line, controls a terminal, or changes the direction of what follows."""
    return unicodedata.category(character) in _COMMANDS or character in _OVERRIDES


def one_line(text: str | None) -> str:
    """Return a text as a name may be: one line, no control characters (U+FFFD in their place), not too long."""
    line = " ".join((text or "")[: 8 * LONGEST].split())
    return "".join("\ufffd" if commands(c) else c for c in line)[:LONGEST].rstrip()


def printable(text: str) -> str:
    """Return lines for a terminal without colours, a line for each that overwrites another, and U+FFFD in the place of other commands."""
    text = _COLOUR.sub("", text).replace("\r\n", "\n").replace("\r", "\n")
    return "".join("\ufffd" if c not in "\n\t" and commands(c) else c for c in text)
