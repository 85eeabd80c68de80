"""What a model answered, made a label or refused.

An answer is hostile text: a document may have told the model what to say. A label is one short line without control or hidden
characters, chat marks, mark-up, ``<`` and ``>``. It is still text, and whoever writes it into HTML escapes it.
"""

from __future__ import annotations

import html
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache, lru_cache

import regex

from topicscale.llm.backend import Ask
from topicscale.llm.prompts import EXAMPLES, MARKERS, QUESTION, SYSTEM, WIDE, shortened, visible

LONGEST = 80
"""Characters of a label."""
LONGEST_WORDS = 12
"""Words of a label, before it is cut to ``LONGEST``."""
COPIED = 60
"""Characters: a longer piece of a document is a copy, no label. So is a whole document of more than six words."""
REASONS = ("empty", "refusal", "echo", "loop", "link", "too_long", "not_text")
"""Why there is no label."""
_ROUNDS = 8
_READ = 4000
_LINE = 600
_DOCUMENT = 20000
_TITLE_WORDS = 6

_F = regex.IGNORECASE
_THOUGHT = regex.compile(r"<think(?:ing)?>.*?(?:</think(?:ing)?>|\Z)", _F | regex.DOTALL)
_LINK = regex.compile(
    r"[a-z][a-z0-9+.-]{1,20}://|\bwww\.\w|\b(?:mailto|javascript|vbscript):\S|\bdata:[a-z]+/|\S@[\w-]+\.\w|\]\(\S"
    r"|\b(?!(?:asp|ado|vb)\.net/)[\w-]+\.(?!jsx?/)[a-z]{2,24}/\S|\bon(?:error|load|click|focus|toggle|input|(?:mouse|key|pointer)\w+)\s*=|<\s*/?\s*(?:script|iframe|object|embed|svg|img|style|link|meta|form|base|a\s)",
    _F,
)
_TAG = regex.compile(r"</?[a-z!][^<>]*>", _F)
_ANGLES = regex.compile(r"[<>＜＞﹤﹥]")
_PLACEHOLDER = regex.compile(r"\[\s*/?[A-Z][A-Z_ ]+\]|\{\{?\s*\w+\s*\}?\}")
_ROLE = regex.compile(r"\W*(?:assistant|user|system|model|human)\W*", _F)
_PROMPTED = regex.compile(r"\W*(?:(?:the )?(?:keywords?|documents?|question|explanation|reasoning|note)\b[^:：]{0,20}[:：]|```)", _F)
_KIND = r"(?:topic(?:['’]s)?[ _]?)?(?:label|name|title|category|topic|answer|output|response)"
_LEADS = regex.compile(
    rf"""(?xi) ^\W{{0,3}} (?:
        (?:(?:sure|certainly|of\ course|okay|ok|absolutely|great|yes|understood)\b[\s,.!–—-]*)
            (?=here\b|the\ |this\ |a\ |my\ |i['’d ]|based\b|{_KIND}\s*:)
      | (?:sure|certainly|of\ course|okay|ok|absolutely|understood)!\s+(?=\p{{L}})
      | (?:here(?:['’]s|\ is|\ are)|based\ on|sure|certainly|of\ course)\b[^:：]{{0,120}}[:：]
      | i(?:['’]d|\ would)\ (?:label|name|call|title|suggest)\b(?:[^:："“]{{0,60}}[:：]|\ (?:it|this(?:\ topic)?)(?:\ as)?\ )
      | (?:(?:my|the|a|an|this|one|short|possible|suggested|good|suitable|fitting|appropriate|concise|best|final|proposed)\s+)*
        (?:{_KIND})(?:\s+\#?\d{{1,6}})?(?:\s+(?:for|of)\s+(?:this|the|these)\s+(?:topic|documents?|group))?["'*_]{{0,3}}
        \s*(?:[:：=]|(?:is|would\ be|could\ be|might\ be|should\ be)\b(?:\s+(?:about|related\ to))?\s*:?)
      | (?:the|these)\ documents\ (?:are\ (?:all\ )?about|discuss|describe|cover)\b
      | (?:étiquette|thème|sujet|titre|thema|titel|bezeichnung|etiqueta|tema|título|etichetta|titolo
        |标签|主题|ラベル|トピック|라벨|주제)\s*[:：]
    )\s*"""
)
_TAIL = regex.compile(
    r"(?<!^(?:here|this|that|it))\s+(?:is|would be|could be) (?:a|an|the|one|my) (?:\w+ ){0,2}(?:label|name|title)\b.*$", _F
)
_POLITE = regex.compile(r"(?:sure|certainly|of course|okay|ok|absolutely|great|yes|no|understood|hello|hi|thanks|thank you)", _F)
_BULLET = regex.compile(r"^(?:[-–—•·●▪‣◦+=@~|:;,*\s]+|#{1,6}(?=\s)|\(?(?:\d{1,3}[.)\]]|[a-z][)\]])\s+)", _F)
_UNCLOSED = regex.compile(r"(?<=\w)\s*\([^()]*$")
_EMPHASIS = regex.compile(r"(?<!\w)(\*{1,3}|_{1,3})(?=\S)(.{1,200}?)(?<=\S)\1(?!\w)")
_MARKS = regex.compile(r"\*{2,}|_{2,}|~{2,}|`+|\s#+$|(?<=\S)\*+$|▁")
_PIECES = regex.compile(r"(?<=[^\W\d_]{3})[.!?]\s+(?=[\p{Lu}\p{Lo}\"“(])|(?<=[。！？])")
_FLOOD = regex.compile(r"(\p{M}{4})\p{M}+")
_QUOTES = ('"“”„‟«»″「」『』', "'‘’‚‛‹›′")
_VERBS = (
    "provide|help|assist|create|generate|label|determine|fulfil|fulfill|comply|answer|do|give|write|engage|discuss|complete|make|name|"
    "know|identify|see|access|tell|find|produce|offer|process|understand|summarize|say"
)
_REFUSAL = regex.compile(
    rf"""(?xi) ^\W*(?:
        (?:i['’]?m|i\ am)\ (?:really\ |very\ |so\ )?(?:sorry|afraid|unable|not\ (?:able|sure)|an?\ (?:ai|language))\b
      | (?:sorry|unfortunately|apologies|my\ apologies)\s*[,.!:—-] | (?:sorry|unfortunately),?\ (?:but|i)\b | i\ apologi[sz]e\b
      | as\ an?\ (?:ai|artificial|large\ language|language\ model|helpful|labeling)\b
      | (?:please|could\ you|can\ you|would\ you)\ (?:please\ )?(?:provide|share|give|specify|clarify|send|tell|let\ me)\b
      | (?:(?:hello|hi|hey)\b\W*(?:there\W+)?)?(?:how|what)\ (?:can|may|would|could)\ (?:i|you)\b.*\b(?:help|assist|like|do)\b
      | (?:n/?a|none|null|nil|undefined|unknown|untitled|nothing|no\ (?:label|topic|answer|title|documents?|keywords?)|not\ applicable)
        (?:\ (?:found|given|provided|available))?\W*$
      | (?:not\ enough|insufficient)\ (?:information|context|data)\b
      | (?:lo\ siento|(?:je\ suis\ )?désolée?|es\ tut\ mir\ leid|tut\ mir\ leid|desculpe|mi\ dispiace)\b
      | 抱歉 | 很抱歉 | 对不起 | 申し訳 | 죄송
    )
    | \b(?:i|we)\ (?:can(?:not|['’]?t|\ not)|could\ not|am\ unable\ to|am\ not\ able\ to|won['’]?t|will\ not|do\ not|don['’]?t)
        \ (?:be\ able\ to\ )?(?:{_VERBS})\b
    | \b(?:unable\ to|cannot|can['’]t|not\ able\ to)\ (?:provide|assist|generate|fulfill?|comply|label|summarize)
        (?:\W*$|\b[^.]*\b(?:labels?|names?|titles?|answers?|responses?|topics?|requests?|documents?|you|this|that|it)\b)
    | \bas\ an?\ (?:ai|artificial\ intelligence|large)\ (?:language\ )?(?:model|assistant)\b | \bas\ a\ language\ model\b
    """
)
_REPEATED = regex.compile(r"(\p{L}{1,8}?)\1{4,}", _F)
_WORD = regex.compile(r"[\p{L}\p{M}\p{N}]+")
_SHORT_FORMS = frozenset(
    _WORD.findall("inc etc ltd corp dept univ prof mrs gov gen rev sen rep col sgt capt messrs approx esp est vol fig")
)
_STOP = frozenset(
    _WORD.findall("the of and for in on to a an with this that these what about here there is are it its by or as at from be")
)


