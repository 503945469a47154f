"""Knights and knaves: logic, puzzles, reasoning, and what an answer is worth."""

import gzip
import json
import os
import subprocess
import sys
import time
from itertools import product
from pathlib import Path
from random import Random

import jsonargparse
import pytest

from fulgurite.tasks import knights_puzzles, knights_text
from fulgurite.tasks.knights_knaves import REWARDS, KnightsKnaves, answer_span, claimed
from fulgurite.tasks.knights_letters import KnightsKnavesLetters
from fulgurite.tasks.knights_logic import draw, fits, mentioned, reason, solutions, value
from fulgurite.tasks.knights_puzzles import Generator, side
from fulgurite.tasks.knights_text import answer_text, chain_of_thought, spoken
from fulgurite.tasks.prompting import PromptStyle
from fulgurite.tasks.protocol import Task
from fulgurite.tasks.sources import Source
from fulgurite.types import Completion, ConfigError, Prompt
from golden_vectors import cases

PUBLISHED = Path(__file__).parents[2] / "shared" / "data" / "knights_knaves"
FILES = [f"{n}ppl_{kind}" for n in (3, 4, 5) for kind in ("train.jsonl.gz", "test.jsonl")]
published = pytest.mark.skipif(not PUBLISHED.is_dir(), reason="the published puzzles are not beside this checkout")
PUZZLES = {puzzle["id"]: puzzle for puzzle in cases("knights", "puzzles")}
NAMED = {"T": "telling-truth", "L": "lying"}
ANNA = {
    "n": 2,
    "quiz": "Who is what?",
    "names": ["Ann", "Anna"],
    "solution": [False, False],
    "statements": "(('or', ('telling-truth', 0), ('telling-truth', 1)), ('<=>', ('lying', 0), ('telling-truth', 1)))",
}


def said(text: str, finish_reason: str = "stop") -> Completion:
    return Completion((1,), (0.0,), finish_reason, text)


def answered(answer: str) -> Completion:
    return said(f"<think>So.</think> <answer>{answer}</answer>")


def tupled(tree):
    """A statement of the vectors with our names, as tuples."""
    return tuple(tupled(part) if isinstance(part, list) else NAMED.get(part, part) for part in tree)


def statements_of(puzzle) -> tuple:
    return tuple(map(tupled, puzzle["statements"]))


def truth(tree, world) -> bool:
    """A second evaluation, one connective after another, in one world."""
    kind, *parts = tree
    if kind in NAMED.values():
        return world[parts[0]] if kind == "telling-truth" else not world[parts[0]]
    values = [truth(part, world) for part in parts]
    return {
        "not": lambda: not values[0],
        "and": lambda: all(values),
        "or": lambda: any(values),
        "->": lambda: not (values[0] and not values[1]),
        "<=>": lambda: values[0] is values[1],
    }[kind]()


def brute_force(statements) -> set:
    worlds = product((False, True), repeat=len(statements))
    return {w for w in worlds if all(truth(s, w) is role for s, role in zip(statements, w, strict=True))}


def random_puzzles(count: int, unique: bool = True):
    """Of 2 to 6 people, depths 1 to 3."""
    random, found = Random(7), []
    while len(found) < count:
        statements = draw(random, random.randint(2, 6), random.choice((1, 2, 2, 3)), random.choice((2, 3)))
        if not unique or len(brute_force(statements)) == 1:
            found.append(statements)
    return found


def write(path: Path, rows) -> Source:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Source(str(path))


def from_file(path: Path, *rows, **settings) -> tuple[KnightsKnaves, list[Prompt]]:
    task = KnightsKnaves(splits={"train": write(path, rows or [ANNA])}, **settings)
    return task, task.prompts("train")


def generated(**settings) -> KnightsKnaves:
    return KnightsKnaves(Generator(**{"people": 3, "count": 20, "held_out": 10, **settings}))


# Logic


@pytest.mark.golden
@pytest.mark.parametrize("case", cases("knights", "truth_tables"))
def test_truth_tables(case):
    assert value(tupled(case["statement"]), case["z"], 1) == case["value"]


