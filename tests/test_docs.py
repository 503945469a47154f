"""The documentation is true: its commands parse or run, its examples train, its tables are those of the code."""

import inspect
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections import defaultdict
from dataclasses import fields, is_dataclass
from fnmatch import fnmatch
from math import comb, sqrt
from pathlib import Path

import pytest
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import fulgurite.trainer_cli  # noqa: F401 - here, so that its loggers do not bind to the stream of one test
from fulgurite import cli
from fulgurite.callbacks.tsallis import TsallisReweighting
from fulgurite.compare.plan import Arm, Plan
from fulgurite.config_only import data_of
from fulgurite.data.gold import GoldAnswer
from fulgurite.data.rewards import add_rewards
from fulgurite.data.rollout_datamodule import RolloutDataModule
from fulgurite.models.adapters import LoRA
from fulgurite.modules.grpo import GRPO
from fulgurite.parallel import FSDP2Strategy
from fulgurite.types import Completion, Prompt, Verdict

ROOT = Path(__file__).parents[1]
START, CONCEPTS, ADD, GUARDS, SCALE = (
    ROOT / "docs" / f"{name}.md" for name in ("start", "concepts", "add-a-method", "guards", "scale")
)
GRPO_PAGE, TSALLIS_PAGE = (ROOT / "docs" / "methods" / f"{name}.md" for name in ("grpo", "tsallis"))
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
NOT_RUN = ("source .venv/bin/activate", "tensorboard --logdir runs", "export PYTHONPATH=.")
SMALL = [
    "--tiny", "true", "--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false",
    "--trainer.enable_model_summary", "false",
]  # fmt: skip


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)


def commands(page: Path) -> list[str]:
    return [line for block in blocks(page, "bash") for line in block.splitlines()]


def named_files(page: Path) -> dict[str, str]:
    """{file: text} of the blocks whose first line is the name of a file."""
    found = [block.split("\n", 1) for language in ("python", "yaml", "markdown") for block in blocks(page, language)]
    return {first[2:]: text for first, text in found if re.fullmatch(r"# [\w./-]+\.(py|yaml|md)", first)}


def tables(page: Path, heading: str = "") -> list[list[str]]:
    """The cells of every row of the tables below a heading, or of the whole page, without those of the head."""
    text = page.read_text()
    if heading:
        text = re.split(r"^#+ ", text.split(f"# {heading}\n", 1)[1], maxsplit=1, flags=re.MULTILINE)[0]
    rows = [[cell.strip() for cell in line[1:-1].split("|")] for line in text.splitlines() if line.startswith("|")]
    heads = {i - 1 for i, row in enumerate(rows) if set("".join(row)) <= set("-|")}
    return [row for i, row in enumerate(rows) if i not in heads and i - 1 not in heads]


def code(cell: str) -> str:
    return re.match(r"`([^`]+)`", cell)[1]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory) -> Path:
    """A folder in which the commands of the pages can be given: the configs, and the files that a page says to write."""
    folder = tmp_path_factory.mktemp("workspace")
    shutil.copytree(ROOT / "configs", folder / "configs")
    for page in PAGES:
        write_files(folder, named_files(page))
    return folder


