"""The overlays of configs/eval: what each fixes, that they add up, and that each begins with a command that works."""

from pathlib import Path

import pytest

from fulgurite.config_only import data_of
from fulgurite.tasks.knights_knaves import KnightsKnaves
from test_docs import parsed

ROOT = Path(__file__).parents[1]
OVERLAYS = sorted((ROOT / "configs" / "eval").glob("*.yaml"))
BASE = ["--config", str(ROOT / "configs" / "gsm8k.yaml")]
GREEDY = {"n": 1, "temperature": 0.0, "top_p": 1.0, "top_k": 0}
SAMPLED = {"temperature": 0.7, "top_p": 0.8, "top_k": 20}
FIXED = {
    "gsm8k": {"gsm8k": (GREEDY, 1024, []), "gsm8k_sampled": (SAMPLED | {"n": 4}, 1024, [1, 4])},
    "math500": {"math500": (GREEDY, 4096, []), "math500_sampled": (SAMPLED | {"n": 4}, 4096, [1, 4])},
    "minerva": {"minerva": (GREEDY, 4096, []), "minerva_sampled": (SAMPLED | {"n": 4}, 4096, [1, 4])},
    "amc23": {"amc23": (SAMPLED | {"n": 32}, 4096, [1, 32])},
    "aime24": {"aime24": (SAMPLED | {"n": 32}, 4096, [1, 32])},
    "knights": {f"knights_{people}": (GREEDY, 2048, []) for people in range(2, 9)},
}


def test_every_overlay_has_a_row():
    assert {path.stem for path in OVERLAYS} == FIXED.keys()


@pytest.mark.parametrize("path", OVERLAYS, ids=lambda path: path.stem)
def test_each_fixes_n_temperature_length_and_k(path):
    benchmarks = data_of([*BASE, "--config", str(path)]).benchmarks
    assert benchmarks.keys() == {"gsm8k", *FIXED[path.stem]}
    for name, (sampling, tokens, k) in FIXED[path.stem].items():
        benchmark = benchmarks[name]
        assert {key: getattr(benchmark.sampling, key) for key in sampling} == sampling
        assert (benchmark.sampling.max_new_tokens, benchmark.k, benchmark.limit) == (tokens, k, None)
        assert benchmark.task is not None and benchmark.task.style.chat


@pytest.mark.parametrize("path", OVERLAYS, ids=lambda path: path.stem)
def test_each_begins_with_a_command_that_works(path, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    head = path.read_text().splitlines()[0]
    assert head.startswith("# fulgurite ") and head.endswith(f"configs/eval/{path.name}")
    parsed(head.split()[2:], capsys)


def test_overlays_add_up_and_a_later_one_of_the_same_name_wins():
    every = [word for path in OVERLAYS for word in ("--config", str(path))]
    benchmarks = data_of([*BASE, *every]).benchmarks
    assert benchmarks.keys() == {name for fixed in FIXED.values() for name in fixed}
    assert benchmarks["gsm8k"].sampling.max_new_tokens == 1024  # 512 in configs/gsm8k.yaml
    alone = data_of([*BASE, *every, "--data.init_args.benchmarks", "{mine: {split: test}}"]).benchmarks
    assert alone.keys() == {"mine"}


def test_rewards_add_up_too(tmp_path):
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text("data: {init_args: {rewards: {accuracy: {weight: 2.0}, overlong: {weight: 0.5,\n"
                       "  function: fulgurite.rewards.shaping.length, arguments: {limit: 9}}}}}\n")  # fmt: skip
    rewards = data_of([*BASE, "--config", str(overlay)]).rewards
    assert {name: (r.weight, r.function, r.arguments) for name, r in rewards.items()} == {
        "overlong": (0.5, "fulgurite.rewards.shaping.length", {"limit": 9}),
        "accuracy": (2.0, None, {}),
    }


def test_the_puzzles_of_a_size_are_new_to_one_who_trains_on_that_size():
    benchmarks = data_of([*BASE, "--config", str(ROOT / "configs" / "eval" / "knights.yaml")]).benchmarks
    for people in range(2, 9):
        task = benchmarks[f"knights_{people}"].task
        assert isinstance(task, KnightsKnaves) and task.reward_names == ("accuracy",)
        prompts = task.prompts("held_out")
        assert len(prompts) == 100 and all(prompt.answer.count(" is a kn") == people for prompt in prompts)
        assert prompts[0].messages and "Reason between <think> and </think>." in prompts[0].text