@pytest.mark.golden
@pytest.mark.parametrize("case", cases("knights", "solver_counts") + cases("knights", "puzzles"))
def test_every_solution_is_found(case):
    listed = case["solutions"] if "solutions" in case else [case["solution"]]
    statements, wanted = statements_of(case), set(map(tuple, listed))
    assert set(solutions(statements)) == wanted and len(solutions(statements)) == len(wanted)
    for world in product((False, True), repeat=len(statements)):
        assert fits(statements, world) == (world in wanted)


@pytest.mark.parametrize(
    ("puzzle", "wanted"),
    [
        ([["or", ["T", 0], ["T", 1]], ["<=>", ["L", 0], ["T", 1]]], "LL"),
        ([["and", ["L", 0], ["L", 1]], ["T", 1]], "LT"),
        ([["and", ["T", 2], ["L", 3]], ["T", 2], ["<=>", ["L", 4], ["T", 4]], ["and", ["L", 2], ["L", 4]], ["L", 2]], "LLLLT"),
    ],
)
def test_known_puzzles(puzzle, wanted):
    assert solutions(tuple(map(tupled, puzzle))) == [tuple(letter == "T" for letter in wanted)]


def test_solutions_of_500_random_puzzles_are_those_of_brute_force():
    counts = []
    for statements in random_puzzles(500, unique=False):
        found, wanted = solutions(statements), brute_force(statements)
        assert set(found) == wanted and len(found) == len(wanted)
        counts.append(len(found))
    assert {0, 1, 2} <= set(counts)


def test_a_double_negation_changes_nothing_and_renaming_people_permutes_the_solutions():
    def renamed(tree, new):
        kind, *parts = tree
        return (kind, *(new[p] if isinstance(p, int) else renamed(p, new) for p in parts))

    random = Random(3)
    for statements in random_puzzles(100, unique=False):
        assert solutions(tuple(("not", ("not", s)) for s in statements)) == solutions(statements)
        new = random.sample(range(len(statements)), len(statements))
        moved = [None] * len(statements)
        for i, statement in enumerate(statements):
            moved[new[i]] = renamed(statement, new)
        assert {tuple(world[new[i]] for i in range(len(new))) for world in solutions(tuple(moved))} == set(
            solutions(statements)
        )


# The shares are an independent program's; 1500 draws have a standard error of 0.013, and the band is 3.5 of them.
@pytest.mark.parametrize(("people", "unique"), [(2, 0.40), (3, 0.38), (4, 0.36), (5, 0.36), (6, 0.34)])
def test_shares_of_drawn_puzzles(people, unique):
    random = Random(people)
    found = [solutions(draw(random, people, 2, 2)) for _ in range(1500)]
    assert sum(len(f) == 1 for f in found) / 1500 == pytest.approx(unique, abs=0.045)
    assert 0.15 < sum(not f for f in found) / 1500 < 0.36
    knights = [sum(f[0]) / people for f in found if len(f) == 1]
    assert 0.45 < sum(knights) / len(knights) < 0.59


def test_drawn_statements_have_the_depth_the_width_and_the_parts_asked_for():
    def depth(tree) -> int:
        return 1 if tree[0] in NAMED.values() else 1 + max(map(depth, tree[1:]))

    def kinds(tree):
        yield tree
        if tree[0] not in NAMED.values():
            for part in tree[1:]:
                yield from kinds(part)

    random, seen = Random(0), []
    for _ in range(400):
        statements = draw(random, 3, 3, 3)
        for speaker, statement in enumerate(statements):
            for tree in kinds(statement):
                assert tree != ("lying", speaker)
                seen.append((tree[0], len(tree) - 1))
                if tree[0] not in NAMED.values():
                    assert len(set(tree[1:])) == len(tree) - 1
        assert max(map(depth, statements)) <= 3
    assert set(seen) == {
        ("telling-truth", 1), ("lying", 1), ("not", 1), ("and", 2), ("and", 3), ("or", 2), ("or", 3), ("->", 2), ("<=>", 2)
    }  # fmt: skip
    assert {depth(s) for _ in range(50) for s in draw(random, 2, 1, 2)} == {1}


# Reasoning


