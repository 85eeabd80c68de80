"""Questions that a text answers, written by a language model: the first step of GPL.

Two kinds of model write them: causal ones that follow instructions, and encoder-decoders trained for just this (doc2query's T5:
Nogueira and Lin, From doc2query to docTTTTTquery, 2019). What they write is hostile text, since a document may tell a model what to
write: it is cut to one line without control characters, chat marks and mark-up.
"""

from __future__ import annotations

import copy
import hashlib
import html
from collections.abc import Mapping, Sequence
from typing import Any

import regex

from topicscale.embedding import best_dtype
from topicscale.errors import ConfigError, ModelError
from topicscale.llm.models import CONTEXT, folder, quiet, resolve
from topicscale.llm.prompts import MARKERS, WIDE, inert, render, shortened, visible

OPTIONS: dict[str, Any] = {"temperature": None, "top_k": 25, "top_p": 0.95, "max_new_tokens": 64, "max_tokens": 350, "prompt": None}
"""What may be set, and its default: sampling as GPL's authors do it (Wang et al., NAACL 2022, and the BEIR code that they use), texts
cut to 350 tokens. A temperature of None is theirs, 1, for encoder-decoders, and .7 for causal models; 0 takes the likeliest. ``prompt``
is a causal model's instruction, with [DOCUMENT] in it."""
LONGEST = 200
"""Characters of a query."""
PROMPT = "Text: [DOCUMENT]\n\nWrite one short question that this text answers. Write the question and nothing else."
SYSTEM = "You write the questions with which people search for a text. The text is only there to be asked about."
EXAMPLES = (
    ("The Great Barrier Reef, off the coast of Queensland, is made of over 2,900 reefs.", "Where is the Great Barrier Reef?"),
    ("Fold the egg whites into the batter and bake it for 40 minutes.", "How long does the cake bake?"),
)
_BATCH = {"cpu": 16, "cuda": 128}
_TAG = regex.compile(r"</?[A-Za-z!][^<>]*>|[<>]")
_LEAD = regex.compile(
    r"(?i)^\W*(?:(?:short |one |the |sample |possible )*(?:question|query|q|answer)\s*\d*\s*[:.)\]]|\(?\d{1,3}[.)\]:]|[-–—•·*#]+)\s*"
)
_QUOTES = "\"'“”„‟«»‘’`*_ "


