"""How a question becomes tokens: once, through the template, and within its limit."""

import re
from pathlib import Path

import pytest
import yaml
from lightning.pytorch.callbacks import Callback
from tokenizers.processors import TemplateProcessing

import fulgurite.trainer_cli  # noqa: F401 - here, so that its loggers do not bind to the stream of one test
from fulgurite import cli
from fulgurite.data.prompts import encode, within_limit
from fulgurite.data.supervised_datamodule import SupervisedDataModule
from fulgurite.data.task_datamodule import Benchmark
from fulgurite.models.sources import load_tokenizer
from fulgurite.models.tiny import TinyModel
from fulgurite.modules.supervised import SupervisedFineTuning
from fulgurite.tasks.addition import Addition
from fulgurite.tasks.prompting import PromptStyle
from fulgurite.types import ConfigError, Prompt, SamplingSpec
from records import RecordingLogger
from tiny import TINY, EvenDigits, tiny_data, tiny_grpo, tiny_trainer

TURNS = "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}"
REPLY = "{% if add_generation_prompt %}[assistant]{% endif %}"
SWITCH = "{% if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}"


def tokenizer_with_bos(chat_template: str | None = TURNS + REPLY):
    """Every byte is a token, and a `<bos>` is put in front of every text that is tokenised with special tokens."""
    tokenizer = load_tokenizer(TinyModel())
    tokenizer.add_special_tokens({"bos_token": "<bos>"})
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", tokenizer.bos_token_id)]
    )
    tokenizer.chat_template = chat_template
    return tokenizer


def text_of(style: PromptStyle, question: str, tokenizer) -> str:
    (prompt,) = encode([style.prompt(question, id="q")], tokenizer)
    return tokenizer.decode(prompt.token_ids)


def test_a_style_puts_its_words_around_the_question_and_keeps_the_question():
    style = PromptStyle("Solve: {question}\nUse \\boxed{}.", chat=True, system="Be brief.", thinking=False)
    assert style.prompt("What is {question}?", id="a", answer="7") == Prompt(
        id="a",
        text="Solve: What is {question}?\nUse \\boxed{}.",
        messages=(
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Solve: What is {question}?\nUse \\boxed{}."},
        ),
        answer="7",
        metadata={"question": "What is {question}?"},
        thinking=False,
    )
    plain = PromptStyle().prompt("1+1?", id="b")
    assert (plain.text, plain.messages, plain.thinking) == ("1+1?", (), None)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"template": "{problem}"}, "template is '{problem}'; expected it to contain {question}"),
        ({"system": "Be brief."}, "system is given but chat is false"),
        ({"system": ""}, "system is given but chat is false"),
        ({"thinking": False}, "thinking is given but chat is false"),
    ],
)
def test_styles_that_would_not_do_what_they_say_are_refused(settings, words):
    with pytest.raises(ConfigError, match=words):
        PromptStyle(**settings)


def test_a_prompt_begins_once():
    tokenizer = tokenizer_with_bos()
    assert tokenizer("x").input_ids[0] == tokenizer.bos_token_id
    assert text_of(PromptStyle(chat=True, system="S"), "1+1?", tokenizer) == "<bos>[system]S[user]1+1?[assistant]"
    assert text_of(PromptStyle(), "1+1?", tokenizer) == "<bos>1+1?"
    with pytest.raises(ConfigError, match="prompt 'q' begins with two <bos> tokens; expected one"):
        text_of(PromptStyle("<bos>{question}"), "1+1?", tokenizer)


def test_a_tokenizer_without_a_chat_template_is_refused():
    with pytest.raises(ConfigError, match="'q' has messages, and the tokenizer of .* has no chat template; set chat: false"):
        text_of(PromptStyle(chat=True), "1+1?", tokenizer_with_bos(chat_template=None))