def test_the_reasoning_ends_at_the_only_solution_and_each_step_of_it_holds():
    for statements in random_puzzles(500):
        people = len(statements)
        events, found = reason(statements)
        assert {found} == brute_force(statements)
        worlds = [list(w) for w in product((False, True), repeat=people)]
        stack: list[tuple[int, bool]] = []

        def can_fit(j, assumed, worlds=worlds, statements=statements):
            left = [w for w in worlds if all(w[p] is k for p, k in assumed)]
            return any(truth(statements[j], w) is w[j] for w in left)

        for event in events:
            assumed = [*stack, (event.person, event.knight)]
            if event.kind == "assume":
                assert event.person not in dict(stack) and all(can_fit(j, assumed) for j, _ in assumed)
                stack = assumed
            elif event.kind == "conflict":
                assert (event.other, event.other_knight) in assumed and not can_fit(event.other, assumed)
            elif event.kind == "reconsider":
                assert stack.pop()[0] == event.other
        assert [event.kind for event in events].index("success") == len(events) - 1
        assert tuple(knight for _, knight in sorted(stack)) == found


def test_reasoning_without_a_solution_says_so():
    events, found = reason((("lying", 0), ("telling-truth", 0)))
    assert found is None and {event.kind for event in events} == {"conflict"}


def test_those_who_are_spoken_of_come_next_and_the_failed_branch_is_told():
    statements = (
        ("and", ("telling-truth", 2), ("lying", 1)),
        ("telling-truth", 0),
        ("<=>", ("lying", 0), ("telling-truth", 1)),
    )
    assert list(mentioned(statements[0])) == [2, 1]
    assert chain_of_thought(statements, ("Ada", "Emil", "Ida")).split("\n") == [
        "Suppose Ada is a knight: then it is true that Ida is a knight and Emil is a knave, and nothing so far rules this out.",
        "Suppose Ida is a knight: then it is true that Ada is a knave if and only if Emil is a knight, "
        "and nothing so far rules this out.",
        "Emil cannot be a knight here, because Ada, a knight, would be saying something false, "
        "namely that Ida is a knight and Emil is a knave.",
        "Emil cannot be a knave here, because Emil, a knave, would be saying something true, namely that Ada is a knight.",
        "Neither role is left for Emil, so I return to Ida.",
        "Ida cannot be a knave here, because Ada, a knight, would be saying something false, "
        "namely that Ida is a knight and Emil is a knave.",
        "Neither role is left for Ida, so I return to Ada.",
        "Suppose Ada is a knave: then it is false that Ida is a knight and Emil is a knave, and nothing so far rules this out.",
        "Suppose Ida is a knight: then it is true that Ada is a knave if and only if Emil is a knight, "
        "and nothing so far rules this out.",
        "Emil cannot be a knight here, because Emil, a knight, would be saying something false, namely that Ada is a knight.",
        "Emil cannot be a knave here, because Ada, a knave, would be saying something true, "
        "namely that Ida is a knight and Emil is a knave.",
        "Neither role is left for Emil, so I return to Ida.",
        "Suppose Ida is a knave: then it is false that Ada is a knave if and only if Emil is a knight, "
        "and nothing so far rules this out.",
        "Emil cannot be a knight here, because Ida, a knave, would be saying something true, "
        "namely that Ada is a knave if and only if Emil is a knight.",
        "Suppose Emil is a knave: then it is false that Ada is a knight, and nothing so far rules this out.",
        "Now every role fits what its owner says.",
    ]


def test_statements_in_words():
    nested = ("or", ("not", ("and", ("lying", 0), ("telling-truth", 1))), ("->", ("lying", 1), ("not", ("lying", 0))))
    assert spoken(nested, ("Al", "Bo")) == (
        "(it is not true that (Al is a knave and Bo is a knight)) or (if Bo is a knave then (Al is not a knave))"
    )


@pytest.mark.golden
@pytest.mark.parametrize("puzzle", PUZZLES.values(), ids=PUZZLES)
def test_words_of_the_vectors(puzzle):
    assert answer_text(puzzle["names"], puzzle["solution"]) == puzzle["solution_text"]
    assert reason(statements_of(puzzle))[1] == tuple(puzzle["solution"])
    if puzzle["spoken"]:
        told = [
            f"{name} says: {spoken(s, puzzle['names'])}."
            for name, s in zip(puzzle["names"], statements_of(puzzle), strict=True)
        ]
        assert told == puzzle["spoken"]


# Generated puzzles