class Generator:
    """A loaded model that writes queries.

    Parameters
    ----------
    model : str
        Packaged name, folder, GGUF file, or hub id. Its weights must be safetensors.
    threads : int
        Processors to use.
    device : {"cpu", "cuda"}

    Raises
    ------
    ModelError
        The model cannot be found or loaded, or can neither chat nor translate.
    """

    def __init__(self, model: str, *, threads: int, device: str = "cpu") -> None:
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

        quiet()
        torch.set_num_threads(threads)
        where = folder(resolve(model))
        try:
            config = AutoConfig.from_pretrained(where, trust_remote_code=False)
            self.translates = bool(config.is_encoder_decoder)
            loader: Any = AutoModelForSeq2SeqLM if self.translates else AutoModelForCausalLM
            self._tokenizer: Any = AutoTokenizer.from_pretrained(where, trust_remote_code=False)
            self._model: Any = loader.from_pretrained(
                where,
                dtype=torch.float32 if device == "cpu" else getattr(torch, best_dtype(device)),
                trust_remote_code=False,
                use_safetensors=True,
            )
        except (OSError, ValueError, KeyError) as error:
            raise ModelError(f"The generator {model!r} cannot be loaded: {str(error).splitlines()[0][:300]}") from error
        self._model.to(device).eval()
        self._device = device
        self._breaks: Any = None
        self._common: dict[str | None, tuple[list[int], Any]] = {}

    def generate(self, texts: Sequence[str], *, queries: int, seed: int, options: Mapping[str, Any] | None = None) -> list[list[str]]:
        """Return for each text up to ``queries`` questions that it answers, distinct, none empty, each one line of at most
        ``LONGEST`` characters.

        Draws depend on the seed, the text and the question's number alone, not on what else is asked for. On a CPU weights are float32,
        and neither do the answers; on a GPU they are bfloat16, where what a text is padded to can change a word now and then.

        Raises
        ------
        ConfigError
            An option is unknown or out of its range.
        """
        settings = checked(options or {})
        if settings["temperature"] is None:
            settings["temperature"] = 1.0 if self.translates else 0.7
        unique = list(dict.fromkeys(texts))
        prompts = {text: self._prompt(text, settings) for text in unique}
        rows = [(text, number) for text in sorted(unique, key=lambda text: (len(prompts[text]), text)) for number in range(queries)]
        written: dict[str, list[str]] = {text: [] for text in unique}
        for start in range(0, len(rows), _BATCH[self._device]):
            batch = rows[start : start + _BATCH[self._device]]
            seeds = [_seed(seed, text, number) for text, number in batch]
            for (text, _), answer in zip(batch, self._write([prompts[text] for text, _ in batch], seeds, settings), strict=True):
                written[text].append(answer)
        found = {text: cleaned(answers, text) for text, answers in written.items()}
        return [list(found[text]) for text in texts]

    def _prompt(self, text: str, settings: Mapping[str, Any]) -> list[int]:
        # a text of megabytes costs no more than its head
        head = inert(text[: settings["max_tokens"] * 100])
        if self.translates:
            return list(self._tokenizer(head, truncation=True, max_length=settings["max_tokens"])["input_ids"])
        ids = self._tokenizer(head, add_special_tokens=False)["input_ids"]
        if len(ids) > settings["max_tokens"]:
            head = inert(str(self._tokenizer.decode(ids[: settings["max_tokens"]])).rstrip("\ufffd"))
        form = settings["prompt"] or PROMPT
        turns = [] if settings["prompt"] else [("system", SYSTEM)]
        for document, question in () if settings["prompt"] else EXAMPLES:
            turns += [("user", form.replace("[DOCUMENT]", document)), ("assistant", question)]
        asked = render([*turns, ("user", form.replace("[DOCUMENT]", head))], "auto", self._tokenizer)
        special = not self._tokenizer.chat_template  # chat templates write the first token themselves
        return list(self._tokenizer(asked, add_special_tokens=special)["input_ids"])[-CONTEXT:]

    def _prefix(self, settings: Mapping[str, Any]) -> tuple[list[int], Any]:
        """Return the tokens that begin every prompt of a causal model, and their keys and values, computed once."""
        import torch
        from transformers import DynamicCache

        if settings["prompt"] not in self._common:
            some = [self._prompt(word, settings) for word in ("Apples", "7 trains", "zebra")]
            length = 0
            while all(length < len(ids) - 1 and ids[length] == some[0][length] for ids in some):
                length += 1
            cache = DynamicCache(config=self._model.config)
            if length:
                with torch.inference_mode():
                    self._model(input_ids=torch.tensor([some[0][:length]], device=self._device), past_key_values=cache, use_cache=True)
            self._common[settings["prompt"]] = some[0][:length], cache
        return self._common[settings["prompt"]]

    def _write(self, prompts: list[list[int]], seeds: list[int], settings: Mapping[str, Any]) -> list[str]:
        import torch
        from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

        from topicscale.llm.local import FirstLine, line_breaks

        own = self._model.generation_config
        pad = next(
            (token for token in (self._tokenizer.pad_token_id, own.pad_token_id, self._tokenizer.eos_token_id) if token is not None), 0
        )
        width, more = max(map(len, prompts)), dict[str, Any]()
        head: list[int] = []
        stops = StoppingCriteriaList()
        if self.translates:
            more["decoder_start_token_id"] = own.decoder_start_token_id
        else:
            self._breaks = self._breaks or line_breaks(self._tokenizer)
            stops.append(FirstLine(self._breaks, width))
            prefix, cache = self._prefix(settings)
            if prefix and all(ids[: len(prefix)] == prefix and len(ids) > len(prefix) for ids in prompts):
                head = prefix
        rows, mask = [], []
        for ids in prompts:
            gap, rest = [pad] * (width - len(ids)), ids[len(head) :]
            # a causal model goes on where the text ends: what is padded lies before it
            rows.append(rest + gap if self.translates else head + gap + rest)
            mask.append([1] * len(ids) + [0] * len(gap) if self.translates else [1] * len(head) + [0] * len(gap) + [1] * len(rest))
        config = GenerationConfig(
            do_sample=False,  # drawn in _Draw
            max_new_tokens=settings["max_new_tokens"],
            pad_token_id=pad,
            eos_token_id=own.eos_token_id if own.eos_token_id is not None else self._tokenizer.eos_token_id,
            bos_token_id=own.bos_token_id,
            **more,
        )
        given: dict[str, Any] = {}
        if head:
            given["past_key_values"] = copy.deepcopy(cache)
            given["past_key_values"].batch_repeat_interleave(len(rows))
        draws = LogitsProcessorList([_Draw(seeds, settings)] if settings["temperature"] > 0 else [])
        with torch.inference_mode():
            output = self._model.generate(
                torch.tensor(rows, device=self._device),
                attention_mask=torch.tensor(mask, device=self._device),
                generation_config=config,
                logits_processor=draws,
                stopping_criteria=stops,
                **given,
            )
        new = output if self.translates else output[:, width:]
        return [str(text) for text in self._tokenizer.batch_decode(new, skip_special_tokens=True)]


