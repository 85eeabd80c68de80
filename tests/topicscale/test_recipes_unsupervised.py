"""Recipes that need texts alone: what they make of them, what they refuse, and that training on it teaches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from deltalake import write_deltalake
from sentence_transformers import SentenceTransformer

from tests.topicscale.recipes import MINILM, TEXTS, examples, falls, fit, texts
from topicscale.config import FinetuneConfig
from topicscale.errors import ConfigError, InputError, ModelError
from topicscale.finetune import base as bases
from topicscale.finetune import words
from topicscale.finetune.batches import Batches, dataset, sizes_of
from topicscale.finetune.recipes import recipe
from topicscale.finetune.recipes.crop import lengths
from topicscale.finetune.recipes.simcse import dropout
from topicscale.finetune.steps import parse


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> bases.Base:
    """A language model without mask token, cross-attention or dropout."""
    from transformers import LlamaConfig, LlamaModel

    folder = tmp_path_factory.mktemp("llama")
    config = LlamaConfig(vocab_size=50, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
    LlamaModel(config).save_pretrained(folder)
    return bases.inspect(str(folder))


@pytest.fixture
def model() -> SentenceTransformer:
    return bases.build(bases.inspect("all-MiniLM-L6-v2"), layers=2)


def loss_of(name: str, model: SentenceTransformer, *, similarity: str = "cosine", workers: int = 1, **options: object):
    one = recipe(name)
    return one.loss(model, one.with_defaults(options), base=str(MINILM.path), similarity=similarity, workers=workers)


# words


@pytest.mark.parametrize(
    ("text", "number"),
    [("one  two\nthree", 3), ("don't stop, now!", 3), ("银行卡", 3), ("我的 card 丢了", 5), ("カード", 3), ("บัตร", 3), ("a", 1)],
)
def test_words_are_split_and_joined_to_the_same_text(text: str, number: int):
    found = words.split(text)
    assert len(found) == number
    assert "".join(found) == text


def test_words_kept_do_not_grow_together():
    class Draw:
        values = iter([0.9, 0.1, 0.9, 0.1, 0.9])

        def random(self) -> float:
            return next(self.values)

    assert words.delete(words.split("我的 card 丢了"), 0.5, Draw()) == "我 card 了"  # type: ignore[arg-type]


# TSDAE


def test_tsdae_deletes_about_60_percent_and_leaves_one_word():
    long = " ".join(f"word{i}" for i in range(1000))
    table = examples("tsdae", texts([long, "one", "two words", long]))
    assert table.schema.names == ["damaged", "original"]
    damaged, original = table["damaged"].to_pylist(), table["original"].to_pylist()
    assert original == [long, "one", "two words", long]
    assert damaged[0] == damaged[3]
    assert 350 <= len(damaged[0].split()) <= 450
    assert damaged[0].split() == sorted(damaged[0].split(), key=lambda word: int(word.removeprefix("word")))
    assert damaged[1] == "one"
    assert damaged[2] in ("two", "words", "two words")


def test_tsdae_noise_depends_on_seed_and_text_alone():
    first = examples("tsdae", texts(TEXTS))
    assert first.equals(examples("tsdae", texts(TEXTS)))
    assert first.slice(3, 4).equals(examples("tsdae", texts(TEXTS[3:7])))
    assert not first.equals(examples("tsdae", texts(TEXTS), seed=2))


def test_tsdae_refuses_what_has_no_cross_attention(llama: bases.Base):
    recipe("tsdae").check(bases.inspect("all-MiniLM-L6-v2"), recipe("tsdae").options)
    with pytest.raises(ModelError, match=r"cross-attention.*Got 'llama' instead. Use simcse or crop for it"):
        recipe("tsdae").check(llama, recipe("tsdae").options)
    with pytest.raises(ConfigError, match=r"deletion.*more than 0 and less than 1. Got 1 instead"):
        recipe("tsdae").check(llama, {"deletion": 1})


def test_tsdae_decoder_sees_the_embedding_and_shares_the_encoders_weights(model: SentenceTransformer):
    loss = loss_of("tsdae", model)
    assert loss.decoder.config.num_hidden_layers == 2  # the model's own, not its folder's six
    own = {id(weight) for weight in loss.decoder.parameters()}
    shared = [name for name, weight in model.transformers_model.named_parameters() if id(weight) in own]
    assert len(shared) == 5 + 2 * 16  # five weights of the embeddings, 16 a layer
    ids = model.preprocess(["my card is lost"])["input_ids"]
    seen = [loss.decoder(input_ids=ids, encoder_hidden_states=torch.full((1, 1, 384), value)).logits for value in (0.1, -0.1)]
    assert not torch.equal(*seen)


def language_of(folder: Path, model: SentenceTransformer):
    """Save a small BERT with its language model's head as a plain base."""
    from transformers import BertConfig, BertForMaskedLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    language = BertForMaskedLM(BertConfig(vocab_size=len(model.tokenizer), hidden_dropout_prob=0, attention_probs_dropout_prob=0, **sizes))
    torch.nn.init.normal_(language.cls.predictions.bias)
    language.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)
    return language