def test_thinking_is_switched_only_by_a_template_that_has_the_switch():
    tokenizer = tokenizer_with_bos(TURNS + REPLY + SWITCH)
    texts = [text_of(PromptStyle(chat=True, thinking=thinking), "1+1?", tokenizer) for thinking in (None, True, False)]
    begin = "<bos>[user]1+1?[assistant]"
    assert texts == [begin, begin, begin + "<think></think>"]
    with pytest.raises(ConfigError, match="thinking is True, and the chat template of .* has no thinking switch; leave it out"):
        text_of(PromptStyle(chat=True, thinking=True), "1+1?", tokenizer_with_bos())


def test_what_a_template_refuses_is_said_with_its_words():
    template = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + TURNS
    with pytest.raises(ConfigError, match="the chat template of .* refuses prompt 'q': System role not supported"):
        text_of(PromptStyle(chat=True, system="S"), "1+1?", tokenizer_with_bos(template))


def test_the_example_of_the_docs_parses_and_keeps_the_rest_of_the_default(tmp_path, capsys, monkeypatch):
    page = (Path(__file__).parents[1] / "docs" / "concepts.md").read_text()
    (example,) = re.findall(r"```yaml\n(task:.*?)```", page, re.DOTALL)
    given = yaml.safe_load(example)["task"]["init_args"]
    monkeypatch.chdir(tmp_path)
    Path("data").mkdir()
    for name in ("train.jsonl.gz", "test.parquet"):
        (tmp_path / "data" / name).touch()
    data = {"prompts_per_step": 1, "completions_per_prompt": 2, "task": yaml.safe_load(example)["task"]}
    model = {"class_path": "GRPO", "init_args": {"policy": "x"}}
    config = {"model": model, "data": {"class_path": "RolloutDataModule", "init_args": data}}
    Path("run.yaml").write_text(yaml.safe_dump(config))

    def parsed(*options):
        with pytest.raises(SystemExit):
            cli.main(["fit", "--config", "run.yaml", *options, "--print_config"])
        return yaml.safe_load(capsys.readouterr().out)["data"]["init_args"]["task"]["init_args"]

    task = parsed()
    assert task["style"] == given["style"]
    assert all(task["splits"][split].items() >= source.items() for split, source in given["splits"].items())
    del data["task"]["init_args"]["style"]
    Path("run.yaml").write_text(yaml.safe_dump(config))
    template = "{question}\nReason step by step. End with #### and the answer, a number.\n"
    assert parsed("--data.task.style.chat", "true")["style"] == {
        "template": template, "chat": True, "system": None, "thinking": None,
    }  # fmt: skip


# Prompt length


def test_prompts_of_the_limit_itself_stay_and_longer_ones_are_named():
    prompts = [Prompt(name, token_ids=tuple(range(size))) for name, size in (("a", 3), ("b", 5), ("c", 4), ("d", 6))]
    assert within_limit(prompts, None, "x", "") == within_limit(prompts, 6, "x", "") == prompts
    assert [p.id for p in within_limit(prompts, 4, "x", "", drop=True)] == ["a", "c"]
    with pytest.raises(
        ConfigError, match="2 of 4 prompts of x are too long: 'd' has 6 tokens; expected at most max_.* 4: do it"
    ):
        within_limit(prompts, 4, "x", "do it")
    with pytest.raises(ConfigError, match="4 of 4 prompts of x are too long"):
        within_limit(prompts, 2, "x", "do it", drop=True)


class Unequal(EvenDigits):
    """Sums whose first operand is 0 have two tokens more."""

    def prompts(self, split):
        longer = {"train": 2, "held_out": 0, "long": 2}[split]
        found = super().prompts("train" if split == "long" else split)
        style = {False: PromptStyle(), True: PromptStyle("+" * longer + "{question}")}
        return [style[p.id.startswith("0")].prompt(p.id, id=p.id, answer=p.answer) for p in found]


def fit(data, module=None, **trainer):
    tiny_trainer(max_epochs=1, enable_checkpointing=False, **trainer).fit(module or tiny_grpo(), datamodule=data)
    return data


LONG = len([p for p in Addition(digits=1).prompts("train") if p.id.startswith("0")])
TRAIN = len(Addition(digits=1).prompts("train"))