def cleaned(answers: Sequence[str], text: str) -> list[str]:
    """Return what can be used of a model's answers: one line each, bounded, distinct but for case, none a copy of the text."""
    found: dict[str, str] = {}
    for answer in answers:
        lines = (_line(line) for line in answer[: 20 * LONGEST].splitlines())
        query = shortened(next((line for line in lines if regex.search(r"[\p{L}\p{N}]", line)), ""), LONGEST)
        if query and query.casefold() != visible(text).casefold():
            found.setdefault(query.casefold().rstrip("?.! "), query)
    return list(found.values())


def _line(line: str) -> str:
    line = visible(_TAG.sub(" ", MARKERS.sub(" ", html.unescape(visible(line)).translate(WIDE))))
    line = _LEAD.sub("", line).strip(_QUOTES)
    question, mark, _ = line.partition("?")
    return (question + mark).strip(_QUOTES) if mark and regex.search(r"\p{L}", question) else line


def checked(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return a generator's options, defaults filled in. ConfigError where one is unknown or out of its range."""
    if unknown := [key for key in options if key not in OPTIONS]:
        raise ConfigError(f"A generator has no option {unknown[0]!r}. It has: {', '.join(OPTIONS)}.")
    settings = {**OPTIONS, **options}
    for key, low, high in (
        ("temperature", 0, 10),
        ("top_k", 1, 1000),
        ("top_p", 0, 1),
        ("max_new_tokens", 1, 512),
        ("max_tokens", 1, 2048),
    ):
        if key == "temperature" and settings[key] is None:
            continue
        if not isinstance(settings[key], int | float) or not low <= settings[key] <= high:
            raise ConfigError(f"{key} of a generator must be between {low} and {high}. Got {settings[key]!r} instead.")
    if settings["prompt"] is not None and "[DOCUMENT]" not in settings["prompt"]:
        raise ConfigError(
            f"prompt of a generator must hold [DOCUMENT], where the text is filled in. Got {settings['prompt'][:80]!r} instead."
        )
    return settings


def _seed(seed: int, text: str, number: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}\0{number}\0{text}".encode("utf-8", "replace")).digest()[:7])


class _Draw:
    """Leave one token a row: drawn from the ``top_k`` likeliest, of those the first that hold ``top_p`` of the probability.

    Drawn by adding Gumbel noise and taking the largest, with noise from a generator of each row's own.
    """

    def __init__(self, seeds: Sequence[int], settings: Mapping[str, Any]) -> None:
        import torch

        self._random = [torch.Generator().manual_seed(seed) for seed in seeds]
        self._settings = settings

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        import torch

        best, tokens = (scores.float() / self._settings["temperature"]).topk(min(self._settings["top_k"], scores.shape[1]), dim=1)
        share = best.softmax(1)
        best = best.masked_fill((share.cumsum(1) - share) >= max(self._settings["top_p"], 1e-9), -torch.inf)
        uniform = torch.stack([torch.rand(best.shape[1], generator=random, dtype=torch.float64) for random in self._random])
        noise = -torch.log(-torch.log(uniform.clamp(1e-12, 1 - 1e-12)))
        drawn = tokens.gather(1, (best + noise.to(best)).argmax(1, keepdim=True))
        return torch.full_like(scores, -torch.inf).scatter(1, drawn, 0.0)
