"""A causal language model in this process, through transformers: 4-bit weights by bitsandbytes, or whole ones.

What is the same in every prompt (what the model is told first, the worked example) is computed once and its keys and
values reused; prompts of like length are answered together.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from topicscale.config import LlmConfig
from topicscale.errors import ModelError
from topicscale.llm.backend import Answer, Ask, Batch
from topicscale.llm.clean import cut_short
from topicscale.llm.models import CONTEXT, computed_in, folder, quiet, resolve
from topicscale.llm.prompts import Template, load, prompt, token_ids


class Local:
    """A loaded model (see :class:`topicscale.llm.backend.Backend`).

    Parameters
    ----------
    threads : int
        Processors it may use.
    device : str
        ``cpu`` or ``cuda``.
    batch : Batch
        How much is answered in one pass.

    Raises
    ------
    ModelError
        The model cannot be loaded, or its context is too short for the bare prompt.
    """

    def __init__(self, config: LlmConfig, *, threads: int, device: str, batch: Batch) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

        quiet()
        torch.set_num_threads(threads)
        where = folder(resolve(config.model))
        dtype, quantization = getattr(torch, computed_in(config)), None
        if config.quantization == "nf4":
            quantization = BitsAndBytesConfig(
                load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
            )
        self._tokenizer: Any
        self._model: Any
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(where, trust_remote_code=False)
            self._model = AutoModelForCausalLM.from_pretrained(
                where,
                dtype=dtype,
                quantization_config=quantization,
                device_map=_place(device),
                trust_remote_code=False,
                use_safetensors=True,
            )
        except (OSError, ValueError, KeyError) as error:
            raise ModelError(f"The language model {config.model!r} cannot be loaded: {str(error).splitlines()[0][:300]}") from error
        self._model.eval()
        self._config, self._batch = config, batch
        self._template: Template = load(config)
        positions = getattr(self._model.config.get_text_config(), "max_position_embeddings", None) or CONTEXT
        self._limit = min(CONTEXT, positions) - config.max_new_tokens
        self._breaks = line_breaks(self._tokenizer)
        self._prefix, self._cache = self._constant()

    @property
    def memory(self) -> int:
        """Bytes of the weights as they are held."""
        return int(self._model.get_memory_footprint())

    def complete(self, asks: Sequence[Ask]) -> list[Answer]:
        """Return an answer for each, in order."""
        answers: list[Answer | None] = [None] * len(asks)
        tokens: dict[int, list[int]] = {}
        for i, ask in enumerate(asks):
            try:
                tokens[i] = self._tokens(self.prompt(ask))
            except ModelError as error:
                answers[i] = Answer(None, str(error))
        # of like length together, so that little is padded
        order = sorted(tokens, key=lambda i: (len(tokens[i]), i))
        for chosen in self._together(order, tokens):
            for i, answer in zip(chosen, self._generate([tokens[i] for i in chosen]), strict=True):
                answers[i] = answer
        for i in order:
            first = answers[i]
            if first is not None and first.text is not None and cut_short(first.text):
                answers[i] = self._generate([tokens[i]], whole=True)[0]
        return [answer if answer is not None else Answer(None, "no answer") for answer in answers]

    def _together(self, order: list[int], tokens: Mapping[int, list[int]]) -> Iterator[list[int]]:
        """Yield what is answered in one pass: prompts in ``order``, shortest first, that have room beside each other."""
        chosen: list[int] = []
        for i in order:
            width = len(tokens[i]) + self._config.max_new_tokens
            if chosen and (len(chosen) == self._batch.prompts or (len(chosen) + 1) * width > self._batch.tokens):
                yield chosen
                chosen = []
            chosen.append(i)
        if chosen:
            yield chosen

    def prompt(self, ask: Ask) -> str:
        """Return the text that the model reads, up to where its answer begins.

        Raises
        ------
        ModelError
            It does not fit the model's context, however much is left out.
        """

        count = lambda text: len(self._tokens(text))  # noqa: E731
        return prompt(ask, self._template, self._config.template, self._tokenizer, count=count, limit=self._limit)

    def _tokens(self, text: str) -> list[int]:
        return token_ids(text, self._tokenizer, self._config.template)

    def _constant(self) -> tuple[list[int], Any]:
        """Return the tokens that begin every prompt, and their keys and values."""
        import torch
        from transformers import DynamicCache

        some = [self._tokens(self.prompt(Ask((word,), (word,)))) for word in ("Apples", "7 trains", "zebra")]
        length = 0
        while all(length < len(ids) - 1 and ids[length] == some[0][length] for ids in some):
            length += 1
        prefix = some[0][:length]
        cache = DynamicCache(config=self._model.config)
        if prefix:
            with torch.inference_mode():
                self._model(input_ids=torch.tensor([prefix], device=self._model.device), past_key_values=cache, use_cache=True)
        return prefix, cache

    def _generate(self, prompts: list[list[int]], *, whole: bool = False) -> list[Answer]:
        """Return answers to prompts of tokens, their first lines or ``whole``."""
        import torch
        from transformers import GenerationConfig, StoppingCriteriaList

        config, pad = self._config, self._tokenizer.pad_token_id or self._tokenizer.eos_token_id or 0  # masked
        width = max(map(len, prompts))
        rows = torch.tensor([[pad] * (width - len(ids)) + ids for ids in prompts], device=self._model.device)
        mask = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in prompts], device=self._model.device)
        drawn: dict[str, Any] = {"do_sample": False}
        if config.temperature > 0:
            drawn = {"do_sample": True, "temperature": config.temperature, "top_k": 0, "top_p": 1.0}
            torch.manual_seed(config.seed)
        settings = GenerationConfig(
            max_new_tokens=config.max_new_tokens,
            repetition_penalty=config.repetition_penalty,
            pad_token_id=pad,
            eos_token_id=self._model.generation_config.eos_token_id,
            bos_token_id=self._model.generation_config.bos_token_id,
            **drawn,
        )
        with torch.inference_mode():
            output = self._model.generate(
                rows,
                attention_mask=mask,
                past_key_values=self._read(prompts, width),
                generation_config=settings,
                stopping_criteria=StoppingCriteriaList([] if whole else [FirstLine(self._breaks, width)]),
            )
        answers = []
        ends = settings.eos_token_id if isinstance(settings.eos_token_id, list) else [settings.eos_token_id]
        for ids, row in zip(prompts, output[:, width:].tolist(), strict=True):
            written = next((i for i, token in enumerate(row) if token in ends), len(row))
            text = str(self._tokenizer.decode(row[:written], skip_special_tokens=True))
            answers.append(Answer(text, None, len(ids), written))
        return answers

    def _read(self, prompts: list[list[int]], width: int) -> Any:
        """Return the keys and values of all tokens but the last of each prompt, padded on the left to one width.

        Each prompt is read alone, from where it leaves the common beginning. Reading pays by the token, so that prompts read
        together gain nothing and pay for padding and its mask; writing pays by the pass, and is done for all together.
        """
        import torch
        from transformers import DynamicCache

        read = []
        for ids in prompts:
            shared = len(self._prefix) if ids[: len(self._prefix)] == self._prefix and len(ids) > len(self._prefix) else 0
            cache = copy.deepcopy(self._cache) if shared else DynamicCache(config=self._model.config)
            if rest := ids[shared:-1]:
                self._model(
                    input_ids=torch.tensor([rest], device=self._model.device), past_key_values=cache, use_cache=True, logits_to_keep=1
                )
            read.append(cache)
        if len(read) == 1:
            return read[0]
        together = DynamicCache(config=self._model.config)
        for layer in range(len(read[0].layers)):
            parts = []
            for name in ("keys", "values"):
                tensors = [getattr(cache.layers[layer], name) for cache in read]
                padded = [torch.nn.functional.pad(t, (0, 0, width - 1 - t.shape[2], 0)) for t in tensors]
                parts.append(torch.cat(padded))
            together.update(parts[0], parts[1], layer)
            for cache in read:  # or all layers would be there twice
                layers: list[Any] = cache.layers
                layers[layer] = None
        return together


def _place(device: str) -> Any:
    """Return where the weights go: over several GPUs only where the worker was given several."""
    import torch

    if device != "cuda":
        return {"": "cpu"}
    return "auto" if torch.cuda.device_count() > 1 else {"": 0}


class FirstLine:
    """Stop a row once it has a line of text: what comes after it is seldom used (see :func:`topicscale.llm.clean.cut_short`)."""

    def __init__(self, breaks: tuple[Any, Any], begin: int) -> None:
        self._ends, self._blank = breaks
        self._begin = begin

    def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
        import torch

        new = input_ids[:, self._begin :]
        said = ~torch.isin(new, self._blank.to(new.device))
        ended = torch.isin(new, self._ends.to(new.device))
        # a line break counts once something was said before it
        return (ended & (said.cumsum(dim=1) - said.long() > 0)).any(dim=1)


def line_breaks(tokenizer: Any) -> tuple[Any, Any]:
    """Return the ids of tokens that hold a line break, and of those that hold nothing but space."""
    import torch

    ends, blank = [], []
    for token in range(len(tokenizer)):
        text = tokenizer.decode([token])
        if "\n" in text:
            ends.append(token)
        if not text.strip():
            blank.append(token)
    return torch.tensor(ends), torch.tensor(blank)
