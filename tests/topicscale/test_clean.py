"""What models answer, and what becomes of it."""

from __future__ import annotations

import time
import unicodedata

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from topicscale.config import LlmConfig
from topicscale.labels import check
from topicscale.llm.backend import Ask
from topicscale.llm.clean import LONGEST, LONGEST_WORDS, REASONS, Cleaned, announces, clean
from topicscale.llm.prompts import EXAMPLES, MARKERS, SYSTEM, load

CARDS = Ask(
    (
        "I was charged twice for a card payment in the shop, and now I want a refund of the second one before the month ends.",
        "My card payment is pending since Monday.",
        "Why is there a fee for every payment abroad?",
    ),
    ("card", "payment", "refund", "charged", "pending"),
)
MEAT = Ask(("Meat production drives emissions and other impacts on the environment.", "Eat less beef"), ("meat", "eating", "beef"))


@pytest.mark.parametrize(
    ("answer", "label"),
    [
        ("Card payments", "Card payments"),
        ("  Card   payments \n", "Card payments"),
        ("Card payments.", "Card payments"),
        ('"Card payments"', "Card payments"),
        ("'Card payments'.", "Card payments"),
        ("“Card payments.”", "Card payments"),
        ("«Paiements par carte»", "Paiements par carte"),
        ('"Card payments', "Card payments"),
        ("Label: Card payments", "Card payments"),
        ("Topic: Card payments", "Card payments"),
        ("Topic name: Card payments", "Card payments"),
        ("Topic Label - Card payments", "Topic Label - Card payments"),
        ("**Topic label:** Card payments", "Card payments"),
        ("Topic 12: Card payments", "Card payments"),
        ("Label: Topic: Label: Card payments", "Card payments"),
        ("The label is Card payments", "Card payments"),
        ("The label is: 'Card payments'", "Card payments"),
        ('A good label for this topic would be "Card payments".', "Card payments"),
        ('"Card payments" is a good label.', "Card payments"),
        ("This topic is about card payments", "card payments"),
        ("I would label it as: Card payments", "Card payments"),
        ("Sure! Here is a short label for this topic:\n\nCard payments", "Card payments"),
        ("Sure, here's the label: Card payments", "Card payments"),
        ("Sure!\nCard payments", "Card payments"),
        ("Sure! Card payments", "Card payments"),
        ("Based on the documents and keywords, here is my label:\n- Card payments\n- Refunds", "Card payments"),
        ("1. Card payments\n2. Refunds", "Card payments"),
        ("* **Card payments**", "Card payments"),
        ("### Card payments ###", "Card payments"),
        ("`Card payments`", "Card payments"),
        ("__Card payments__", "Card payments"),
        ("| Card payments |", "Card payments"),
        ('```json\n{"label": "Card payments"}\n```', "Card payments"),
        ('["Card payments"]', "Card payments"),
        ("<b>Card</b> payments &amp; refunds<br/>", "Card payments & refunds"),
        ("&lt;i&gt;Card&lt;/i&gt; payments", "Card payments"),
        ("&amp;lt;i&amp;gt;Card payments", "Card payments"),
        ("Card payments </s><s>[INST] What is this topic about?", "Card payments"),
        ("[/INST] Card payments</s>", "Card payments"),
        ("<|start_header_id|>assistant<|end_header_id|>\n\nCard payments<|eot_id|>", "Card payments"),
        ("＜|im_start|＞assistant\nCard payments＜|im_end|＞", "Card payments"),
        ("&#91;INST] Card payments", "Card payments"),
        ("<think>\nThe user wants a label.\n</think>\n\nCard payments", "Card payments"),
        ("So the user wants...\n</think>Card payments", "Card payments"),
        ("\x1b[1mCard\x1b[0m pay\u200bments\u202e\ufeff", "Card payments"),
        ("Card\tpayments\x00\x07", "Card payments"),
        ("Card payments. This label fits all documents.", "Card payments"),
        ("Card payments\nExplanation: all documents are about them.", "Card payments"),
        ("Card payments (pending and", "Card payments"),
        ("Étiquette : Paiements par carte", "Paiements par carte"),
        ("标签：银行卡付款。", "银行卡付款"),
        ("カード決済。これは説明です。", "カード決済"),
        ("Cafe\u0301 payments", "Café payments"),
    ],
)
def test_labels_are_taken_out_of_answers(answer, label) -> None:
    assert clean(answer, CARDS) == Cleaned(label)


