"""Benchmarks in a run: what is logged, whose judgement counts, what is saved and judged again, which checkpoint is the best."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from lightning.pytorch.callbacks import Callback

import fulgurite.trainer_cli  # noqa: F401 - here, so that its loggers do not bind to the stream of one test
from fulgurite import cli
from fulgurite.callbacks import checkpoint as checkpoint_module
from fulgurite.callbacks.checkpoint import RoundCheckpoint
from fulgurite.callbacks.checkpoint_files import checkpoints_in
from fulgurite.callbacks.evaluation import EvaluationLog, read_rows
from fulgurite.data.task_datamodule import Benchmark
from fulgurite.engines.protocol import EngineError
from fulgurite.engines.transformers_engine import TransformersEngine
from fulgurite.metrics.benchmark import measure, table_of
from fulgurite.metrics.generations import measure_rows, one_line, regrade, rejudge
from fulgurite.metrics.intervals import bootstrap_interval, wilson_interval
from fulgurite.tasks.addition import Addition
from fulgurite.types import Completion, ConfigError, Prompt, Round, SamplingSpec, Verdict
from records import make_round
from tiny import EvenDigits, tiny_data, tiny_grpo, tiny_trainer

DOCS = Path(__file__).parents[1] / "docs" / "evaluation.md"
FOUR = SamplingSpec(max_new_tokens=4, n=4)
EASY = Benchmark("held_out", FOUR, limit=5, prompts_per_batch=3, k=[1, 2, 4])


class Batches(Callback):
    """Keeps every batch of the last validation or prediction, by benchmark."""

    def on_validation_start(self, trainer, module):
        self.seen = defaultdict(list)

    on_predict_start = on_validation_start

    def on_validation_batch_end(self, trainer, module, outputs, batch, batch_idx, dataloader_idx=0):
        self.seen[batch.benchmark].append(batch)

    on_predict_batch_end = on_validation_batch_end


class Odd(Addition):
    """The other half of what `EvenDigits` counts, with an answer of its own."""

    def judge(self, prompt: Prompt, completion: Completion) -> Verdict:
        odd = [c for c in completion.text if c in "13579"]
        return Verdict("correct" if odd else "ungradable", {"odd": 1.0}, float(bool(odd)), answer="odd" if odd else None)


def validated(folder: Path, **settings) -> tuple[dict[str, float], Batches]:
    """What a validation of a fresh model logs, and its batches."""
    batches = Batches()
    trainer = tiny_trainer(default_root_dir=folder, callbacks=[batches, EvaluationLog(generations=True)])
    trainer.validate(tiny_grpo(), datamodule=tiny_data(**settings), verbose=False)
    return {tag: float(value) for tag, value in trainer.callback_metrics.items()}, batches


# What is logged


def test_a_benchmark_logs_the_numbers_of_its_completions(tmp_path):
    logged, batches = validated(tmp_path, benchmarks={"easy": EASY})
    seen = batches.seen["easy"]
    assert [len(batch) for batch in seen] == [3, 2]
    right = torch.cat([batch.correct for batch in seen]).sum(1)
    assert 0 < int(right.sum()) < 20 and len(right.unique()) > 1
    low, high = bootstrap_interval(right.double() / 4)
    texts = [[c.text for c in batch.completions[4 * q : 4 * q + 4]] for batch in seen for q in range(len(batch))]
    lengths = [len(c.token_ids) for batch in seen for c in batch.completions]
    cut = [c.finish_reason == "length" for batch in seen for c in batch.completions]
    firsts = {(i, j) for i in range(4) for j in range(i)}
    pairs = [sum(bool(set(t[i] + t[j]) & set("02468")) for i, j in firsts) / 6 for t in texts]
    expected = {
        "accuracy": int(right.sum()) / 20,
        "low": low,
        "high": high,
        "prompts": 5,
        "tokens_per_completion": sum(lengths) / 20,
        "truncated": sum(cut) / 20,
        "ungradable": 0,
        **{f"avg@{k}": int(right.sum()) / 20 for k in (1, 2, 4)},
        "pass@1": int(right.sum()) / 20,
        "pass@2": sum(pairs) / 5,
        "pass@4": int((right > 0).sum()) / 5,
        "maj@1": int(right.sum()) / 20,
    }
    tags = {f"eval/easy/{name}": value for name, value in expected.items()}
    assert set(logged) == {*tags, "eval/easy/maj@2", "eval/easy/maj@4"}
    assert {tag: logged[tag] for tag in tags} == pytest.approx(tags, abs=1e-6)  # Lightning keeps float32


def test_one_completion_a_prompt_has_wilsons_interval_and_nothing_at_k(tmp_path):
    logged, _ = validated(tmp_path, benchmarks={"easy": Benchmark("held_out", SamplingSpec(max_new_tokens=4), limit=5)})
    interval = wilson_interval(logged["eval/easy/accuracy"], 5)
    assert (logged["eval/easy/low"], logged["eval/easy/high"]) == pytest.approx(interval, abs=1e-6)
    assert not any("@" in tag for tag in logged)


def test_a_benchmark_may_have_a_task_of_its_own(tmp_path):
    benchmarks = {"even": EASY, "odd": replace(EASY, task=Odd(digits=1))}
    logged, batches = validated(tmp_path, benchmarks=benchmarks)
    even, odd = (
        [
            (batch.prompts[i // 4].id, completion.token_ids, verdict.rewards)
            for batch in batches.seen[name]
            for i, (completion, verdict) in enumerate(zip(batch.completions, batch.verdicts, strict=True))
        ]
        for name in ("even", "odd")
    )
    assert [row[0] for row in even] == [row[0] for row in odd]  # the same ids ...
    assert [row[1] for row in even] != [row[1] for row in odd]  # ... and other draws: they are addressed by the benchmark
    assert all("even" in row[2] for row in even) and all("odd" in row[2] for row in odd)
    assert logged["eval/odd/ungradable"] == pytest.approx(1 - logged["eval/odd/accuracy"], abs=1e-6)
    assert logged["eval/odd/maj@4"] == logged["eval/odd/pass@4"]  # one answer only: whoever votes, votes for it
    wider = {"wide": replace(EASY, task=EvenDigits(digits=2))}
    _, batches = validated(tmp_path, benchmarks=wider)
    assert {len(p.id) for b in batches.seen["wide"] for p in b.prompts} == {6}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"k": [1, 8]}, r"k \[1, 8\] with sampling.n 4; expected each k from 1 to n"),
        ({"k": [0]}, r"k \[0\] with sampling.n 4"),
        ({"sampling": replace(FOUR, temperature=0)}, "sampling.n 4 at temperature 0"),
    ],
)
def test_benchmarks_that_cannot_be_measured_are_refused(settings, words):
    with pytest.raises(ConfigError, match=words):
        replace(EASY, **{"k": [], **settings})


def test_missing_completions_are_an_error_that_names_benchmark_and_prompt(tmp_path):
    class Lossy(TransformersEngine):
        def generate(self, prompts, spec):
            return super().generate(prompts, spec)[:-3]

    data = tiny_data(benchmarks={"easy": EASY}, engine=Lossy())
    with pytest.raises(
        EngineError, match=r"9 completions for the benchmark easy, which end at prompt '.\+.='; expected 4 of each of 3"
    ):
        tiny_trainer(default_root_dir=tmp_path).validate(tiny_grpo(), datamodule=data, verbose=False)


def test_a_round_saved_without_answers_is_read_as_before():
    state = make_round([[1.0, 0.0]]).to_state()
    assert [verdict.pop("answer") for verdict in state["verdicts"]] == [None, None]
    assert Round.from_state(state).verdicts == make_round([[1.0, 0.0]]).verdicts
    answered = replace(make_round([[1.0]]), verdicts=(Verdict("correct", {}, 1.0, answer="4"),))
    assert Round.from_state(answered.to_state()).verdicts[0].answer == "4"


def test_addition_names_the_answer_that_it_reads():
    task, prompt = Addition(digits=1), Prompt("1+2=", answer="03")
    answers = {text: task.judge(prompt, Completion((), (), "stop", text)).answer for text in ("#03", "x#3", "03", "#0#3")}
    assert answers == {"#03": "03", "x#3": "3", "03": None, "#0#3": None}


# Saved completions


def test_saved_completions_measured_again_give_the_numbers_logged(tmp_path):
    data = {"easy": EASY, "one": Benchmark("train", SamplingSpec(max_new_tokens=4), limit=3)}
    logged, batches = validated(tmp_path, benchmarks=data)
    rows = read_rows(tmp_path / "generations" / "000000.jsonl")
    assert len(rows) == 20 + 3 and not list((tmp_path / "generations").glob("*.tmp"))
    first, completion, verdict = rows[0], batches.seen["easy"][0].completions[0], batches.seen["easy"][0].verdicts[0]
    prompt = batches.seen["easy"][0].prompts[0]
    assert first == {
        "benchmark": "easy",
        "prompt_id": prompt.id,
        "prompt": prompt.text,
        "prompt_text": prompt.text,
        "reference": prompt.answer,
        "source": "addition",
        "metadata": {},
        "text": completion.text,
        "token_ids": list(completion.token_ids),
        "finish_reason": completion.finish_reason,
        "extracted": completion.text,
        "outcome": verdict.outcome,
        "reward": verdict.reward,
        "failure": "",
    }
    again = regrade([row for row in rows if row["benchmark"] == "easy"], EvenDigits(digits=1), (1, 2, 4))
    again |= regrade([row for row in rows if row["benchmark"] == "one"], EvenDigits(digits=1))
    (row,) = read_rows(tmp_path / "evaluation.jsonl")
    for name, numbers in again.items():
        assert numbers == pytest.approx(row["benchmarks"][name], abs=1e-6)  # logged in float32
        assert {f"eval/{name}/{key}" for key in numbers} == {tag for tag in logged if tag.startswith(f"eval/{name}/")}
    easy = batches.seen["easy"]
    completions = [c for batch in easy for c in batch.completions]
    verdicts = [v for batch in easy for v in batch.verdicts]
    assert again["easy"] == measure(table_of(completions, verdicts, 4), (1, 2, 4))


def test_a_fit_can_measure_its_start(tmp_path):
    def fitted(steps: int) -> list[dict]:
        folder = tmp_path / str(steps)
        settings = {"num_sanity_val_steps": steps, "max_epochs": 2, "enable_checkpointing": False}
        trainer = tiny_trainer(default_root_dir=folder, callbacks=[EvaluationLog(generations=True)], **settings)
        trainer.fit(tiny_grpo(), datamodule=tiny_data(benchmarks={"easy": EASY}))
        assert len(list((folder / "generations").iterdir())) == len(read_rows(folder / "evaluation.jsonl"))
        return read_rows(folder / "evaluation.jsonl")

    validated(tmp_path / "validated", benchmarks={"easy": EASY})
    (alone,) = read_rows(tmp_path / "validated" / "evaluation.jsonl")
    start, *rest = fitted(-1)
    assert start == alone and (start["rounds"], start["updates"]) == (0, 0)
    assert rest == fitted(0) == fitted(1), "and a look at one batch is no measure"


def test_another_task_judges_saved_completions_anew(tmp_path):
    validated(tmp_path, benchmarks={"easy": EASY})
    rows = read_rows(tmp_path / "generations" / "000000.jsonl")
    odd = sum(any(c in "13579" for c in row["text"]) for row in rows) / 20
    assert 0 < odd < 1 and regrade(rows, Odd(digits=1))["easy"]["accuracy"] == odd
    assert rejudge(rows, EvenDigits(digits=1)) == rows
    assert {row["outcome"] for row in rejudge(rows, Odd(digits=1))} == {"correct", "ungradable"}
    shuffled = sorted(rows, key=lambda row: row["text"])
    assert measure_rows(shuffled, (2, 4)) == measure_rows(rows, (2, 4))


def test_the_judge_sees_what_it_saw_in_the_run():
    class Reads(EvenDigits):
        def judge(self, prompt, completion):
            seen = (prompt.id, prompt.text, prompt.answer, prompt.source, prompt.metadata["people"], completion.finish_reason)
            return Verdict("correct", {}, 1.0, answer=" ".join((*seen, str(len(completion.token_ids)))))

    row = {
        "benchmark": "b", "prompt_id": "q", "prompt": "<s>Who?", "prompt_text": "Who?", "reference": "A", "source": "knights",
        "metadata": {"people": "3"}, "text": "x", "token_ids": [1, 2], "finish_reason": "length", "extracted": None,
        "outcome": "wrong", "reward": 0.0, "failure": "",
    }  # fmt: skip
    assert rejudge([row], Reads())[0]["extracted"] == "q Who? A knights 3 length 2"


def test_rows_that_would_give_other_numbers_are_refused(tmp_path):
    validated(tmp_path, benchmarks={"easy": EASY})
    rows = read_rows(tmp_path / "generations" / "000000.jsonl")
    lost = rows[0]["prompt_id"]
    with pytest.raises(ConfigError) as refused:
        measure_rows(rows[1:])
    assert f"the benchmark easy has 3 completions of prompt {lost!r} and 4 of another" in str(refused.value)
    with pytest.raises(ConfigError, match=r"k is \[8\] and the benchmark easy has 4 completions of a prompt"):
        measure_rows(rows, (8,))
    with pytest.raises(ConfigError, match="a row of generations has no reference, token_ids; expected benchmark, "):
        rejudge([{key: value for key, value in rows[0].items() if key not in ("reference", "token_ids")}], EvenDigits())


def test_prediction_writes_every_completion_and_shows_the_first(tmp_path, capsys):
    batches = Batches()
    trainer = tiny_trainer(default_root_dir=tmp_path, callbacks=[batches, EvaluationLog()])
    trainer.predict(tiny_grpo(), datamodule=tiny_data(benchmarks={"easy": EASY}))
    rows = read_rows(tmp_path / "predictions.jsonl")
    assert [row["text"] for row in rows] == [c.text for batch in batches.seen["easy"] for c in batch.completions]
    assert [row["prompt_id"] for row in rows[::4]] == [p.id for batch in batches.seen["easy"] for p in batch.prompts]
    shown = capsys.readouterr().out.splitlines()
    assert (
        shown[-1] == f"all rows: {tmp_path / 'predictions.jsonl'}"
        and len(shown[shown.index(f"easy {rows[0]['prompt_id']}") :]) == 17
    )
    assert f"  prompt      {rows[0]['prompt']}" in shown
    verdict = f"{rows[0]['outcome']}, read {rows[0]['text']!r}, reference {rows[0]['reference']!r}"
    assert f"  verdict     {verdict}; {len(rows[0]['token_ids'])} tokens, {rows[0]['finish_reason']}" in shown
    assert not (tmp_path / "generations").exists()


def test_shown_text_sends_nothing_to_the_terminal():
    assert one_line("a\nb\x1b[31m\u202e\ud800") == "a↵b�[31m��"
    assert one_line("a" * 1000 + "b" * 1000) == "a" * 150 + " … " + "b" * 150


def test_the_example_of_the_docs_judges_again(tmp_path, monkeypatch, capsys):
    trainer = tiny_trainer(default_root_dir=tmp_path / "runs" / "one", callbacks=[EvaluationLog()])
    trainer.predict(tiny_grpo(), datamodule=tiny_data(benchmarks={"easy": EASY}))
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    (example,) = re.findall(r"^```python\n(.*?)^```$", DOCS.read_text(), re.MULTILINE | re.DOTALL)
    exec(compile(example, str(DOCS), "exec"), {})
    numbers = regrade(read_rows(tmp_path / "runs" / "one" / "predictions.jsonl"), Addition(), (1,))
    assert capsys.readouterr().out == f"runs/one/predictions.jsonl {numbers}\n" and numbers["easy"]["ungradable"] > 0


# The best checkpoint


class Scored(EvenDigits):
    """Hands out right completions: `shares[i]` of those of the validation after update i."""

    def __init__(self, shares: list[float]) -> None:
        super().__init__(digits=1)
        self.shares, self.update, self.judged = shares, -1, 0

    def judge(self, prompt, completion):
        right = self.judged % 5 < 5 * self.shares[self.update]
        self.judged += 1
        return Verdict("correct" if right else "wrong", {}, float(right), answer=str(right))


class Counts(Callback):
    def __init__(self, task: Scored) -> None:
        self.task = task

    def on_validation_start(self, trainer, module):
        self.task.update = trainer.current_epoch * trainer.num_training_batches + trainer.fit_loop.epoch_loop.batch_idx
        self.task.judged = 0


ONE = Benchmark("held_out", SamplingSpec(max_new_tokens=2), limit=5, k=[1])


def fit(
    folder: Path, shares: list[float], best: str = "eval/b/accuracy", resume: Path | None = None, updates: int = 1, **settings
) -> RoundCheckpoint:
    task = Scored(shares)
    saver = RoundCheckpoint(best=best, **{"every_n_rounds": 0, **settings})
    trainer = tiny_trainer(
        max_epochs=len(shares) // updates, val_check_interval=1, default_root_dir=folder, callbacks=[Counts(task), saver]
    )
    data = tiny_data(benchmarks={"b": replace(ONE, task=task)}, steps_per_round=updates)
    trainer.fit(tiny_grpo(), datamodule=data, ckpt_path=resume, weights_only=True if resume else None)
    return saver


def names(folder: Path, best: bool = False) -> list[str]:
    return [path.name for path in checkpoints_in(folder, best)]


def round_of(path: Path) -> int:
    return int(torch.load(path, weights_only=True)["state_dict"]["rounds"])


def test_the_best_round_stays_beside_the_newest(tmp_path):
    fit(tmp_path, [0.2, 0.8, 0.4, 0.6, 0.2], every_n_rounds=1)
    assert names(tmp_path) == ["round-000004-update-000.ckpt", "round-000005-update-000.ckpt"]
    (best,) = checkpoints_in(tmp_path, best=True)
    assert best.name == "best-round-000002-update-000.ckpt" and round_of(best) == 2
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [best.name, *names(tmp_path)]


def test_of_equal_rounds_the_first_is_the_best_and_a_better_one_is_always_saved(tmp_path):
    fit(tmp_path, [0.4, 0.8, 0.8, 0.6])
    assert names(tmp_path, best=True) == ["best-round-000002-update-000.ckpt"]
    assert names(tmp_path) == ["round-000001-update-000.ckpt", "round-000002-update-000.ckpt"]


def test_a_validation_inside_a_round_does_not_count(tmp_path):
    fit(tmp_path, [0.2, 0.4, 1.0, 0.2], updates=2)
    assert names(tmp_path, best=True) == ["best-round-000001-update-000.ckpt"]


def test_a_resumed_run_remembers_what_it_has_to_beat(tmp_path):
    fit(tmp_path, [0.8, 0.2])
    (last,) = checkpoints_in(tmp_path)
    fit(tmp_path, [0.0, 0.6, 0.8], resume=last)
    assert names(tmp_path, best=True) == ["best-round-000001-update-000.ckpt"]
    fit(tmp_path, [0.0, 0.6, 1.0], resume=last)
    assert names(tmp_path, best=True) == ["best-round-000003-update-000.ckpt"]
    saver = fit(tmp_path / "other", [0.0, 0.4], best="eval/b/pass@1", resume=last)  # another tag has nothing to beat yet
    assert saver.record == pytest.approx(0.4, abs=1e-6)


def test_what_a_kill_left_is_not_written_into_the_best(tmp_path, monkeypatch):
    """Killed once the best has its name and before the checkpoint has its own: both are one file then."""
    rename = checkpoint_module.os.replace

    def killed(source, target):
        if Path(target).name == "round-000002-update-000.ckpt":
            raise KeyboardInterrupt
        rename(source, target)

    monkeypatch.setattr(checkpoint_module.os, "replace", killed)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        fit(tmp_path, [0.2, 0.8, 0.4], every_n_rounds=1)
    monkeypatch.undo()
    folder = tmp_path / "checkpoints"
    assert {p.name for p in folder.iterdir()} == {
        "round-000001-update-000.ckpt", "best-round-000002-update-000.ckpt", "writing.tmp"
    }  # fmt: skip
    best = folder / "best-round-000002-update-000.ckpt"
    before = best.read_bytes()
    RoundCheckpoint().setup(SimpleNamespace(is_global_zero=True, default_root_dir=tmp_path), None, "fit")
    assert {p.name for p in folder.iterdir()} == {"round-000001-update-000.ckpt", best.name}  # shards are written in place
    fit(tmp_path, [0.2, 0.1, 0.1], resume=folder / "round-000001-update-000.ckpt", every_n_rounds=1)
    assert names(tmp_path) == ["round-000002-update-000.ckpt", "round-000003-update-000.ckpt"]
    assert names(tmp_path, best=True) == [best.name] and best.read_bytes() == before


@pytest.mark.parametrize(
    ("best", "words"),
    [
        (
            "eval/c/accuracy",
            "checkpoint.best is eval/c/accuracy, which nothing measures; expected a tag that begins with eval/b/",
        ),
        ("eval/b/maj@8", r"checkpoint.best is eval/b/maj@8, .*; expected one of eval/b/accuracy, eval/b/avg@1, eval/b/high, "),
    ],
)
def test_a_tag_that_is_not_measured_is_refused_with_those_that_are(tmp_path, best, words):
    with pytest.raises(ConfigError, match=words):
        fit(tmp_path, [0.2], best=best)


def test_a_run_without_benchmarks_has_no_best_checkpoint(tmp_path):
    saver = RoundCheckpoint(best="eval/b/accuracy")
    with pytest.raises(ConfigError, match="which nothing measures; expected a benchmark in data.benchmarks"):
        tiny_trainer(default_root_dir=tmp_path, callbacks=[saver]).fit(tiny_grpo(), datamodule=tiny_data())


def test_without_best_a_checkpoint_holds_what_it_held(tmp_path):
    trainer = tiny_trainer(max_epochs=1, default_root_dir=tmp_path, callbacks=[RoundCheckpoint(every_n_rounds=1)])
    trainer.fit(tiny_grpo(), datamodule=tiny_data(benchmarks={"b": ONE}))
    (path,) = checkpoints_in(tmp_path)
    assert "RoundCheckpoint" not in torch.load(path, weights_only=True)["callbacks"] and not names(tmp_path, best=True)


# The command line


def test_k_and_the_task_of_a_benchmark_are_settings(tmp_path, capsys):
    config = tmp_path / "run.yaml"
    config.write_text(
        "model:\n  class_path: GRPO\n  init_args:\n"
        "    policy: {hidden_size: 16, layers: 1, heads: 2, kv_heads: 2, alphabet: '0123456789+=#'}\n"
        "data:\n  class_path: RolloutDataModule\n  init_args:\n"
        "    task: {class_path: Addition}\n    prompts_per_step: 2\n    completions_per_prompt: 2\n"
        "    benchmarks:\n      wide:\n        split: held_out\n        k: [1, 4]\n"
        "        sampling: {n: 4, max_new_tokens: 4}\n        limit: 3\n"
        "        task: {class_path: tiny.EvenDigits, init_args: {digits: 3}}\n"
        f"run_dir: {tmp_path / 'run'}\n"
        "trainer: {accelerator: cpu, devices: 1, enable_progress_bar: false, enable_model_summary: false}\n"
        "checkpoint: {best: eval/wide/pass@4}\n"
    )
    with pytest.raises(SystemExit):
        cli.main(["fit", "--config", str(config), "--print_config"])
    printed = yaml.safe_load(capsys.readouterr().out)
    wide = printed["data"]["init_args"]["benchmarks"]["wide"]
    assert wide["k"] == [1, 4] and wide["task"]["class_path"] == "tiny.EvenDigits"
    cli.main(["fit", "--config", str(config)])
    (row,) = read_rows(tmp_path / "run" / "evaluation.jsonl")
    assert {"pass@1", "pass@4", "maj@4", "avg@1"} <= row["benchmarks"]["wide"].keys()
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["after"]["at_k"]["wide"]["pass@4"] == row["benchmarks"]["wide"]["pass@4"] > 0
    assert names(tmp_path / "run", best=True) == ["best-round-000001-update-000.ckpt"]