def write_files(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


# Tables of settings


def test_the_page_of_comparisons_has_every_setting():
    listed = {code(row[0]) for row in tables(ROOT / "docs" / "compare.md", "Settings")}
    assert listed == {f.name for kind in (Plan, Arm) for f in fields(kind)}


def test_the_page_on_scale_has_every_setting_of_strategy_and_adapters():
    for heading, kind in (("Several GPUs in one machine", FSDP2Strategy), ("Adapters", LoRA)):
        documented = {code(key): yaml.safe_load(default.strip("`")) for key, default, _ in tables(SCALE, heading)}
        assert documented == {name: value for name, value in defaults_of(kind).items() if name != "kwargs"}


# Commands


def parsed(words: list[str], capsys) -> dict:
    """The config that a `fulgurite` command stands for; every option of the command must be in it."""
    options = [word for word in words if word != "--print_config"]
    with pytest.raises(SystemExit) as stop:
        cli.main([*options, "--print_config"])
    printed = capsys.readouterr()
    assert not stop.value.code, printed.err
    config = yaml.safe_load(printed.out)
    for option, given in zip(options[1::2], options[2::2], strict=True):
        if option != "--config":
            value = config
            for key in option.removeprefix("--").split("."):
                value = value[key]
            assert value in (yaml.safe_load(given), given), f"{option} is {value} in the config of {shlex.join(words)}"
    return config


CASES = [pytest.param(page, line, id=f"{page.stem}-{line}") for page in PAGES if page != ADD for line in commands(page)]


@pytest.mark.parametrize(("page", "line"), CASES)
def test_every_command_works(page, line, workspace, tmp_path, monkeypatch, capsys, request):
    words = shlex.split(line)
    if words[:2] == ["fulgurite", "export"]:
        (tmp_path / words[2]).parent.mkdir(parents=True)
        (tmp_path / words[2]).symlink_to(request.getfixturevalue("run_folder"))
        monkeypatch.chdir(tmp_path)
        cli.main(words[1:])
        assert {"model.safetensors", "README.md", "fulgurite.yaml"} <= set(os.listdir(words[3]))
    elif words[:2] == ["fulgurite", "browse"]:
        shutil.copytree(request.getfixturevalue("run_folder") / "rounds", tmp_path / words[2] / "rounds")
        monkeypatch.chdir(tmp_path)
        cli.main(words[1:])
        assert (tmp_path / words[2] / "browse" / "index.html").is_file()
    elif words[:2] == ["fulgurite", "explain"]:
        monkeypatch.chdir(workspace)
        cli.main(words[1:])
        assert "GB of a process, estimated" in capsys.readouterr().out
    elif words[0] == "fulgurite":
        monkeypatch.chdir(workspace)
        monkeypatch.syspath_prepend(workspace)
        parsed(words[1:], capsys)
    elif words[0] == "bash":
        calls = calls_of(words[1:], tmp_path)
        assert calls
        monkeypatch.chdir(workspace)
        for program, *arguments in calls:
            if program == "fulgurite":
                parsed(arguments, capsys)
            elif arguments[0] != "-m":
                assert (ROOT / arguments[0]).is_file()
    else:
        assert line in NOT_RUN, f"{name_of(page)} has a command that no test runs: {line}"


def environment(folder: Path) -> Path:
    """A copy of the scripts with stand-ins for the programs of their environment, which write down how they are called."""
    shutil.copytree(ROOT / "tools", folder / "tools")
    programs = folder / ".venv" / "bin"
    programs.mkdir(parents=True)
    shutil.copy(ROOT / "pyproject.toml", folder / ".venv" / "made-from.toml")
    shutil.copy(ROOT / "pyproject.toml", folder)
    for program in ("fulgurite", "python"):
        (programs / program).write_text(f'#!/bin/sh\necho "{program} $*" >> "{folder}/calls"\n')
        (programs / program).chmod(0o755)
    (programs / "ruff").symlink_to("/bin/true")
    return folder


def calls_of(words: list[str], folder: Path) -> list[list[str]]:
    """What a script calls in an environment that has vLLM."""
    package = environment(folder) / ".venv" / "lib" / "python3.11" / "site-packages" / "vllm"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    ran = subprocess.run(["bash", *words], cwd=folder, capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stderr
    return [line.split() for line in (folder / "calls").read_text().splitlines()]


def test_the_quick_start_passes_on_its_seed(tmp_path):
    calls = calls_of(["tools/quickstart.sh", "7"], tmp_path)
    assert [call[1] for call in calls if call[0] == "fulgurite"] == ["fit", "validate", "fit", "validate"]
    assert all(call[-2:] == ["--seed_everything", "7"] for call in calls if call[0] == "fulgurite")


def test_the_tests_get_the_arguments_of_their_script(tmp_path):
    (call,) = calls_of(["tools/test.sh", "-k", "golden"], tmp_path)
    assert call[:3] == ["python", "-m", "pytest"] and call[-2:] == ["-k", "golden"]


@pytest.mark.parametrize("ci", ["true", ""])
def test_vllm_is_skipped_aloud_where_it_cannot_be_installed_but_never_in_ci(tmp_path, ci):
    (environment(tmp_path) / ".venv" / "bin" / "pip").symlink_to("/bin/false")
    ran = subprocess.run(["bash", "tools/test.sh"], cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "CI": ci})
    if ci:
        assert ran.returncode == 1 and "CI runs no tests without it" in ran.stderr and not (tmp_path / "calls").exists()
    else:
        assert ran.returncode == 0 and "SKIPPED: vLLM's CPU build cannot be installed here" in ran.stdout
        assert "-m pytest" in (tmp_path / "calls").read_text()


def test_the_examples_of_tasks_and_rewards_are_made(workspace, monkeypatch):
    monkeypatch.chdir(workspace)
    monkeypatch.syspath_prepend(workspace)
    (workspace / "data").mkdir(exist_ok=True)
    (workspace / "data" / "dev.jsonl.gz").touch()
    examples = [yaml.safe_load(block) for block in blocks(ROOT / "docs" / "tasks.md", "yaml")]
    made = []
    for example in examples:
        config = {"data": {"init_args": example}} if "task" in example else example
        (workspace / "example.yaml").write_text(yaml.safe_dump(config))
        made.append(data_of(["--config", "configs/gsm8k.yaml", "--config", "example.yaml"]))
    qa, gsm8k, knights, several, brief = made
    assert [type(data.task).__name__ for data in made] == ["QA", "GSM8K", "KnightsKnaves", "GSM8K", "GSM8K"]
    assert qa.task.context == ("text", "table") and qa.task.splits["dev"].columns == {"text": "report"}
    assert knights.task.generate.people == [3, 4, 5] and gsm8k.task.grader.workers == 2
    assert several.rewards.keys() == {"overlong", "accuracy", "format"} and brief.rewards.keys() == {"overlong", "brief"}
    pairs = [(Prompt("q"), Completion((1,), (0.0,), "stop", "It is 7."))]
    verdicts = add_rewards(pairs, [Verdict("correct", {"accuracy": 1.0}, 1.0)], brief.rewards, brief.grader)
    assert verdicts[0].reward == 1.1


# Links and names


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page):
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]+))?\)", page.read_text()):
        path = page.parent / target if target else page
        assert path.exists(), f"{name_of(page)} links to {target}, which does not exist"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", path.read_text(), re.MULTILINE)
            slugs = [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings]
            assert anchor in slugs, f"{name_of(page)} links to {target}#{anchor}; the page has {slugs}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_files_and_tests_that_a_page_names_exist(page):
    new = named_files(page)
    for path, test in re.findall(r"`((?:src|tests|configs|tools|docs)/[\w./-]+)(?:::(\w+))?`", page.read_text()):
        assert path in new or (ROOT / path).exists(), f"{name_of(page)} names {path}, which does not exist"
        text = new[path] if path in new else "" if not test else (ROOT / path).read_text()
        assert not test or f"def {test}(" in text, f"{name_of(page)} names {path}::{test}, which does not exist"