def test_tsdae_decodes_with_a_plain_bases_own_head(tmp_path: Path, model: SentenceTransformer):
    head = language_of(tmp_path, model).cls.predictions
    plain = bases.build(bases.inspect(str(tmp_path)))
    loss = recipe("tsdae").loss(plain, {}, base=str(tmp_path), similarity="cosine", workers=1)
    found = loss.decoder.cls.predictions
    for ours, theirs in ((found.transform.dense, head.transform.dense), (found.decoder, head.decoder)):
        assert torch.equal(ours.weight, theirs.weight)
        assert torch.equal(ours.bias, theirs.bias)
    assert found.decoder.weight is plain.transformers_model.get_input_embeddings().weight


@pytest.mark.parametrize("order", [("mlm", "tsdae"), ("tsdae", "mlm")])
def test_mlm_and_tsdae_together_write_with_the_encoders_own_words(order: tuple[str, str], model: SentenceTransformer):
    losses = {name: loss_of(name, model) for name in order}
    words = model.transformers_model.get_input_embeddings().weight
    assert losses["mlm"].head.get_output_embeddings().weight is words
    assert losses["tsdae"].decoder.get_output_embeddings().weight is words


def test_tsdae_warms_up_where_it_is_asked_to():
    asked = FinetuneConfig(steps=("tsdae",))
    assert [step.scheduler for step in parse(asked)] == ["constant"]
    assert [step.scheduler for step in parse(replace(asked, warmup=0.1))] == ["constant_with_warmup"]
    assert [step.scheduler for step in parse(replace(asked, steps=("crop",), warmup=0.2))] == ["linear"]


def test_tsdae_trains(tmp_path: Path):
    losses = fit(tmp_path, "tsdae", examples("tsdae", texts(TEXTS)), options={})  # which sees that frozen weights stay, tied or not
    assert falls(losses)
    assert losses[0] > 8  # near log(30522) = 10.3: cross-attention and the head's transform are new


def test_tsdae_refuses_low_rank_additions():
    with pytest.raises(ConfigError, match=r"finetune\.lora must be left out"):
        recipe("tsdae").check_settings(bases.inspect("all-MiniLM-L6-v2"), FinetuneConfig(lora={"r": 4}), {})


# SimCSE


def test_simcse_pairs_each_different_text_with_itself():
    table = examples("simcse", texts(["a", "b", "a"]))
    assert table.to_pydict() == {"anchor": ["a", "b"], "positive": ["a", "b"]}


def test_simcse_needs_dropout(llama: bases.Base):
    one = recipe("simcse")
    minilm = bases.inspect("all-MiniLM-L6-v2")
    one.check_settings(minilm, FinetuneConfig(), {})
    one.check_settings(llama, FinetuneConfig(dropout=0.1), {})
    for base, settings in ((minilm, FinetuneConfig(dropout=0.0)), (llama, FinetuneConfig())):
        with pytest.raises(ModelError, match=r"Set finetune\.dropout=0\.1"):
            one.check_settings(base, settings, {})
    with pytest.raises(ModelError, match=r"Set finetune\.dropout=0\.1"):
        loss_of("simcse", bases.build(bases.inspect("all-MiniLM-L6-v2"), layers=1, dropout=0.0))
    assert dropout({"model_type": "llama"}) == {"attention_dropout": 0.0}
    assert dropout({"model_type": "bert", "hidden_dropout_prob": 0.0}) == {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.1}
    assert dropout({"model_type": "nothing"}) == {}
    with pytest.raises(ConfigError, match=r"scale.*more than 0, or left out\. Got -1 instead"):
        one.check(llama, {"scale": -1})


def test_simcse_trains(tmp_path: Path):
    table = examples("simcse", texts(TEXTS))
    assert falls(fit(tmp_path, "simcse", table, options={}, similarity="dot", pooling="cls"))