def test_generated_puzzles_have_one_solution_and_say_what_they_mean():
    for puzzle in Generator(people=[2, 4], count=30, depth=3, width=3).puzzles("train"):
        assert brute_force(puzzle.statements) == {puzzle.solution}
        where = [puzzle.text.index(claim[1:]) for claim in (spoken(s, puzzle.names) for s in puzzle.statements)]
        assert len(set(puzzle.names)) == len(where) == int(puzzle.id.split("/")[1])
        assert f"{len(where)} islanders: {', '.join(puzzle.names[:-1])} and {puzzle.names[-1]}." in puzzle.text


def test_the_sizes_asked_for_come_in_order():
    prompts = generated(people=[2, 5], count=3).prompts("train")
    assert [p.id for p in prompts] == ["train/2/0", "train/2/1", "train/2/2", "train/5/0", "train/5/1", "train/5/2"]
    assert [len(json.loads(p.metadata["names"])) for p in prompts] == [2, 2, 2, 5, 5, 5]
    with pytest.raises(ConfigError, match="no split 'test'; expected train or held_out"):
        generated().prompts("test")


def test_training_and_held_out_puzzles_share_neither_statements_nor_text_without_names():
    def anonymous(puzzle) -> str:
        text = puzzle.text
        for i, name in enumerate(puzzle.names):
            text = text.replace(name, f"#{i}")
        return text

    train = [p for seed in (0, 1) for p in Generator(people=[2, 3], count=150, seed=seed).puzzles("train")]
    held_out = [p for seed in (0, 1) for p in Generator(people=[2, 3], held_out=150, seed=seed).puzzles("held_out")]
    assert len({p.statements for p in train[:300]}) == 300
    assert {p.statements for p in train}.isdisjoint(p.statements for p in held_out)
    assert set(map(anonymous, train)).isdisjoint(map(anonymous, held_out))
    random = Random(0)
    shares = [side(draw(random, 3, 2, 2)) == "held_out" for _ in range(2000)]
    assert sum(shares) / 2000 == pytest.approx(0.5, abs=0.045)  # four standard errors


def test_a_puzzle_depends_neither_on_the_count_nor_on_what_else_is_drawn(monkeypatch):
    few, many = (list(Generator(people=3, count=count).puzzles("train")) for count in (10, 40))
    assert many[:10] == few and many[10] not in few
    deep = list(Generator(people=3, count=10, depth=3).puzzles("train"))
    assert [p.names for p in deep] == [p.names for p in few] and deep[0].statements != few[0].statements
    assert [p.statements for p in Generator(people=3, count=10, seed=1).puzzles("train")] != [p.statements for p in few]
    monkeypatch.setattr(knights_puzzles, "NAMES", knights_text.NAMES[:5])
    monkeypatch.setattr(knights_text, "SAYINGS", ("{name}: {claim}!",))
    reworded = list(Generator(people=3, count=10).puzzles("train"))
    assert [p.statements for p in reworded] == [p.statements for p in few] and reworded[0].text != few[0].text


def test_puzzles_are_the_same_in_every_process():
    code = (
        "from fulgurite.tasks.knights_puzzles import Generator\n"
        "for split in ('train', 'held_out'):\n"
        "    for puzzle in Generator(people=[2, 4], count=15, held_out=15, seed=3).puzzles(split): print(puzzle)\n"
    )

    environment = {**os.environ, "PYTHONHASHSEED": "12345"}
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    here = Generator(people=[2, 4], count=15, held_out=15, seed=3)
    lines = [str(puzzle) for split in ("train", "held_out") for puzzle in here.puzzles(split)]
    assert ran.stdout.splitlines() == lines and len(lines) == 60


def test_asking_for_more_puzzles_than_there_are_is_refused():
    with pytest.raises(
        ConfigError, match=r"no new puzzle of 2 people in 1000 tries, after 2\d\d of the 300 for train; ask for fewer"
    ):
        generated(people=2, count=300).prompts("train")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"people": 1}, "people is 1; expected different numbers from 2 to 10"),
        ({"people": [3, 3]}, "expected different numbers"),
        ({"people": []}, "expected different numbers"),
        ({"people": 11}, "expected different numbers"),
        ({"count": 0}, "count is 0 and held_out 10; expected at least 1"),
        ({"depth": 1}, "depth is 1; expected 2 to 4"),
        ({"people": [2, 5], "width": 4}, "width is 4; expected 2 to 3"),
        ({"width": 1}, "width is 1; expected 2 to 5"),
    ],
)
def test_impossible_puzzles_are_refused(settings, words):
    with pytest.raises(ConfigError, match=words):
        generated(**settings)


