"""Benchmarks whose questions are trained on, and runs that go on with other data than they began with."""

import json
import time
import warnings
from pathlib import Path

import pytest
import torch

from fulgurite.callbacks.checkpoint import RoundCheckpoint
from fulgurite.callbacks.checkpoint_files import checkpoints_in
from fulgurite.callbacks.guards import Guards
from fulgurite.data.prompts import identity
from fulgurite.data.supervised_datamodule import SupervisedDataModule
from fulgurite.data.task_datamodule import Benchmark
from fulgurite.guards import GuardError
from fulgurite.guards.changed_data import check_data
from fulgurite.guards.contamination import check_contamination, covered, find_contaminated, question_of, runs, words
from fulgurite.modules.supervised import SupervisedFineTuning
from fulgurite.tasks.prompting import PromptStyle
from fulgurite.tasks.sources import Source
from fulgurite.types import ConfigError, Prompt, SamplingSpec
from tiny import TINY, EvenDigits, tiny_data, tiny_grpo, tiny_trainer

DATA = Path(__file__).parents[2] / "shared" / "data"
real_rows = pytest.mark.skipif(not DATA.is_dir(), reason="the real data sets are not beside this checkout")
FIFTEEN = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen"


def found(train, questions) -> list[int]:
    return find_contaminated(train, {"x": questions})["x"]


def test_words_leave_out_case_spaces_and_punctuation_and_keep_numbers_and_signs():
    assert words("  What IS\n\t$x^2 + 3_4$?  ") == ("what", "is", "x", "^", "2", "+", "3", "4")
    assert words("1,5 - 0.5") == ("1", "5", "-", "0", "5") and words("ÉTÉ") == words("été") and words("?!") == ("?!",)


def test_the_same_question_is_found_whatever_its_looks_and_another_number_or_sign_is_another_question():
    train = ["How many apples (3 red) are there?", "Compute x + 2."]
    same = ["how many apples 3 red are there", "How  many apples, 3 red, are there", "COMPUTE: x+2"]
    assert found(train, same) == [0, 1, 2]
    assert found(train, ["How many apples (4 red) are there?", "Compute x - 2.", "How many apples are there?"]) == []


def test_a_question_counts_when_shared_runs_of_13_words_cover_four_fifths_of_it():
    thirteen = tuple(FIFTEEN.split())[:13]
    assert runs(thirteen) == [thirteen] and runs(thirteen[:12]) == []
    sixteen, seventeen = (thirteen + tuple("abcd"[:n]) for n in (3, 4))
    assert covered(sixteen, {thirteen}) == 13 / 16 and covered(seventeen, {thirteen}) == 13 / 17
    train = ["before " + " ".join(thirteen) + " after"]
    assert found(train, [" ".join(sixteen), " ".join(seventeen), " ".join(thirteen[:12])]) == [0]
    two = " ".join(thirteen) + " q " + " ".join(thirteen[::-1])  # 26 of 27 words, in two runs of two training questions
    assert found([train[0], " ".join(thirteen[::-1])], [two]) == [0] and found(train, [two]) == []


def test_a_run_in_more_than_ten_training_questions_is_the_wording_of_the_task():
    asked = [FIFTEEN + " sixteen"]
    assert found([f"{FIFTEEN} {n}" for n in range(10)], asked) == [0]
    assert found([f"{FIFTEEN} {n}" for n in range(11)], asked) == []
    assert found([f"{FIFTEEN} {n}" for n in range(11)] + asked, asked) == [0]
    assert found([f"{FIFTEEN} {FIFTEEN} {n}" for n in range(9)], asked) == [0], "twice in one question counts once"


def test_the_question_stands_without_the_words_of_its_task():
    style = PromptStyle("Think about it step by step and put the final answer after four hashes: {question}", chat=True)
    assert question_of(style.prompt("1+1?", id="a")) == "1+1?"
    assert question_of(Prompt("b", text="2+2?")) == "2+2?"
    assert question_of(Prompt("c", messages=({"role": "user", "content": "3+3?"},))) == "3+3?"