@pytest.mark.parametrize(("similarity", "workers", "expected"), [("cosine", 1, (20.0, False)), ("dot", 2, (1.0, True))])
def test_in_batch_loss_follows_similarity_and_workers(
    model: SentenceTransformer, similarity: str, workers: int, expected: tuple[float, bool]
):
    for name in ("simcse", "crop"):
        loss = loss_of(name, model, similarity=similarity, workers=workers)
        assert (loss.scale, loss.gather_across_devices) == expected
        assert loss.similarity_fct.__name__ == {"cosine": "cos_sim", "dot": "dot_score"}[similarity]
    assert loss_of("crop", model, scale=5).scale == 5.0


# contrastive tension


def test_ct_makes_one_positive_for_seven_negatives():
    table = examples("ct", texts([*TEXTS, TEXTS[0]])).to_pydict()
    assert sorted(table["second"]) == sorted(TEXTS)
    assert table["label"] == ([1.0] + [0.0] * 7) * 2
    assert all((a == b) == bool(label) for a, b, label in zip(table["first"], table["second"], table["label"], strict=True))
    assert len(set(table["first"])) == 2
    assert examples("ct", texts(TEXTS), seed=2).to_pydict()["first"] != table["first"]
    assert examples("ct", texts(TEXTS)).to_pydict() == table
    assert examples("ct", texts(TEXTS), k=3).to_pydict()["label"] == [1.0, 0.0, 0.0, 0.0] * 4


def test_ct_with_negatives_in_batch_takes_one_column():
    assert examples("ct", texts(["a", "b", "a"]), negatives="in-batch").to_pydict() == {"text": ["a", "b"]}


@pytest.mark.parametrize(("name", "options"), [("ct", {"negatives": "in-batch"}), ("simcse", {})])
def test_in_a_second_pass_no_text_is_its_own_negative(name: str, options: dict[str, str], tmp_path: Path):
    write_deltalake(tmp_path, pa.concat_tables([examples(name, texts(TEXTS), seed=seed, **options) for seed in (1, 2)]))
    data, one = dataset(str(tmp_path), 0), recipe(name)
    unique = [one.unique(one.with_defaults(options))]
    sizes = sizes_of([data], unique, 8, seed=1, workers=1)
    found = list(Batches([data], unique, sizes, seed=1, rank=0, workers=1))
    assert [len(set(data[batch][data.column_names[0]])) for batch in found] == [8] * 4


def test_ct_refuses_one_text_and_unknown_negatives():
    with pytest.raises(InputError, match=r"two different texts\. Got 1"):
        examples("ct", texts(["a", "a"]))
    with pytest.raises(ConfigError, match=r"sampled, in-batch\. Got 'hard'"):
        recipe("ct").check(None, recipe("ct").with_defaults({"negatives": "hard"}))
    with pytest.raises(ConfigError, match=r"k.*whole number, at least 1\. Got 7\.5"):
        recipe("ct").check(None, recipe("ct").with_defaults({"k": 7.5}))
    with pytest.raises(ConfigError, match=r"scale of the recipe ct must be left out with negatives: sampled.*Got 10"):
        recipe("ct").check(None, recipe("ct").with_defaults({"scale": 10}))
    with pytest.raises(ConfigError, match=r"k of the recipe ct must be left out with negatives: in-batch.*Got 3"):
        recipe("ct").check(None, recipe("ct").with_defaults({"k": 3, "negatives": "in-batch"}))


@pytest.mark.parametrize("options", [{}, {"negatives": "in-batch"}])
def test_ct_trains_the_model_that_is_kept(tmp_path: Path, options: dict[str, str]):
    losses = fit(tmp_path, "ct", examples("ct", texts(TEXTS), **options), options=options, similarity="dot", learning_rate=1e-4)
    assert falls(losses)


def test_ct_keeps_model_2_apart_from_its_copy(model: SentenceTransformer):
    loss = loss_of("ct", model)
    assert loss.model2 is model
    assert not {id(weight) for weight in loss.model1.parameters()} & {id(weight) for weight in model.parameters()}


# cropping


@pytest.mark.parametrize(("number", "expected"), [(1, (1, 1)), (4, (4, 4)), (6, (4, 6)), (10, (4, 8)), (30, (4, 15)), (200, (20, 100))])
def test_short_documents_give_larger_shares(number: int, expected: tuple[int, int]):
    assert lengths(number, 0.1, 0.5, 4) == expected