# Files


@published
@pytest.mark.parametrize("name", FILES)
def test_every_published_puzzle_solves_to_its_stored_solution(name):
    path = PUBLISHED / name
    task = KnightsKnaves(splits={"train": Source(str(path))})
    with gzip.open(path, "rt") if name.endswith(".gz") else path.open() as lines:
        rows = [json.loads(line) for line in lines]
    prompts = task.prompts("train")
    assert len(prompts) == len(rows) == (900 if "train" in name else 100)
    for prompt, row in zip(prompts, rows, strict=True):
        stored = row["solution_text_format"]
        assert prompt.answer == stored and task.judge(prompt, answered(stored)).outcome == "correct"
        assert task.judge(prompt, said(task.solution(prompt))).reward == 3.0


@published
def test_the_first_published_puzzle_renders_and_is_judged_by_value():
    task = KnightsKnaves(splits={"test": Source(str(PUBLISHED / "3ppl_test.jsonl"), limit=1)})
    (prompt,) = task.prompts("test")
    assert prompt.text == (
        "A very special island is inhabited only by knights and knaves. Knights always tell the truth, and knaves always lie. "
        "You meet 3 inhabitants: Amelia, Penelope, and Evelyn. Amelia said that Evelyn is not a knight. Penelope was heard "
        'saying, "Penelope is a knight or Evelyn is a knave". Evelyn was heard saying, "Penelope is a knight if and only if '
        'Penelope is a knave". So who is a knight and who is a knave?\n'
        "Reason between <think> and </think>. Then answer between <answer> and </answer>, with one line per person, such as: "
        "(1) NAME is a knight\n"
    )
    assert prompt.answer == "(1) Amelia is a knight\n(2) Penelope is a knight\n(3) Evelyn is a knave"
    assert (prompt.id, prompt.source) == ("test/0", str(PUBLISHED / "3ppl_test.jsonl"))
    texts = [prompt.answer, prompt.answer.replace("Evelyn is a knave", "Evelyn is a knight"), "Amelia is a knight"]
    verdicts = [task.judge(prompt, answered(text)) for text in texts] + [task.judge(prompt, said(prompt.answer))]
    assert [(v.outcome, dict(v.rewards), v.reward) for v in verdicts] == [
        ("correct", {"format": 1.0, "answer": 2.0}, 3.0),
        ("wrong", {"format": 1.0, "answer": -1.5}, -0.5),
        ("ungradable", {"format": 1.0, "answer": -2.0}, -1.0),
        ("ungradable", {"format": -1.0, "answer": -2.0}, -3.0),
    ]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"solution": [False, True]}, r"solution is \[False, True\]; expected the only .* have \[\[False, False\]\]"),
        ({"statements": "(('telling-truth', 1), ('telling-truth', 0))"}, r"which have \[\[False, False\], \[True, True\]\]"),
        ({"statements": "(('lying', 0), ('telling-truth', 1))"}, r"which have \[\]"),
        ({"statements": "(('telling-truth', 1), ('telling-truth', 2))"}, r"\['telling-truth', 2\].* is no statement about 2"),
        ({"statements": "(('telling-truth', 1), ('xor', ('lying', 0), ('lying', 1)))"}, "is no statement about 2 people"),
        ({"statements": "(('telling-truth', 1), ('not', ('lying', 0), ('lying', 1)))"}, "is no statement about 2 people"),
        ({"statements": "(('telling-truth', 1), ('and', ('lying', 0)))"}, "is no statement about 2 people"),
        ({"statements": "(('telling-truth', 1.0), ('lying', 0))"}, r"\['telling-truth', 1.0\].* is no statement about 2"),
        ({"statements": "(('telling-truth', 1), 5)"}, "'5' is no statement about 2 people"),
        ({"statements": "(('telling-truth', 1), " + "('not', " * 17 + "('lying', 0)" + ")" * 18}, "is no statement about 2"),
        ({"statements": "(" * 9000}, r"statements is '\[\[\[\["),
        ({"statements": "(('telling-truth', 1), ('telling-truth', 0))" + " " * 10_000}, "at most 10000 characters"),
        ({"statements": "__import__('os').abort()"}, "statements is '__import__.*; expected a list"),
        ({"statements": "(('telling-truth', 1),)"}, "statements is .*; expected a list"),
        ({"statements": "()"}, "n is 2, with 2 names and 0 statements; expected n of both, 2 to 10"),
        ({"names": ["Ann", " ann "]}, "expected different names"),
        ({"names": ["Ann", 5]}, "expected different names"),
        ({"names": "Ann, Anna"}, "names is 'Ann, Anna'; expected a list"),
        ({"n": 3}, "n is 3, with 2 names and 2 statements"),
    ],
)
def test_corrupt_puzzles_are_refused_with_file_and_row(tmp_path, change, words):
    task = KnightsKnaves(splits={"train": write(tmp_path / "puzzles.jsonl", [ANNA, {**ANNA, **change}])})
    with pytest.raises(ConfigError, match=rf"puzzles\.jsonl, (row|line) 2: .*{words}"):
        task.prompts("train")