def test_long_prompts_are_refused_before_a_model_is_made_or_dropped_and_counted(caplog):
    module = tiny_grpo()
    words = (
        rf"{LONG} of {TRAIN} prompts of the split 'train' are too long: '0\+.=' has 6 tokens; expected at most .* 5: raise it"
    )
    with pytest.raises(ConfigError, match=words + ", or set long_prompts: drop"):
        fit(tiny_data(task=Unequal(digits=1), max_prompt_tokens=5), module)
    assert not len(module.trained)
    logger = RecordingLogger()
    data = fit(tiny_data(task=Unequal(digits=1), max_prompt_tokens=5, long_prompts="drop"), logger=logger)
    assert 0 < LONG < TRAIN and len(data.training_prompts) == TRAIN - LONG
    assert not any(p.id.startswith("0") for p in data.training_prompts)
    assert logger.series("data/dropped_prompts") == [(0, LONG)]
    assert f"{LONG} of {TRAIN} prompts of the split 'train' have more than 5 tokens: dropped" in caplog.text
    logger = RecordingLogger()
    assert len(fit(tiny_data(task=Unequal(digits=1)), logger=logger).training_prompts) == TRAIN
    assert logger.series("data/dropped_prompts") == []


def test_rounds_are_drawn_from_the_prompts_that_are_left():
    drawn = []

    class Look(Callback):
        def on_round(self, trainer, module, sampled, kept):
            drawn.extend(prompt.id for prompt in sampled.prompts)

    whole_pass = {"prompts_per_step": TRAIN - LONG, "max_prompt_tokens": 5, "long_prompts": "drop"}
    data = fit(tiny_data(task=Unequal(digits=1), **whole_pass), callbacks=[Look()])
    assert sorted(drawn) == sorted(prompt.id for prompt in data.training_prompts)


def test_supervised_data_has_the_same_limit():
    def data(**limit):
        return SupervisedDataModule(Unequal(digits=1), prompts_per_step=2, updates_per_round=60, **limit)

    kept = fit(data(max_prompt_tokens=4, long_prompts="drop"), SupervisedFineTuning(TINY))
    assert len(kept.training_prompts) == TRAIN - LONG
    assert max(len(kept.minibatch(i).tokens[0]) for i in range(TRAIN)) == 4 + len("#17") + 1
    with pytest.raises(ConfigError, match="too long"):
        fit(data(max_prompt_tokens=4), SupervisedFineTuning(TINY))


def test_a_benchmark_is_never_made_shorter():
    data = tiny_data(
        task=Unequal(digits=1),
        max_prompt_tokens=5,
        long_prompts="drop",
        benchmarks={"sums": Benchmark("long", SamplingSpec(max_new_tokens=4))},
    )
    with pytest.raises(
        ConfigError, match="of the benchmark 'sums' are too long: .* 5: raise it, a benchmark keeps all prompts"
    ):
        fit(data)
    with pytest.raises(ConfigError, match="of the benchmark 'sums' are too long"):
        tiny_trainer(enable_checkpointing=False).validate(tiny_grpo(), datamodule=data, verbose=False)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"long_prompts": "drop"}, "long_prompts is drop, but no prompt is too long without max_prompt_tokens"),
        ({"max_prompt_tokens": 0}, "max_prompt_tokens is 0; expected at least 1"),
    ],
)
def test_a_limit_that_says_nothing_is_refused(settings, words):
    with pytest.raises(ConfigError, match=words):
        tiny_data(**settings)


def test_a_stop_text_ends_the_completions_of_a_round():
    seen = []

    class Watched(EvenDigits):
        def judge(self, prompt, completion):
            seen.append(completion)
            return super().judge(prompt, completion)

    fit(tiny_data(task=Watched(digits=1), sampling=SamplingSpec(max_new_tokens=30, stop=("#",))))
    stopped = [c for c in seen if c.finish_reason == "stop"]
    tokenizer = load_tokenizer(TINY)
    ends = [tokenizer.decode(c.token_ids)[-1] for c in stopped if c.token_ids[-1] != tokenizer.eos_token_id]
    assert len(ends) > 3 and set(ends) == {"#"} and not any("#" in c.text for c in seen)