# Tables


def defaults_of(kind: type) -> dict[str, object]:
    """{dotted key: default} of a class, settings inside settings included; `required` where there is none."""
    found = {}
    for name, parameter in inspect.signature(kind).parameters.items():
        if is_dataclass(parameter.default):
            found |= {f"{name}.{f.name}": getattr(parameter.default, f.name) for f in fields(parameter.default)}
        else:
            found[name] = "required" if parameter.default is parameter.empty else parameter.default
    return found


def test_the_settings_of_grpo_are_those_of_the_code():
    documented = {code(key): yaml.safe_load(default.strip("`")) for key, default, _ in tables(GRPO_PAGE, "Settings")}
    module = {key: value for key, value in documented.items() if not key.startswith("data.")}
    data = {key.removeprefix("data."): value for key, value in documented.items() if key.startswith("data.")}
    expected = {key: list(value) if isinstance(value, tuple) else value for key, value in defaults_of(GRPO).items()}
    assert module == expected
    assert len(data) > 10 and data.items() <= defaults_of(RolloutDataModule).items()


def test_the_settings_of_garl_and_paft_are_those_of_the_code():
    documented = {code(key): default.strip("`") for key, default, _ in tables(TSALLIS_PAGE, "Settings")}
    expected = {**defaults_of(TsallisReweighting), **defaults_of(GoldAnswer)}
    words = {None: "null", True: "true"}
    assert documented == {key: words.get(value, str(value)) for key, value in expected.items()}