def test_files_of_another_shape(tmp_path):
    listed = {
        **ANNA,
        "statements": [["or", ["telling-truth", 0], ["telling-truth", 1]], ["<=>", ["lying", 0], ["telling-truth", 1]]],
    }
    (as_lists,), (as_text,) = (from_file(tmp_path / "b.jsonl", row)[1] for row in (listed, ANNA))
    assert as_lists == as_text
    with pytest.raises(ConfigError, match="no column 'quiz'"):
        from_file(tmp_path / "c.jsonl", {k: v for k, v in ANNA.items() if k != "quiz"})
    with pytest.raises(ConfigError, match="no split 'test'; expected one of train"):
        from_file(tmp_path / "b.jsonl")[0].prompts("test")


# Prompts and solutions


def test_text_prompts_can_open_the_reasoning(tmp_path):
    task, (prompt,) = from_file(
        tmp_path / "p.jsonl", style=PromptStyle("Q: {question}\nA: "), prompt_opens_think=True, chain_of_thought="short"
    )
    assert prompt.text == "Q: Who is what?\nA: <think>" and prompt.messages == ()
    assert task.solution(prompt) == (
        "These roles fit everything that is said.</think> <answer>(1) Ann is a knave\n(2) Anna is a knave</answer>"
    )
    assert task.judge(prompt, said(task.solution(prompt))).outcome == "correct"
    assert task.judge(prompt, said("<think>" + task.solution(prompt))).outcome == "ungradable"


def test_chat_prompts_leave_the_opening_to_the_chat_template(tmp_path):
    style = PromptStyle("Q: {question}", chat=True, system="Reason first.")
    _, (prompt,) = from_file(tmp_path / "p.jsonl", style=style, prompt_opens_think=True)
    assert prompt.messages == (
        {"role": "system", "content": "Reason first."},
        {"role": "user", "content": "Q: Who is what?"},
    )


@pytest.mark.parametrize("opened", [False, True])
@pytest.mark.parametrize("chain", ["long", "short"])
def test_solutions_are_judged_correct(opened, chain):
    task = KnightsKnaves(Generator(people=[2, 4], count=15), prompt_opens_think=opened, chain_of_thought=chain)
    for prompt in task.prompts("train"):
        solution = task.solution(prompt)
        assert task.judge(prompt, said(solution)).reward == 3.0 and solution.startswith("<think>") is not opened
        assert ("Suppose" in solution) is (chain == "long")


def test_settings_that_cannot_work_are_refused():
    with pytest.raises(ConfigError, match="neither of generate and splits; expected one"):
        KnightsKnaves()
    with pytest.raises(ConfigError, match="both of generate and splits; expected one"):
        KnightsKnaves(Generator(), splits={})
    with pytest.raises(ConfigError, match="rewards is 'dense'; expected one of logic_rl, warm_up, binary"):
        KnightsKnaves(Generator(), rewards="dense")
    with pytest.raises(ConfigError, match="chain_of_thought is 'none'; expected one of long, short"):
        KnightsKnaves(Generator(), chain_of_thought="none")


def test_a_config_makes_the_task():
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--task", type=Task)
    settings = {"generate": {"people": [2, 3], "count": 2}, "rewards": "binary", "style": {"template": "{question} "}}
    config = {"class_path": "fulgurite.tasks.knights_knaves.KnightsKnaves", "init_args": settings}
    task = parser.instantiate_classes(parser.parse_object({"task": config})).task
    prompts = task.prompts("train")
    assert [p.id for p in prompts] == ["train/2/0", "train/2/1", "train/3/0", "train/3/1"]
    assert prompts[0].text.endswith("which are knaves? ")
    assert dict(task.judge(prompts[0], said(task.solution(prompts[0]))).rewards) == {"accuracy": 1.0}


