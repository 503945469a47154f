"""Peak memory of a score and its backward pass at a real vocabulary, against logits for all tokens at once."""

import subprocess
import sys

import pytest

PROBE = """
import resource, sys
import torch
from fulgurite.models.causal_lm import CausalLM
from transformers import Qwen2Config, Qwen2ForCausalLM

torch.set_num_threads(1)
tied, way = sys.argv[1] == "tied", sys.argv[2]
config = Qwen2Config(vocab_size=151_936, hidden_size=64, intermediate_size=128, num_hidden_layers=1,
                     num_attention_heads=4, num_key_value_heads=4, tie_word_embeddings=tied)
model = CausalLM(Qwen2ForCausalLM(config))

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize() / 2**20

def peak():  # of this program: ru_maxrss would start from that of the process that started it
    return int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) / 2**10

def score(tokens, keep):
    if way == "chunked":
        return model.score(tokens, keep).logprobs.sum()
    logprobs = model.hf(tokens).logits[:, :-1].log_softmax(-1)
    return torch.where(keep[:, 1:], logprobs.gather(-1, tokens[:, 1:, None])[..., 0], 0.0).sum()

tokens = torch.arange(514).reshape(2, 257) * 295 % config.vocab_size
keep = (torch.arange(257) > 0).expand(2, 257)
before = resident()
score(tokens, keep).backward()
print(peak() - before)
"""


def peak_mib(tied: str, way: str) -> float:
    run = subprocess.run([sys.executable, "-c", PROBE, tied, way], capture_output=True, text=True, check=True)
    return float(run.stdout.split()[-1])


@pytest.mark.parametrize("tied", ["tied", "untied"])
def test_chunked_scoring_needs_a_fraction_of_the_memory(tied):
    chunked, naive = peak_mib(tied, "chunked"), peak_mib(tied, "naive")
    print(f"{tied}: naive {naive:.0f} MiB, chunked {chunked:.0f} MiB, ratio {naive / chunked:.1f}")
    assert naive > 600, "the naive pass no longer holds tokens x vocabulary, so the comparison means nothing"
    assert chunked < naive / 4
