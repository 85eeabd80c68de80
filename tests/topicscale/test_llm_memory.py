"""How many workers of a language model fit where, worked out from its settings alone."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from topicscale.config import LlmConfig
from topicscale.errors import ResourceError
from topicscale.llm.backend import Batch
from topicscale.llm.memory import GIB, Size, plan, size_of

# the settings published with meta-llama/Llama-2-13b-chat-hf and Llama-2-70b-chat-hf
LLAMA_13B = LlamaConfig(
    vocab_size=32000, hidden_size=5120, intermediate_size=13824, num_hidden_layers=40, num_attention_heads=40, max_position_embeddings=4096
)
LLAMA_70B = LlamaConfig(
    vocab_size=32000,
    hidden_size=8192,
    intermediate_size=28672,
    num_hidden_layers=80,
    num_attention_heads=64,
    num_key_value_heads=8,
    max_position_embeddings=4096,
)
T4, CPUS = 14.6 * GIB, 8
"""What a T4 of "16 GB" reports."""


def test_the_size_of_a_model_is_that_of_the_model_itself() -> None:
    settings = LlamaConfig(
        vocab_size=500, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2
    )
    model = LlamaForCausalLM(settings).to(torch.bfloat16)
    found = size_of(settings, "none")
    assert found.parameters == sum(p.numel() for p in model.parameters())
    assert found.weights == sum(p.numel() * p.element_size() for p in model.parameters())
    # a token's keys and values: 2 layers, 2 heads of 16, two numbers of 2 bytes each
    assert found.token == 2 * 2 * 16 * 2 * 2
    double = size_of(settings, "none", number=4)
    assert (double.weights, double.token) == (2 * found.weights, 2 * found.token)


def test_llama_2_13b_in_four_bits_fits_a_t4_and_not_in_sixteen() -> None:
    four = size_of(LLAMA_13B, "nf4")
    assert four.parameters == 13_015_864_320
    assert 6.5 * GIB < four.weights < 7.5 * GIB
    layout = plan(LlmConfig(), four, cpus=CPUS, gpus=1, gpu_memory=T4, memory=64 * GIB)
    assert (layout.actors, layout.gpus) == (1, 1.0)
    assert layout.need < 0.95 * T4
    assert layout.batch.prompts == 64
    assert layout.batch.tokens > 7 * 534  # seven prompts as they were measured on an H100 (benchmarks/results/gpu.md)
    with pytest.raises(ResourceError, match="smaller model"):
        plan(LlmConfig(quantization="none"), size_of(LLAMA_13B, "none"), cpus=CPUS, gpus=1, gpu_memory=T4, memory=64 * GIB)


def test_a_model_larger_than_a_gpu_spreads_over_several() -> None:
    layout = plan(LlmConfig(), size_of(LLAMA_70B, "nf4"), cpus=16, gpus=8, gpu_memory=24 * GIB, memory=256 * GIB)
    assert layout.gpus == 2
    assert layout.actors == 4


def test_small_models_share_a_gpu_by_fractions() -> None:
    small = Size(135_000_000, 0.1 * GIB, 23_040, 49_152, 4096)
    layout = plan(LlmConfig(actors=4), small, cpus=8, gpus=1, gpu_memory=T4, memory=64 * GIB)
    assert (layout.actors, layout.gpus, layout.cpus) == (4, 0.25, 2)
    halves = plan(LlmConfig(gpus_per_actor=0.5), small, cpus=8, gpus=2, gpu_memory=T4, memory=64 * GIB)
    assert (halves.actors, halves.gpus) == (4, 0.5)


def test_without_gpus_memory_and_processors_decide() -> None:
    small = Size(135_000_000, 0.2 * GIB, 23_040, 49_152, 4096)
    assert plan(LlmConfig(), small, cpus=2, gpus=0, gpu_memory=0, memory=16 * GIB).actors == 1
    assert plan(LlmConfig(), small, cpus=16, gpus=0, gpu_memory=0, memory=64 * GIB).actors == 4
    two = plan(LlmConfig(actors=2), small, cpus=2, gpus=0, gpu_memory=0, memory=16 * GIB)
    assert (two.actors, two.cpus, two.gpus) == (2, 1, 0.0)
    with pytest.raises(ResourceError, match=r"llm\.actors"):
        plan(LlmConfig(actors=9), small, cpus=2, gpus=0, gpu_memory=0, memory=16 * GIB)
    with pytest.raises(ResourceError, match=r"llm\.url"):
        plan(LlmConfig(), size_of(LLAMA_70B, "nf4"), cpus=16, gpus=0, gpu_memory=0, memory=16 * GIB)


def test_as_many_prompts_at_once_as_the_cache_holds() -> None:
    model = size_of(LLAMA_13B, "nf4")
    for share in (1.0, 0.5, 0.25):
        layout = plan(LlmConfig(gpus_per_actor=share), model, cpus=16, gpus=1, gpu_memory=79.2 * GIB, memory=100 * GIB)
        assert layout.actors == 1 / share
        assert layout.need <= share * 0.95 * 79.2 * GIB
        assert layout.batch.tokens * 2 * model.token <= layout.need - model.weights
    # what was measured: 56 GiB for 64 prompts of 534 tokens
    whole = plan(LlmConfig(), model, cpus=16, gpus=1, gpu_memory=79.2 * GIB, memory=100 * GIB)
    assert whole.batch.tokens > 64 * 534
    small = plan(LlmConfig(), Size(135_000_000, 0.1 * GIB, 23_040, 49_152, 4096), cpus=8, gpus=1, gpu_memory=T4, memory=64 * GIB)
    assert small.batch == Batch(64, 64 * 1024)
    asked = plan(LlmConfig(batch_size=3), model, cpus=16, gpus=1, gpu_memory=79.2 * GIB, memory=100 * GIB)
    assert asked.batch == Batch(3, 3 * 1024)
    # room for one prompt of full length alone, and for none beside it
    tight = plan(LlmConfig(), model, cpus=16, gpus=1, gpu_memory=12 * GIB, memory=100 * GIB)
    assert tight.need <= 0.95 * 12 * GIB
    assert tight.batch.tokens < 4096


@pytest.mark.parametrize("values", [{"gpus_per_actor": 2.0}, {"actors": 3, "gpus_per_actor": 0.5}])
def test_more_than_there_is_is_refused(values) -> None:
    with pytest.raises(ResourceError):
        plan(LlmConfig(**values), size_of(LLAMA_13B, "nf4"), cpus=8, gpus=1, gpu_memory=T4, memory=64 * GIB)