# Verdicts


@pytest.fixture(scope="module")
def golden_tasks(tmp_path_factory):
    rows = [{**puzzle, "quiz": puzzle["id"], "statements": str(statements_of(puzzle))} for puzzle in PUZZLES.values()]
    path = tmp_path_factory.mktemp("golden") / "puzzles.jsonl"
    splits = {"train": write(path, rows)}
    tasks = {
        (rewards, opened): KnightsKnaves(splits=splits, prompt_opens_think=opened, rewards=rewards)
        for rewards in REWARDS
        for opened in (False, True)
    }
    return tasks, {p.metadata["question"]: p for p in tasks["binary", False].prompts("train")}


@pytest.mark.golden
@pytest.mark.parametrize("case", cases("knights", "responses"), ids=lambda case: f"{case['puzzle']}-{case['case']}")
def test_responses_of_the_vectors(golden_tasks, case):
    tasks, prompts = golden_tasks
    for rewards in REWARDS:
        task = tasks[rewards, case["prompt_opens_think"]]
        verdict = task.judge(prompts[case["puzzle"]], said(case["text"]))
        assert (verdict.outcome, verdict.reward) == (case["verdict"], case[f"reward_{rewards}"])
        assert verdict.reward == sum(verdict.rewards.values()) and (verdict.answer is None) == (case["verdict"] == "ungradable")
    span = answer_span(case["text"], case["prompt_opens_think"])
    assert (span is None) == (case["reason"] == "bad_format")


@pytest.mark.parametrize("people", [2, 3, 4, 5])
def test_guessing_at_random_is_right_once_in_two_to_the_number_of_people(people):
    task = KnightsKnaves(Generator(people=people, count=5), rewards="binary")
    for prompt in task.prompts("train"):
        names = json.loads(prompt.metadata["names"])
        guesses = product((True, False), repeat=people)
        rewards = [task.judge(prompt, answered(answer_text(names, guess))).reward for guess in guesses]
        assert sum(rewards) / len(rewards) == 2.0**-people


def test_a_claim_is_checked_against_the_statements_and_not_only_the_stored_answer(tmp_path):
    task, (prompt,) = from_file(tmp_path / "p.jsonl")
    lie = Prompt(**{**vars(prompt), "answer": "(1) Ann is a knight\n(2) Anna is a knight"})
    assert task.judge(lie, answered(lie.answer)).outcome == "wrong"
    assert task.judge(lie, answered(prompt.answer)).outcome == "correct"


def test_equal_claims_are_equal_answers(tmp_path):
    task, (prompt,) = from_file(tmp_path / "p.jsonl")
    texts = [
        "ANNA is a Knave. Ann\n is a KNIGHT",
        "(1) Ann is a knight\n(2) Anna is a knave",
        "Ann is a knight, anna is a knave",
    ]
    assert {task.judge(prompt, answered(text)).answer for text in texts} == {"(1) Ann is a knight\n(2) Anna is a knave"}


@pytest.mark.parametrize(
    ("answer", "roles"),
    [
        ("Mary Ann is a knight; Ann is a knave", (False, True)),
        ("Ann is a knave; Ann is a knight", None),
        ("Mary Ann is a knight; Mary Ann is a knave", None),
        ("Mary Ann is a knight; Joann is a knave", None),
        ("Mary Ann is a knight; Ann is a knavery", None),
        ("Mary Ann is a knight; Ann is a knavery: knave", None),
        ("Mary Ann is a knight; Ann is an evil knave", None),
        ("Mary Ann is a knight; Ann is a kn\u0131ght", None),
        ("Mary Ann is a knight; Ann is a knave\0", (False, True)),
        ("Mary Ann is a knight; Ann is\0a knave", None),
        ("**Mary Ann is a knight** _Ann is a knave_", None),
    ],
)
def test_claims_are_read_name_by_name(answer, roles):
    assert claimed(answer, ["Ann", "Mary Ann"]) == roles


def test_names_are_no_patterns():
    assert claimed("J.R. is a knave, A+ is a knight", ["A+", "J.R."]) == (True, False)
    assert claimed("Jo Ann is a knight, Jo is a knave", ["Jo", "Jo Ann"]) == (False, True)
    assert claimed("JXR. is a knave, AA is a knight", ["A+", "J.R."]) is None