def test_the_kappa_table_is_right():
    shares = (0.02, 0.1, 0.5)
    rows = [row for row in tables(GRPO_PAGE, "What the gradient is, exactly") if len(row) == 4]
    assert len(rows) == 6
    for size, *shown in rows:
        for p, value in zip(shares, shown, strict=True):
            kappa = 1 / sqrt(p * (1 - p))
            if size != "infinite":
                n = int(size)
                mean = sum(comb(n, k) * p**k * (1 - p) ** (n - k) * sqrt(k * (n - k)) for k in range(n + 1))
                kappa = mean / (n * p * (1 - p))
            assert value == f"{kappa:.3f}"


def test_every_guard_has_a_row_and_every_row_a_guard():
    files = {path.stem for path in (ROOT / "src" / "fulgurite" / "guards").glob("[a-z]*.py")}
    assert {re.sub(r"\W", "_", row[0]) for row in tables(GUARDS)} == files


FAULT_TESTS = {
    "truncation": "faults/test_guards.py::test_truncated_rounds_in_a_row_stop_the_run",
    "all_equal_groups": "faults/test_guards.py::test_rounds_of_all_equal_groups_stop_the_run",
    "failed_grading": "faults/test_guards.py::test_rounds_on_which_the_grader_fails_stop_the_run",
    "non_finite": "faults/test_guards.py::test_skipped_updates_in_a_row_stop_the_run",
    "engine_weights": "faults/test_engine_faults.py::test_a_faulty_engine_stops_the_run_and_is_named",
    "engine_gap": "faults/test_guards.py::test_an_engine_whose_logprobs_are_shifted_stops_the_run",
    "vocabulary": "methods/test_codistill.py::test_other_tokenizers_are_refused_with_the_first_token_that_differs",
    "weights_move": "faults/test_guards.py::test_bfloat16_updates_that_round_away_stop_the_run",
    "empty_minibatch": "faults/test_guards.py::test_empty_rounds_only_warn_by_default_and_stop_the_run_if_asked",
    "contamination": "test_contamination.py::test_a_run_on_leaked_questions_is_stopped_before_a_model_is_made",
    "short_round": "faults/test_run_faults.py::test_a_loader_that_ends_early_stops_the_run",
    "changed_settings": "test_cli.py::test_a_run_leaves_config_environment_results_and_refuses_to_be_overwritten",
    "changed_model": "faults/test_run_faults.py::test_another_reference_is_refused_on_resume",
    "changed_data": "test_contamination.py::test_a_run_is_not_resumed_on_other_data",
}


def test_every_guard_has_a_fault_test():
    assert FAULT_TESTS.keys() == {path.stem for path in (ROOT / "src" / "fulgurite" / "guards").glob("[a-z]*.py")}
    for place in FAULT_TESTS.values():
        path, test = place.split("::")
        assert f"def {test}(" in (ROOT / "tests" / path).read_text(), place


# A real run, by the command line