def test_crops_are_spans_of_their_document():
    long = " ".join(f"w{i}" for i in range(100))
    table = examples("crop", texts([long, "a b", long, "x y z u v"]), deletion=0.0)
    assert table.schema.names == ["anchor", "positive"]
    anchors, positives = table["anchor"].to_pylist(), table["positive"].to_pylist()
    assert len(anchors) == 3
    assert anchors[0] != positives[0]
    for span in (anchors[0], positives[0]):
        assert f" {span} " in f" {long} "
        assert 10 <= len(span.split()) <= 50
    assert (anchors[1], positives[1]) == ("a b", "a b")
    assert anchors[2] in ("x y z u", "y z u v", "x y z u v")


def test_crops_differ_by_pass_and_lose_a_tenth():
    long = " ".join(f"w{i}" for i in range(2000))
    shares = {"min_share": 0.5, "max_share": 0.5}
    first = examples("crop", texts([long]), **shares)
    assert first.equals(examples("crop", texts([long]), **shares))
    assert not first.equals(examples("crop", texts([long]), seed=2, **shares))
    assert 870 <= len(first["anchor"][0].as_py().split()) <= 930


def test_crop_refuses_shares_that_do_not_fit():
    with pytest.raises(ConfigError, match=r"min_share.*at most max_share, 0\.5\. Got 0\.6"):
        recipe("crop").check(None, recipe("crop").with_defaults({"min_share": 0.6}))
    with pytest.raises(ConfigError, match="Did you mean 'max_share'"):
        recipe("crop").with_defaults({"max_shares": 0.6})


def test_crop_trains(tmp_path: Path):
    table = examples("crop", texts([f"{text} {other}" for text, other in pairwise(TEXTS)]), words=8)
    assert falls(fit(tmp_path, "crop", table, options={}, batch=8))


# nearest neighbours


class Letters:
    """Embeds a text as its first letter's axis, its second letter turning it a little."""

    def embed(self, model: str, texts: Sequence[str]) -> np.ndarray:
        assert model == str(MINILM.path)
        vectors = np.zeros((len(texts), 27), np.float32)
        for row, text in enumerate(texts):
            vectors[row, ord(text[0]) - 97], vectors[row, 26] = 1, (ord(text[1]) - 97) / 20
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_clnn_pairs_texts_with_one_of_their_nearest():
    names = [a + b for a in "abcd" for b in "abcde"]
    one = recipe("clnn")
    options = one.with_defaults({"neighbours": 4})
    passes = [
        one.examples(texts([*names, "aa"]), "texts", options, base=str(MINILM.path), seed=seed, tools=Letters()).to_pydict()
        for seed in (1, 2, 1)
    ]
    assert passes[0] == passes[2]
    assert passes[0]["positive"] != passes[1]["positive"]
    for made in passes:
        assert made["anchor"] == names
        for row, (anchor, positive, label) in enumerate(zip(made["anchor"], made["positive"], made["label"], strict=True)):
            assert anchor != positive
            assert label[:2] == [row, names.index(positive)]
            assert [{names[i] for i in part} for part in (label[2:6], label[6:])] == [
                {name for name in names if name[0] == anchor[0]} - {one} for one in (anchor, positive)
            ]


def test_clnn_refuses_too_few_texts_and_options_out_of_range():
    one = recipe("clnn")
    with pytest.raises(InputError, match=r"more different texts than its option neighbours, 16\. Got 16"):
        examples("clnn", texts(TEXTS), neighbours=16)
    with pytest.raises(ConfigError, match=r"neighbours.*whole number, at least 1\. Got 0"):
        one.check(None, one.with_defaults({"neighbours": 0}))


def test_clnn_loss_by_hand(model: SentenceTransformer):
    model.eval()
    near = {0: [4, 1], 1: [0, 7], 2: [5, 8], 3: [6, 2], 4: [9, 8], 5: [2, 7], 6: [8, 9]}  # 1 is near 0, 2 near 3, whatever they say
    names, drawn = [0, 1, 2, 3], [4, 0, 5, 6]
    labels = torch.tensor([[a, p, *near[a], *near[p]] for a, p in zip(names, drawn, strict=True)])
    features = [model.preprocess([TEXTS[i] for i in side]) for side in (names, drawn)]
    found = loss_of("clnn", model)(features, labels)
    of, expected = names + drawn, []
    vectors = model.encode([TEXTS[i] for i in of], normalize_embeddings=True)
    for i, name in enumerate(of):
        scores = {j: float(vectors[i] @ vectors[j]) / 0.07 for j in range(8) if of[j] != name}
        whole = np.log(sum(np.exp(list(scores.values()))))
        expected.append(np.mean([whole - score for j, score in scores.items() if of[j] in near[name] or name in near[of[j]]]))
    assert found.item() == pytest.approx(np.mean(expected), abs=1e-4)
    found.backward()
    assert all(torch.isfinite(weight.grad).all() for weight in model.parameters() if weight.grad is not None)


