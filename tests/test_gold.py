"""Where reasoning ends and the gold answer begins, and what is refused before a model loads."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fulgurite.callbacks.tsallis import TsallisReweighting
from fulgurite.data.assemble import Samples, assemble
from fulgurite.data.gold import Ending, GoldAnswer, as_sampled, check_gold
from fulgurite.models.causal_lm import CausalLM
from fulgurite.models.sources import load_tokenizer
from fulgurite.models.tiny import TinyModel
from fulgurite.modules.latent_reasoning import LatentReasoning
from fulgurite.tasks.addition import Addition
from fulgurite.tasks.gsm8k import GSM8K
from fulgurite.tasks.qa import QA
from fulgurite.tasks.sources import Source
from fulgurite.types import Completion, ConfigError, Prompt, SamplingSpec, Segment, Verdict
from tiny import TINY, tiny_data, tiny_grpo, tiny_trainer

TOKENIZER = load_tokenizer(TinyModel())
THINK = GoldAnswer("</think>", "\n\nThe answer is {answer}.")


def ids(text: str) -> tuple[int, ...]:
    return tuple(TOKENIZER(text, add_special_tokens=False).input_ids)


def completion(text: str, reason: str = "stop") -> Completion:
    tokens = ids(text) + ((TOKENIZER.eos_token_id,) if reason == "stop" else ())
    return Completion(tokens, tuple(-0.1 * (i + 1) for i in range(len(tokens))), reason, text)


GOLD = (*ids("\n\nThe answer is 42."), TOKENIZER.eos_token_id)
REASONED = "é: 6 * 7</think>"
ENDINGS = {
    "the sampled answer goes": (REASONED + "\n\nThe answer is 41.", "stop", Ending(len(ids(REASONED)), (), GOLD)),
    "cut in its answer": (REASONED + "\n\nThe", "length", Ending(len(ids(REASONED)), (), GOLD)),
    "the first end counts": (REASONED + "</think>", "stop", Ending(len(ids(REASONED)), (), GOLD)),
    "ends with its reasoning": (REASONED, "length", Ending(len(ids(REASONED)), (), GOLD)),
    "nothing but the end": ("</think>42", "stop", Ending(len(ids("</think>")), (), GOLD)),
    "cut while reasoning": ("6 * 7</thin", "length", Ending(len(ids("6 * 7</thin")), ids("</think>"), GOLD)),
    "ended while reasoning": ("6 * 7", "stop", Ending(len(ids("6 * 7")) + 1)),
}


@pytest.mark.parametrize("name", ENDINGS)
def test_where_the_reasoning_ends(name):
    text, reason, want = ENDINGS[name]
    assert THINK.ending("42", completion(text, reason), TOKENIZER) == want


def test_an_answer_with_braces_is_taken_as_it_is():
    assert GoldAnswer("#", "{answer}").ending("{answer}", completion("#", "length"), TOKENIZER).gold[:-1] == ids("{answer}")


def test_a_token_that_reaches_over_the_end_stays_whole():
    class Words:
        eos_token_id = 9

        def __call__(self, text, add_special_tokens):
            return type("Encoded", (), {"input_ids": [5]})

        def decode(self, tokens):
            return "".join(["so ", "the ans", "wer is: ", "42"][token] for token in tokens)

    said = Completion((0, 1, 2, 3), (0.0,) * 4, "stop", "")
    assert GoldAnswer("answer is").ending("7", said, Words()) == Ending(3, (), (5, 9))


def test_rows_have_their_segments_and_the_engines_numbers():
    prompt = Prompt("q", token_ids=ids("6*7=")[:-1])
    said = [completion("6</think>41"), completion("66", "length")]
    samples = Samples([prompt], [0], said, [Verdict("wrong", {}, 0.0)] * 2)
    held = assemble(samples, 0, 0, 1.0, lambda p, c: replace(THINK, text="{answer}").ending("42", c, TOKENIZER))
    gold, end = ids("42"), ids("</think>")
    wanted = [
        [(t, Segment.PROMPT, 0.0) for t in prompt.token_ids]
        + [(t, Segment.SAMPLED, -0.1 * (i + 1)) for i, t in enumerate(ids("6</think>"))]
        + [(t, Segment.GOLD, 0.0) for t in (*gold, 1)],
        [(t, Segment.PROMPT, 0.0) for t in prompt.token_ids]
        + [(t, Segment.SAMPLED, -0.1 * (i + 1)) for i, t in enumerate(ids("66"))]
        + [(t, Segment.FORCED, 0.0) for t in end]
        + [(t, Segment.GOLD, 0.0) for t in (*gold, 1)],
    ]
    for i, row in enumerate(wanted):
        tokens, segments, numbers = zip(*row, strict=True)
        assert held.tokens[i, : len(row)].tolist() == list(tokens)
        assert held.segments[i].tolist() == [int(s) for s in segments] + [0] * (held.tokens.shape[1] - len(row))
        torch.testing.assert_close(held.columns["engine"][i, : len(row)], torch.tensor(numbers))
    plain = assemble(samples, 0, 0, 1.0)
    assert plain.segments.unique().tolist() == [0, int(Segment.PROMPT), int(Segment.SAMPLED)]
    assert as_sampled(prompt, said[0]) == Ending(len(said[0].token_ids))


# Reference answers of tasks


def test_tasks_have_their_reference_answer_without_reasoning(tmp_path):
    (addition,) = [p for p in Addition().prompts("train") if p.id == "47+86="]
    assert Addition().gold(addition) == "133"
    assert Addition(scratchpad=True).solution(addition) == "3131#133" and Addition().solution(addition) == "#133"
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"question": "q", "answer": "so it is\\n#### 5"}\n{"question": "q", "answer": "6"}\n')
    task = GSM8K({"train": Source(str(rows))})
    assert [task.gold(p) for p in task.prompts("train")] == ["5", "6"]
    rows.write_text('{"question": "q", "answer": ["Oslo", "oslo city"]}\n')
    task = QA({"train": Source(str(rows))}, match="contains", several_answers=True)
    assert task.gold(task.prompts("train")[0]) == "Oslo"


def test_scratchpads_add_up():
    for prompt in Addition(scratchpad=True).prompts("held_out"):
        a, b = prompt.text[:-1].split("+")
        written, _, answer = Addition(scratchpad=True).solution(prompt).partition("#")
        digits, carries = written[0::2], written[1::2]
        assert int(carries[-1] + digits[::-1]) == int(a) + int(b) == int(answer)
        assert carries[0] == str((int(a[1]) + int(b[1])) // 10)


# What is refused


class NoAnswers(Addition):
    def gold(self, prompt):
        return None


def test_a_task_without_reference_answers_is_refused_before_a_model_loads(monkeypatch):
    monkeypatch.setattr(CausalLM, "load", lambda *_: pytest.fail("a model was loaded"))
    data = tiny_data(task=NoAnswers(digits=1), gold=GoldAnswer("#"), advantage=None)
    with pytest.raises(ConfigError, match="NoAnswers has none for the prompt .* reward: verifier, without gold"):
        tiny_trainer().fit(LatentReasoning(TINY), datamodule=data)
    data = tiny_data(task=Addition(digits=1), gold=GoldAnswer("#"))
    with pytest.raises(ConfigError, match="data.gold is given, and GRPO learns from no gold answers"):
        tiny_trainer().fit(tiny_grpo(), datamodule=data)


def test_gold_goes_with_a_module_that_reads_it():
    task = Addition(digits=1)
    prompts = task.prompts("train")
    check_gold(None, False, "GRPO", task, prompts)
    check_gold(GoldAnswer("#"), True, "LatentReasoning", task, prompts)
    check_gold(None, True, "a method whose callback appends the answers itself", task, prompts)
    with pytest.raises(ConfigError, match="gold.after is empty"):
        GoldAnswer("")
    with pytest.raises(ConfigError, match="gold.text is 'yes'"):
        GoldAnswer("#", "yes")


def test_rows_too_long_for_the_model_are_refused():
    short = TinyModel(hidden_size=16, intermediate_size=32, heads=2, kv_heads=2, alphabet="0123456789+=#", max_positions=11)
    data = tiny_data(task=Addition(digits=1), gold=GoldAnswer("#"), advantage=None, sampling=SamplingSpec(max_new_tokens=4))
    with pytest.raises(ConfigError, match="can have 12 tokens; expected at most 11, the model's positions"):
        tiny_trainer(callbacks=[TsallisReweighting()]).fit(LatentReasoning(short), datamodule=data)