def test_the_share_decides_between_an_error_a_warning_and_silence():
    train, questions = ["a b", "c d"], {"clean": ["x", "y"], "half": ["A b!", "z"]}
    with pytest.raises(GuardError) as error:
        check_contamination(train, questions, 0.0)
    assert str(error.value) == (
        "1 of 2 questions of the benchmark 'half' stand in the training split, for example 'A b!'; expected a share of at most "
        "0.0. Take them out of the training split, evaluate on another benchmark, or raise guards.max_contaminated to allow it"
    )
    with pytest.raises(GuardError):
        check_contamination(train, questions, 0.49)
    with pytest.warns(UserWarning, match="1 of 2 questions of the benchmark 'half'"):
        check_contamination(train, questions, 0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_contamination(train, questions, 1.0)
        check_contamination(train, {"clean": ["x", "y"], "none": []}, 0.0)


@real_rows
def test_gsm8k_is_clean_in_less_than_two_seconds_and_known_overlaps_are_found():
    def questions(file, column="question"):
        return [row["q"] for row in Source(str(DATA / file), {"q": column}).rows(("q",))]

    train, test = questions("gsm8k/train.jsonl.gz"), questions("gsm8k/test.jsonl.gz")
    begin = time.process_time()
    assert (len(train), len(test), found(train, test)) == (7473, 1319, [])
    assert time.process_time() - begin < 2
    assert len(found(questions("graded_gsm8k/pairs.jsonl"), test)) == 323  # every one of its questions, each once
    assert len(found(questions("aime21_24/aime_2021_2024.jsonl"), questions("aime24/test.jsonl", "problem"))) == 10
    for people in (3, 4, 5):
        held_out = questions(f"knights_knaves/{people}ppl_test.jsonl", "quiz")
        assert found(questions(f"knights_knaves/{people}ppl_train.jsonl.gz", "quiz"), held_out) == []
    assert found(train, [test[0], train[7].upper(), train[8].replace(" ", "\n") + "!"]) == [1, 2]


# In a run


class Leaky(EvenDigits):
    """Half of the split `leaked` are training sums, under ids of their own."""

    def prompts(self, split):
        if split != "leaked":
            return super().prompts(split)
        both = super().prompts("train")[:3] + super().prompts("held_out")[:3]
        return [PromptStyle("= {question}").prompt(p.text, id=f"leaked {p.id}", answer=p.answer) for p in both]


def benchmarks(**splits) -> dict[str, Benchmark]:
    return {name: Benchmark(split, SamplingSpec(max_new_tokens=4), limit=2) for name, split in splits.items()}


def fit(task, tested, *callbacks, module=None, **trainer):
    settings = {"max_epochs": 1, "enable_checkpointing": any(isinstance(c, RoundCheckpoint) for c in callbacks), **trainer}
    resume = settings.pop("ckpt_path", None)
    module = module or tiny_grpo()
    data = tiny_data(task=task, benchmarks=tested)
    tiny_trainer(callbacks=list(callbacks), **settings).fit(module, datamodule=data, ckpt_path=resume, weights_only=True)
    return module, data


@pytest.mark.parametrize("callbacks", [[], [Guards()]], ids=["without the callback", "with it"])
def test_a_run_on_leaked_questions_is_stopped_before_a_model_is_made(callbacks):
    module = tiny_grpo()
    with pytest.raises(
        GuardError, match="3 of 6 questions of the benchmark 'sums' stand in the training split, for example '0"
    ):
        fit(Leaky(digits=1), benchmarks(clean="held_out", sums="leaked"), *callbacks, module=module)
    assert not len(module.trained)


def test_the_share_of_the_guards_allows_it_and_the_training_split_itself_is_let_alone(caplog):
    with pytest.warns(UserWarning, match="3 of 6 questions of the benchmark 'sums'"):
        module, _ = fit(Leaky(digits=1), benchmarks(sums="leaked"), Guards(max_contaminated=0.5))
    assert int(module.updates) == 1
    module, _ = fit(Leaky(digits=1), benchmarks(known="train", clean="held_out"))
    assert int(module.updates) == 1
    assert "on the training split itself, and not checked for contamination: benchmark known" in caplog.text
    other = {"sums": Benchmark("train", SamplingSpec(max_new_tokens=4), limit=2, task=EvenDigits(digits=1))}
    with pytest.raises(GuardError, match="'sums'"):
        fit(Leaky(digits=1), other)


def test_validation_alone_knows_no_training_split():
    data = tiny_data(task=Leaky(digits=1), benchmarks=benchmarks(sums="leaked"))
    tiny_trainer(enable_checkpointing=False).validate(tiny_grpo(), datamodule=data, verbose=False)
    assert set(data.identities) == {"benchmark sums"}


# The same data after a resume


def test_the_identity_is_that_of_what_a_run_reads():
    prompt = Prompt("a", text="1+1?", answer="2", source="here.jsonl")
    known = identity("train", [prompt, Prompt("b")])
    assert known["split"] == "train" and known["prompts"] == 2 and len(known["sha256"]) == 64
    assert json.loads(json.dumps(known)) == known
    moved = Prompt("a", text="1+1?", answer="2", source="there.jsonl", token_ids=(1, 2), draw=3)
    assert identity("train", [moved, Prompt("b")]) == known
    others = [[Prompt("b"), prompt], [prompt], [prompt, Prompt("c")], [prompt, Prompt("b", answer="")],
              [prompt, Prompt("b", thinking=False)], [prompt, Prompt("b", metadata={"level": "1"})]]  # fmt: skip
    assert len({identity("train", prompts)["sha256"] for prompts in others} | {known["sha256"]}) == 7


def test_only_what_both_know_is_compared():
    one, two = ({"split": "s", "prompts": 1, "sha256": c * 64} for c in "12")
    check_data({}, {"training split": one})
    check_data({"training split": one, "benchmark old": one}, {"training split": one, "benchmark new": two})
    with pytest.raises(ConfigError, match="the prompts of the benchmark sums are not those of the checkpoint"):
        check_data({"training split": one, "benchmark sums": one}, {"training split": one, "benchmark sums": two})
    with pytest.raises(ConfigError, match="the prompts of the training split are not"):
        check_data({"training split": one, "benchmark sums": one}, {"training split": two, "benchmark sums": two})


class Shorter(EvenDigits):
    def prompts(self, split):
        return super().prompts(split)[: 40 if split == "train" else None]


def test_a_run_is_not_resumed_on_other_data(tmp_path):
    saves = RoundCheckpoint(every_n_rounds=1)
    _, data = fit(EvenDigits(digits=1), benchmarks(sums="held_out"), saves, default_root_dir=tmp_path)
    (path,) = checkpoints_in(tmp_path)
    saved = torch.load(path, weights_only=True)
    assert saved["RolloutDataModule"]["data"] == data.identities and set(data.identities) == {
        "training split",
        "benchmark sums",
    }
    resume = {"default_root_dir": tmp_path, "max_epochs": 2, "ckpt_path": path}

    with pytest.raises(ConfigError) as error:
        fit(Shorter(digits=1), benchmarks(sums="held_out"), **resume)
    before, now = (identity("train", task.prompts("train")) for task in (EvenDigits(digits=1), Shorter(digits=1)))
    assert before == data.identities["training split"] and now["prompts"] == 40
    assert str(error.value) == (
        "the prompts of the training split are not those of the checkpoint: "
        f"they were 89 of split 'train', sha256 {before['sha256']}, and are 40 of split 'train', sha256 {now['sha256']}; "
        "expected the same prompts in the same order: resume on the old data, or start a new run"
    )

    module, _ = fit(EvenDigits(digits=1), benchmarks(other="train"), **resume)
    assert int(module.updates) == 2, "a benchmark may come or go"
    del saved["RolloutDataModule"]["data"]
    torch.save(saved, tmp_path / "old.ckpt")
    module, _ = fit(Shorter(digits=1), {}, **{**resume, "ckpt_path": tmp_path / "old.ckpt"})
    assert int(module.updates) == 2, "a checkpoint that does not say is taken"
    tiny_trainer(default_root_dir=tmp_path).validate(
        tiny_grpo(), datamodule=tiny_data(task=Leaky(digits=1), benchmarks=benchmarks(sums="leaked")), ckpt_path=path,
        weights_only=True, verbose=False,
    )  # fmt: skip


def test_a_supervised_run_is_not_resumed_on_other_data(tmp_path):
    def learn(task, epochs, **resume):
        data = SupervisedDataModule(task, prompts_per_step=2, updates_per_round=1)
        trainer = tiny_trainer(max_epochs=epochs, default_root_dir=tmp_path, callbacks=[RoundCheckpoint(every_n_rounds=1)])
        trainer.fit(SupervisedFineTuning(TINY), datamodule=data, weights_only=True, **resume)

    learn(EvenDigits(digits=1), 1)
    (path,) = checkpoints_in(tmp_path)
    with pytest.raises(
        ConfigError, match="the prompts of the training split are not those of the checkpoint: they were 89 of split 'train'"
    ):
        learn(Shorter(digits=1), 2, ckpt_path=path)
    learn(EvenDigits(digits=1), 2, ckpt_path=path)
    assert len(checkpoints_in(tmp_path)) == 2