@pytest.mark.parametrize(
    "text",
    [
        "before <think>a</think> <answer>{}</answer>",
        "<think>a</think> so <answer>{}</answer>",
        "<think>a</think> <answer>{}</answer>\0",
        "<think>a</think> <answer>{}</answer></answer>",
        "<think>a</think> <answer>{}",
        "<think>a</think><answer><think>{}</answer>",
    ],
)
def test_anything_outside_the_tags_breaks_the_format(tmp_path, text):
    task, (prompt,) = from_file(tmp_path / "p.jsonl")
    assert task.judge(prompt, said(text.format(prompt.answer))).reward == -3.0
    assert task.judge(prompt, said(f"\n<think>a</think><answer>{prompt.answer}</answer>\n ")).reward == 3.0


def test_every_text_gets_one_of_the_rewards(tmp_path):
    task, (prompt,) = from_file(tmp_path / "p.jsonl", rewards="warm_up")
    random, seen = Random(0), set()
    tags = ["<think>", "</think>", "<answer>", "</answer>"]
    claims = ["Ann is a knight", "Ann is a knave", "Anna is a knight", "Anna is a knave", "Ann", "\0"]
    shape = ["<think>", "a", "</think>", "<answer>", "", "", "</answer>"]
    for _ in range(3000):
        text = [
            random.choice(tags + claims if piece else claims) if not piece or random.random() < 0.05 else piece
            for piece in shape
        ]
        seen.add(task.judge(prompt, said(" ".join(text))).reward)
    assert seen == {-2.0, -1.0, -0.5, 2.0}


@pytest.mark.parametrize(
    "answer",
    [
        "Ann is a " * 300_000,
        "Ann" + " " * 2_000_000 + "is a",
        "Ann is a knight " * 150_000,
        "a" * 3_000_000,
        "\0" * 3_000_000,
        "<" * 3_000_000,
        "knight " * 400_000,
        "(" * 3_000_000,
    ],
    ids=lambda text: repr(text[:9]),
)
def test_megabytes_are_read_in_linear_time(tmp_path, answer):
    task, (prompt,) = from_file(tmp_path / "p.jsonl")
    start = time.process_time()
    assert task.judge(prompt, answered(answer)).reward == -1.0
    assert task.judge(prompt, said(answer)).reward == -3.0
    assert task.judge(prompt, said("<think>" * 300_000)).reward == -3.0
    assert task.judge(prompt, said("<think>" + answer + "</think> <answer>" + prompt.answer + "</answer>")).reward == 3.0
    assert time.process_time() - start < 10  # about 0.5 s here; quadratic time would be hours


# Letters


def test_letters_by_value(monkeypatch):
    task = KnightsKnavesLetters()
    prompts = task.prompts("train")
    assert len(prompts) == 100 and len({p.text for p in prompts}) == 100
    assert {p.text for p in prompts}.isdisjoint(p.text for p in task.prompts("held_out"))
    assert set("".join(p.text for p in prompts)) == set("TL01~&|>=,:")
    assert (prompts[0].id, prompts[0].text, prompts[0].answer) == ("train/2/0", "T0>L1,T1|L0:", "TL")
    outcomes = {
        "TL": "correct",
        "LL": "wrong",
        "TT": "wrong",
        "T": "ungradable",
        "TLT": "ungradable",
        "tl": "ungradable",
        "": "ungradable",
    }
    assert {text: task.judge(prompts[0], said(text)).outcome for text in outcomes} == outcomes
    assert task.judge(prompts[0], said("TL", "length")).outcome == "ungradable"
    nested = KnightsKnavesLetters(Generator(people=3, count=50, depth=3, width=3)).prompts("train")
    assert any("~(" in p.text for p in nested) and any(p.text.count("&") > 1 for p in nested)


def test_a_uniform_guess_of_letters_is_right_once_in_four():
    task = KnightsKnavesLetters()
    for prompt in task.prompts("train") + task.prompts("held_out"):
        rewards = [task.judge(prompt, said("".join(guess))).reward for guess in product("TL", repeat=2)]
        assert sum(rewards) / 4 == 0.25
        assert task.judge(prompt, said(task.solution(prompt))).reward == 1.0