@pytest.fixture(scope="module")
def run_folder(workspace, tmp_path_factory) -> Path:
    """A run of GRPO with every part that writes a tag switched on, and its predictions."""
    folder = tmp_path_factory.mktemp("grpo") / "run"
    options = [
        "--config", str(workspace / "configs" / "quickstart" / "grpo.yaml"), "--run_dir", str(folder), *SMALL,
        "--trainer.max_epochs", "2", "--trainer.check_val_every_n_epoch", "1", "--model.init_args.kl_beta", "0.1",
        "--model.init_args.importance.mode", "mask",
        "--data.init_args.task", "tiny.EvenDigits", "--data.init_args.prompts_per_step", "16",
        "--data.init_args.benchmarks", "{sampled: {split: held_out, limit: 8, k: [2], sampling: {max_new_tokens: 4, n: 2}}}",
    ]  # fmt: skip
    cli.main(["fit", *options])
    cli.main(["predict", *options, "--ckpt_path", "last"])
    return folder


def tags_of(folder: Path) -> set[str]:
    events = EventAccumulator(str(folder)).Reload().Tags()
    written = {tag for kind in ("scalars", "histograms", "tensors") for tag in events[kind]}
    tags = {tag for tag in written if tag != "custom_scalars__config__" and not tag.startswith("_hparams_/")}
    return {tag.removesuffix("/text_summary") for tag in tags}


def sorted_by_form(tags: set[str], listed: dict[str, str]) -> dict[str, set[str]]:
    """{tag as listed: those seen}, with `not listed` for the rest."""
    forms = {tag: re.compile(re.sub(r"<\w+>", r"[^/]+?", tag)) for tag in listed if "<" in tag}
    seen = defaultdict(set)
    for tag in tags:
        form = tag if tag in listed else next((form for form, tail in forms.items() if tail.fullmatch(tag)), "not listed")
        seen[form].add(tag)
    return seen


@pytest.mark.parametrize(("name", "needs"), [("cold_paft", "`TsallisReweighting`"), ("codistill", "`CoDistillGRPO`")])
def test_the_tags_of_further_methods_are_listed(name, needs, workspace, tmp_path):
    benchmarks = "{sampled: {split: held_out, limit: 8, sampling: {max_new_tokens: 4}}}"
    options = [
        "--config", str(workspace / "configs" / "quickstart" / f"{name}.yaml"), "--run_dir", str(tmp_path / "run"), *SMALL,
        "--trainer.max_epochs", "1", "--trainer.check_val_every_n_epoch", "1", "--data.init_args.prompts_per_step", "8",
        "--data.init_args.task", "tiny.EvenDigits", "--data.init_args.benchmarks", benchmarks,
    ]  # fmt: skip
    cli.main(["fit", *options])
    listed = {code(row[0]): row[2] for row in tables(CONCEPTS, "TensorBoard tags")}
    seen = sorted_by_form(tags_of(tmp_path / "run"), listed)
    assert seen.pop("not listed", set()) == set()
    assert {tag for tag, meaning in listed.items() if f"only with {needs}" in meaning} <= set(seen)


def test_the_tags_of_a_run_are_those_listed(run_folder):
    listed = {code(row[0]): row[2] for row in tables(CONCEPTS, "TensorBoard tags")}
    seen = sorted_by_form(tags_of(run_folder), listed)
    assert seen.pop("not listed", set()) == set()
    assert set(listed) - set(seen) == {
        tag
        for tag, meaning in listed.items()
        if any(
            words in meaning
            for words in ("CUDA only", "only where all groups are pairs", "with `TsallisReweighting`", "with `CoDistillGRPO`")
        )
    }
    assert seen["reward/<name>"] == {"reward/even"} and seen["lr/<model>"] == {"lr/policy"}


def test_the_tags_of_a_supervised_run_are_those_named(workspace, tmp_path):
    config = workspace / "configs" / "quickstart" / "sft.yaml"
    cli.main(["fit", "--config", str(config), "--run_dir", str(tmp_path), *SMALL, "--trainer.max_epochs", "1",
              "--data.init_args.prompts_per_step", "4", "--trainer.limit_val_batches", "1"])  # fmt: skip
    (sentence,) = re.findall(r"^A supervised run has the tags of (.*?)\.$", CONCEPTS.read_text(), re.MULTILINE | re.DOTALL)
    named = set(re.findall(r"`([^`]+)`", sentence))
    tags = tags_of(tmp_path)
    assert named == {tag if tag in named else tag.split("/")[0] + "/" for tag in tags}