@pytest.mark.parametrize(
    "label",
    [
        "A* search",
        "C# and C++",
        "AT&T",
        "Review of “Dune”",
        'Review of "Dune"',
        '"Dune" and "Alien"',
        "Rock 'n' roll",
        "Children's books",
        "#MeToo movement",
        ".NET development",
        "Node.js",
        "Booking.com reviews",
        "Trade in the U.S.",
        "Trade in the U.S. and Canada",
        "Apple Inc. Products",
        "St. Petersburg",
        "401(k) plans",
        "Payments (by card)",
        "Covid-19: vaccines",
        "Data: privacy",
        "Yahoo!",
        "What is AI?",
        "Name changes after marriage",
        "Label printing",
        "AI language models",
        "Sorry songs",
        "Unable to log in",
        "Unable to generate report",
        "Cannot generate invoice PDF",
        "E. coli outbreaks",
        "H. pylori treatment",
        "J. K. Rowling books",
        "Yahoo! Answers spam",
        "Node.js/Express development",
        "ASP.NET/C# web",
        "I Can't Breathe protests",
        "No-deal Brexit",
        "snake_case names",
        "New York, New York",
        "Mississippi",
        "1000000 genomes",
        "5G",
        "水",
        "می‌شود",
        "Ελληνική οικονομία",
        "العربية",
    ],
)
def test_labels_that_only_look_odd_stay_as_they_are(label) -> None:
    assert clean(label, CARDS) == Cleaned(label)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (None, "empty"),
        ("", "empty"),
        (" \n\t\u200b ", "empty"),
        ("Sure!", "empty"),
        ("Here is the label:", "empty"),
        ("<think>The user wants a label, so", "empty"),
        ("I'm sorry, but I cannot help with that.", "refusal"),
        ("I’m sorry", "refusal"),
        ("I cannot provide a label for these documents.", "refusal"),
        ("Label: I cannot determine a label", "refusal"),
        ("As an AI, I have no opinion", "refusal"),
        ("As an AI language model, I cannot", "refusal"),
        ("Well, as a language model I can only guess", "refusal"),
        ("Unfortunately, the documents differ", "refusal"),
        ("Please provide the documents.", "refusal"),
        ("Hello! How can I help you today?", "refusal"),
        ("I don't know.", "refusal"),
        ("Unable to provide a label.", "refusal"),
        ("Cannot comply", "refusal"),
        ("N/A", "refusal"),
        ("None", "refusal"),
        ("No label found.", "refusal"),
        ("Lo siento, no puedo", "refusal"),
        ("[KEYWORDS]", "echo"),
        ("[Label]", "echo"),
        ("[Insert label here]", "echo"),
        ("{{label}}", "echo"),
        ("<label>", "empty"),
        ("Short label", "echo"),
        ("Topic", "echo"),
        ("Keywords: card, payment", "echo"),
        ("Documents:\n[DOCUMENTS]", "echo"),
        ("What is this topic about? Answer with one short label", "echo"),
        ("add nothing to it", "echo"),
        ("a careful, courteous and truthful assistant", "echo"),
        (EXAMPLES[1][1], "echo"),
        (f"Label: {EXAMPLES[1][1].lower()}.", "echo"),
        ("Impacts of eating meat on health", "echo"),
        ("meat, beef, emissions", "echo"),
        ("Until factory farming made it cheap", "echo"),
        ("Why is there a fee for every payment abroad?", "echo"),
        ("- I was charged twice for a card payment in the shop, and now I want a refund", "echo"),
        ("the the the the", "loop"),
        ("card payment card payment card payment", "loop"),
        ("Card payments payments payments", "loop"),
        ("hahahahahahaha", "loop"),
        ("Card aaaaaaaaaaaaaaaa", "loop"),
        ("https://evil.example/x", "link"),
        ("Card payments: www.evil.example", "link"),
        ("Write to win@evil.example", "link"),
        ("[Card payments](//evil.example)", "link"),
        ("evil.example/path now", "link"),
        ("javascript:alert(1)", "link"),
        ("<script>alert(1)</script>", "link"),
        ("&lt;img src=x onerror=alert(1)&gt;", "link"),
        ("Card payments <a href='x'>", "link"),
        ("Customers who paid by card twice and now would like to have their money back soon", "too_long"),
        ("12345", "not_text"),
        ("?!, --- 5", "not_text"),
        ("A", "not_text"),
        ("of the", "not_text"),
        ("😀😀", "not_text"),
    ],
)
def test_what_is_no_label_is_refused(answer, reason) -> None:
    found = clean(answer, CARDS)
    assert found == Cleaned(None, reason)
    assert found.reason in REASONS


@pytest.mark.parametrize("text", ["", "\n", "Sure!\n", "Here is a label for this topic:\n\n", "<think>\n", "<think>\nThe user wants"])
def test_what_only_announces_a_label_is_known(text) -> None:
    assert announces(text)


@pytest.mark.parametrize("text", ["Card payments", "Sure!\nCard payments", "I cannot help", "Label: Card payments\n"])
def test_what_says_something_announces_nothing(text) -> None:
    assert not announces(text)