@dataclass(frozen=True)
class Cleaned:
    """A label, or why there is none."""

    label: str | None
    reason: str | None = None
    """One of ``REASONS`` where there is no label."""


def clean(text: str | None, ask: Ask, *, prompt: str = "") -> Cleaned:
    """Return the label in an answer. Never raises; a label that is cleaned again stays as it is.

    Parameters
    ----------
    text : str, optional
        What the model wrote.
    ask : Ask
        What the prompt was made of: a copied document is no label, and words of the worked example are one only where the topic's
        own words support them.
    prompt : str
        The unfilled prompt (:attr:`topicscale.llm.prompts.Template.own`): a copied instruction is no label. The packaged one is
        known without it.
    """
    if not isinstance(text, str):
        return Cleaned(None, "empty")
    found = _once(text, ask, prompt)
    for _ in range(_ROUNDS):  # what was taken off may have hidden more of the same
        if found.label is None:
            return found
        before, found = found.label, _once(found.label, ask, prompt)
        if found.label == before:
            return found
    return Cleaned(None, "not_text")


def announces(text: str) -> bool:
    """Return whether the lines of an answer so far say nothing: manners, what announces a label, or a thought that has begun."""
    return not any(map(_undressed, _lines(text)))


def cut_short(text: str) -> bool:
    """Return whether an answer that was ended at a line break had only announced a label: it is worth the whole answer."""
    return "\n" in text.lstrip() and announces(text)