def test_the_files_of_a_run_are_those_listed(run_folder):
    files = {str(path.relative_to(run_folder)) for path in run_folder.rglob("*") if path.is_file()}
    listed = [code(row[0]) for row in tables(START, "The run folder")]
    assert {file for file in files if not any(fnmatch(file, pattern) for pattern in listed)} == set()
    assert [pattern for pattern in listed if not any(fnmatch(file, pattern) for file in files)] == []


# The examples


def test_the_python_example_trains(tmp_path, monkeypatch):
    (example,) = blocks(START, "python")
    assert len([line for line in example.splitlines() if line]) <= 16
    monkeypatch.chdir(tmp_path)
    exec(compile(example, str(START), "exec"), {})
    rounds = tmp_path / "runs" / "python" / "grpo" / "rounds"
    updates = [json.loads(line) for path in sorted(rounds.glob("*.updates.jsonl")) for line in path.read_text().splitlines()]
    assert [update["round"] for update in updates] == [0, 1]
    assert all(update["empty"] == 0 and update["grad_norm/policy"] > 0 for update in updates)


FOLLOW = """
import json, sys
import pytest
import fulgurite.trainer_cli
from fulgurite import cli

tests, fits = json.loads(sys.argv[1])
for words in tests:
    if failed := pytest.main(["-q", "-p", "no:cacheprovider", *words]):
        sys.exit(int(failed))
for words in fits:
    try:
        cli.main(words)
    except SystemExit as stop:
        if stop.code:
            raise
"""


def test_a_method_added_to_the_letter_trains(tmp_path):
    """In a copy of the repository: the style and the tests that the page names, its long commands parsed, its tiny one run."""
    for name in ("src", "tests", "configs", "docs", "tools"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    new = named_files(ADD)
    assert len(new) == 5 and len({(tmp_path / name).exists() for name in new}) == 1  # all, where the page was followed
    write_files(tmp_path, new)
    styled = [name for name in new if not name.endswith(".yaml")]
    for check in (["check", "-q"], ["format", "-q", "--check"]):
        ran = subprocess.run([sys.executable, "-m", "ruff", *check, *styled], cwd=tmp_path, capture_output=True, text=True)
        assert ran.returncode == 0, ran.stdout + ran.stderr

    lines = [shlex.split(line) for line in commands(ADD)]
    tests = [words[2:] for words in lines if words[:2] == ["bash", "tools/test.sh"]]
    tried, warmed, trained = (words[1:] for words in lines if words[0] == "fulgurite")
    assert len(lines) == 4 and len(tests) == 1
    assert new["configs/variants/group_mean.yaml"].startswith(f"# fulgurite {shlex.join(trained)}\n")
    fits = [
        [*warmed, "--print_config"],
        [*trained, "--print_config"],
        [*tried, *SMALL, "--data.init_args.task", "tiny.EvenDigits"],
    ]
    ran = subprocess.run(
        [sys.executable, "-c", FOLLOW, json.dumps([tests, fits])], cwd=tmp_path, capture_output=True, text=True, timeout=250,
        env={**os.environ, "PYTHONPATH": f"{tmp_path / 'src'}:{tmp_path / 'tests'}", "PYTHONDONTWRITEBYTECODE": "1"},
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout[-3000:] + ran.stderr[-3000:]

    rounds = sorted((tmp_path / tried[tried.index("--run_dir") + 1] / "rounds").glob("*.completions.jsonl"))
    assert len(rounds) == 2
    groups = defaultdict(list)
    for path in rounds:
        for row in map(json.loads, path.read_text().splitlines()):
            groups[path, row["prompt_id"]].append((row["reward"], row["coefficients"]["policy"]))
    live = 0
    for rows in groups.values():
        mean = sum(reward for reward, _ in rows) / len(rows)
        live += len({reward for reward, _ in rows}) > 1
        for reward, credit in rows:
            assert credit == pytest.approx((reward - mean) / mean if mean else 0.0, abs=1e-5)  # float32 rewards
    assert live > len(groups) / 2