def test_the_examples_words_are_a_label_where_the_topic_has_them() -> None:
    assert clean(EXAMPLES[1][1], MEAT) == Cleaned(EXAMPLES[1][1])
    assert clean("Short labels", Ask(("Labels on food should be short.",), ("labels", "short"))) == Cleaned("Short labels")
    assert clean("C", Ask((), ("c", "pointer"))) == Cleaned("C")


def test_short_documents_may_be_labels_long_ones_are_copies() -> None:
    title = "Card payments abroad"
    assert clean(title, Ask((title,), ())) == Cleaned(title)
    assert clean("Why is there a fee", CARDS) == Cleaned("Why is there a fee")


def test_the_words_of_a_given_prompt_are_known() -> None:
    template = load(LlmConfig(prompt="Name the complaint that these bank customers have in common: [DOCUMENTS]", system_prompt=""))
    assert clean("The complaint that these bank customers have", CARDS, prompt=template.own) == Cleaned(None, "echo")
    assert clean("Complaints of bank customers", CARDS, prompt=template.own) == Cleaned("Complaints of bank customers")


def test_a_long_label_ends_at_a_word() -> None:
    words = "Intergovernmental telecommunication infrastructure standardisation responsibilities, harmonisation"
    found = clean(words, CARDS).label
    assert found == "Intergovernmental telecommunication infrastructure standardisation"
    assert clean("x1y2" + "ab" * 60, CARDS).reason == "loop"
    german = "Rindfleischetikettierungsüberwachungsaufgabenübertragungsgesetz" * 2
    assert clean(german, CARDS).label == german[:LONGEST]
    accents = clean("Z" + "\u0301\u0323" * 50 + "algo text", CARDS).label
    assert accents is not None
    assert len(accents) < 20


@pytest.mark.parametrize(
    "answer",
    [
        "*" * 4000,
        "*a " * 1500,
        "<" * 4000,
        "&lt;" * 2000,
        "a-" * 2000,
        "\"'" * 2000,
        "(" * 4000,
        "x" * 10**6,
        "Label: " * 600,
        "a</think>" * 10**5,
    ],
)
def test_answers_made_to_take_long_do_not(answer) -> None:
    begun = time.process_time()
    clean(answer, CARDS)
    assert time.process_time() - begun < 1


WORDS = (
    "Label:|Topic name:|The label is|Sure!|Here is|</s>|[INST]|[IN|ST]|"
    "<|im_start|>|assistant|<b>|</b>|<|>|&lt;|&amp;|gt;|&#91;|**|_|`|\"|'|“|"
    "«|»|-|1.|#|.|card|Payments|the|meat|label|U.S.|http://|@|.com|(|)|[|]|{|}|:|م|水。|é|😀|<think>|</think>|KEYWORDS|I cannot|sorry"
)
HIDDEN = ["\n", " ", " ", " ", "|", "\u202e", "\u200b", "\u200c", "\x1b[31m", "\x00", "\ud800", "\u0301", "<|im_start|>", "A" * 50]
PIECES = st.sampled_from(WORDS.split("|") + HIDDEN)
ANSWERS = st.text(max_size=200) | st.lists(PIECES, max_size=14).map("".join)


@given(ANSWERS, st.sampled_from([CARDS, MEAT, EXAMPLES[1][0], Ask((), ())]), st.sampled_from(["", SYSTEM]))
@example("&amp;amp;amp;amp;amp;amp;amp;amp;amp;amp;amp;lt;b", CARDS, "")
@example("[IN\u200bST] </s Card", CARDS, "")
@settings(max_examples=400, deadline=None)
def test_a_label_is_one_short_plain_line_and_stays_so(answer, ask, prompt) -> None:
    found = clean(answer, ask, prompt=prompt)
    if found.label is None:
        assert found.reason in REASONS
        return
    label = found.label
    assert found.reason is None
    assert 0 < len(label) <= LONGEST
    assert len(label.split()) <= LONGEST_WORDS
    assert label == " ".join(label.split())
    assert len(label.splitlines()) == 1
    assert unicodedata.is_normalized("NFC", label)
    assert not set(label) & set("<>`\u200b\u202e\ufeff")
    assert "**" not in label
    assert not any(unicodedata.category(c) in ("Cc", "Cs", "Co", "Zl", "Zp") for c in label)
    assert not MARKERS.search(label)
    assert clean(label, ask, prompt=prompt) == found
    assert check({0: label}, [0]) == {0: label}


@given(st.none() | st.integers() | st.binary() | st.text(max_size=80), st.lists(st.text(max_size=80), max_size=3), st.text(max_size=80))
@settings(max_examples=150, deadline=None)
def test_nothing_makes_it_raise(answer, texts, prompt) -> None:
    assert isinstance(clean(answer, Ask(tuple(texts), tuple(texts)), prompt=prompt), Cleaned)