def _once(text: str, ask: Ask, prompt: str) -> Cleaned:
    reason = "empty"
    for line in _lines(text):
        if _LINK.search(line):
            return Cleaned(None, "link")
        if _PROMPTED.match(line) or _PLACEHOLDER.fullmatch(line.strip("\"'*` .")):
            reason = "echo"
            continue
        if _REFUSAL.search(line):
            return Cleaned(None, "refusal")
        bare = _undressed(line)
        if _loops(bare):
            return Cleaned(None, "loop")
        if not _is_text(bare, ask):
            reason = reason if reason == "echo" or not bare else "not_text"
            continue
        label = _first_sentence(bare)
        if _is_echo(bare, ask, prompt) or _is_echo(label, ask, prompt):
            return Cleaned(None, "echo")
        if len(label.split()) > LONGEST_WORDS:
            return Cleaned(None, "too_long")
        label = _FLOOD.sub(r"\1", unicodedata.normalize("NFC", label))
        if len(label) > LONGEST:
            label = shortened(label, LONGEST).rstrip(" ,;:-–—(/&")
        return Cleaned(label)
    return Cleaned(None, reason)


def _lines(text: str) -> Iterator[str]:
    """Yield the lines that say something, as they are read on a screen."""
    thought = max(text.rfind("</think>"), text.rfind("</thinking>"), 0)
    text = _THOUGHT.sub("\n", text[thought : thought + _READ])
    marked = False
    for line in (visible(line[:_LINE]) for line in text.splitlines()):
        for part in MARKERS.sub("\n", html.unescape(line).translate(WIDE)).splitlines():
            marked = marked or part != line
            part = visible(part)
            if part and not (marked and _ROLE.fullmatch(part)):
                yield part


def _undressed(line: str) -> str:
    """Return a line without mark-up, lead-in, bullet, quotes and full stop."""
    line = _ANGLES.sub(" ", _TAG.sub(" ", line))
    for _ in range(_ROUNDS):
        before = line
        line = _MARKS.sub(" ", _EMPHASIS.sub(r"\2", line)).strip()
        line = _BULLET.sub("", line)
        line = _LEADS.sub("", line, count=1)
        line = _UNCLOSED.sub("", _TAIL.sub("", _unquoted(_unbraced(line))))
        if line.endswith((".", "。", ",", ";", "…")) and not regex.search(r"\b(?:\p{Lu}\.){2,}$", line):
            line = line[:-1]
        line = " ".join(line.split())
        if line == before:
            break
    # manners, or what announces a label on another line
    return "" if line.endswith((":", "：")) or _POLITE.fullmatch(line.rstrip("!.")) else line