def test_clnn_trains(tmp_path: Path):
    order = [(row + 1) % 16 for row in range(16)]
    label = pa.array([[row, near, near, order[near]] for row, near in enumerate(order)], pa.list_(pa.int64()))
    table = pa.table({"anchor": TEXTS, "positive": [TEXTS[near] for near in order], "label": label})
    assert falls(fit(tmp_path, "clnn", table, options={}, batch=5))


# masked language modelling


def test_mlm_leaves_texts_as_they_are():
    assert examples("mlm", texts(["a", "a"])).to_pydict() == {"text": ["a", "a"]}


def test_mlm_masks_15_percent_of_ordinary_tokens(model: SentenceTransformer):
    loss = loss_of("mlm", model)
    tokenizer = model.tokenizer
    ids = torch.full((200, 102), tokenizer.convert_tokens_to_ids("card"))
    ids[:, 0], ids[:, 91], ids[:, 92:] = tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.pad_token_id
    attended = (ids != tokenizer.pad_token_id).long()
    torch.manual_seed(0)
    given, chosen = loss.choose(ids, attended)
    ordinary = 200 * 90
    assert chosen[:, 1:91].sum() == chosen.sum()
    assert abs(chosen.sum().item() / ordinary - 0.15) < 0.01
    masked, same = given[chosen] == tokenizer.mask_token_id, given[chosen] == ids[chosen]
    assert abs(masked.float().mean().item() - 0.8) < 0.03
    assert abs(same.float().mean().item() - 0.1) < 0.03
    assert torch.equal(given[~chosen], ids[~chosen])
    torch.manual_seed(0)
    assert torch.equal(loss.choose(ids, attended)[0], given)


def test_mlm_chooses_a_token_where_a_batch_has_few(model: SentenceTransformer):
    loss = loss_of("mlm", model, share=1e-6)
    features = model.preprocess(["card"])
    _, chosen = loss.choose(features["input_ids"], features["attention_mask"])
    assert chosen.tolist() == [[False, True, False]]
    unknown = {key: value.clone() if hasattr(value, "clone") else value for key, value in features.items()}
    unknown["input_ids"][0, 1] = model.tokenizer.unk_token_id
    nothing = loss([unknown])
    nothing.backward()
    assert nothing.item() == 0.0
    assert all(weight.grad is not None for weight in loss.head.parameters())


def test_mlm_guesses_as_the_language_model_itself_does(tmp_path: Path, model: SentenceTransformer):
    language = language_of(tmp_path, model)
    plain = bases.build(bases.inspect(str(tmp_path)))
    loss = recipe("mlm").loss(plain, {"share": 0.3}, base=str(tmp_path), similarity="cosine", workers=1)
    features = plain.preprocess(["my card has not arrived", "the transfer was declined"])
    torch.manual_seed(1)
    ours = loss([features])
    torch.manual_seed(1)
    given, chosen = loss.choose(features["input_ids"], features["attention_mask"])
    labels = features["input_ids"].masked_fill(~chosen, -100)
    theirs = language(input_ids=given, attention_mask=features["attention_mask"], labels=labels).loss
    assert chosen.sum() >= 2
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-6)
    ours.backward()
    theirs.backward()
    mine = plain.transformers_model.get_input_embeddings().weight.grad  # as input and, tied, as output
    assert torch.allclose(mine, language.get_input_embeddings().weight.grad, atol=2e-5)


def test_mlm_refuses_what_has_no_mask_token(llama: bases.Base):
    one = recipe("mlm")
    one.check(bases.inspect("all-MiniLM-L6-v2"), one.options)
    with pytest.raises(ModelError, match=r"mask token.*\(llama\) instead"):
        one.check(llama, one.options)


def test_mlm_trains(tmp_path: Path):
    table = texts([f"{text} {other}" for text, other in pairwise(TEXTS)])
    losses = fit(tmp_path, "mlm", table, options={"share": 0.3})
    assert falls(losses)
    assert losses[0] > 8


def test_recipes_that_several_processes_cannot_train():
    names = ("tsdae", "simcse", "ct", "crop", "clnn", "mlm", "setfit")
    assert [name for name in names if not recipe(name).parallel] == ["tsdae", "ct"]
    assert isinstance(examples("crop", texts([])), pa.Table)