def _unbraced(line: str) -> str:
    line = line.strip("{}|\\ ")
    if line.startswith("[") and (line.endswith("]") or "]" not in line):
        line = line[1:].removesuffix("]")
    return line[:-1] if line.endswith("]") and "[" not in line else line


def _unquoted(line: str) -> str:
    """Return a line without the quotation marks around it, or the one that has no partner."""
    for family in _QUOTES:
        at = [i for i, c in enumerate(line) if c in family and not (line[i - 1 : i].isalnum() and line[i + 1 : i + 2].isalnum())]
        if len(at) == 2 and at == [0, len(line) - 1]:
            line = line[1:-1]
        elif len(at) == 1 and at[0] in (0, len(line) - 1):
            line = line[1:] if at[0] == 0 else line[:-1]
    return line


def _first_sentence(line: str) -> str:
    for match in _PIECES.finditer(line):
        before, _, word = line[: match.start()].rpartition(" ")
        if match.start() and word.casefold() not in _SHORT_FORMS and match.end() < len(line):
            if line[match.start()] in "!?" and not before:
                continue  # one word is no sentence: Yahoo! Answers
            return line[: match.start() + (line[match.start()] in "!?")].rstrip("。 ")
    return line


def _is_text(line: str, ask: Ask) -> bool:
    letters = regex.findall(r"\p{L}", line)
    words = _words(line)
    if not letters or all(word in _STOP for word in words):
        return False
    known = line.casefold() in {keyword.casefold() for keyword in ask.keywords}
    return known or len(regex.findall(r"[\p{L}\p{N}]", line)) > 1 or not letters[0].isascii()


def _loops(line: str) -> bool:
    words = _words(line)
    for size in (1, 2, 3):
        runs = [words[i : i + size] for i in range(len(words) - size + 1)]
        if any(runs[i] == runs[i + size] == runs[i + 2 * size] for i in range(len(runs) - 2 * size)):
            return True
    return (len(words) >= 6 and 2 * len(set(words)) <= len(words)) or _REPEATED.search(line) is not None


def _is_echo(line: str, ask: Ask, prompt: str) -> bool:
    """Return whether a line says what the prompt said before: its instruction, an example, or a document."""
    words = _words(line)
    copied = " ".join(words)
    told = _told(ask)
    if any(copied in text if len(copied) > COPIED else copied == text and len(words) > _TITLE_WORDS for text in told):
        return True
    if _shares(words, (SYSTEM, QUESTION, prompt), 5) and not any(copied in text for text in told):
        return True
    content = [word[:4] for word in words if len(word) > 2 and word not in _STOP]
    own = {word[:4] for text in told for word in text.split()}
    if not content or 2 * sum(word in own for word in content) >= len(content):
        return False
    for example, label in EXAMPLES:
        if _shares(words, (label, *example.documents), 4):
            return True
        if len(content) > 1 and set(content) <= _stems(" ".join((label, *example.keywords))):
            return True
    return set(content) <= _stems(_instruction())


def _shares(words: list[str], texts: Iterable[str], length: int) -> bool:
    """Return whether some ``length`` words in a row are in one of the texts."""
    runs = [" ".join(words[i : i + length]) for i in range(len(words) - length + 1)]
    return bool(runs) and any(f" {run} " in f" {' '.join(_words(text))} " for text in texts for run in runs)


@lru_cache(maxsize=8)
def _told(ask: Ask) -> list[str]:
    return [" ".join(_words(visible(text[:_DOCUMENT]))) for text in (*ask.documents, *ask.keywords)]


@cache
def _stems(text: str) -> frozenset[str]:
    return frozenset(word[:4] for word in _words(text))


def _instruction() -> str:
    return f"{QUESTION} insert your label name title here keyword document text example"


def _words(text: str) -> list[str]:
    return [str(word) for word in _WORD.findall(text.casefold())]
