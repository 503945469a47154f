"""One real row of each data set, by value: the prompt that the model gets, the reference, and what answers are worth."""

from pathlib import Path

import pytest
import yaml

from fulgurite.config_only import data_of
from fulgurite.data.prompts import encode
from fulgurite.models.sources import load_tokenizer
from fulgurite.models.tiny import TinyModel
from fulgurite.tasks.gsm8k import GSM8K
from fulgurite.tasks.knights_knaves import KnightsKnaves
from fulgurite.tasks.math import Math
from fulgurite.tasks.prompting import PromptStyle
from fulgurite.tasks.protocol import Task
from fulgurite.tasks.qa import QA
from fulgurite.tasks.sources import Source
from fulgurite.types import Completion, ConfigError

ROOT = Path(__file__).parents[1]
DATA = ROOT.parent / "shared" / "data"
pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason="the real rows are not beside this checkout")
BOXED = "\nPlease reason step by step, and put your final answer within \\boxed{}.\n"
HARNESS = "Please reason step by step, and put your final answer within \\boxed{}."
ASKED = {"question": "problem"}
ABOUT = PromptStyle("{text}\n{table}\n{question}\nEnd with: The answer is ...\n")
E_TRADE = (
    "the following performance graph shows the cumulative total return to a holder of the company 2019s common stock , "
    "assuming dividend reinvestment , compared with the cumulative total return , assuming dividend reinvestment , of the "
    'standard & poor ( "s&p" ) 500 index and the dow jones us financials index during the period from december 31 , 2009 '
    "through december 31 , 2014. .\n"
    "- | 12/09 | 12/10 | 12/11 | 12/12 | 12/13 | 12/14\n"
    "e*trade financial corporation | 100.00 | 90.91 | 45.23 | 50.85 | 111.59 | 137.81\n"
    "s&p 500 index | 100.00 | 115.06 | 117.49 | 136.30 | 180.44 | 205.14\n"
    "dow jones us financials index | 100.00 | 112.72 | 98.24 | 124.62 | 167.26 | 191.67\n\n"
)


def local(path: str, **settings) -> dict[str, Source]:
    return {"rows": Source(str(DATA / path), **settings)}


def answered(task: Task, prompt, *texts: str) -> list[str]:
    return [verdict.outcome for verdict in task.judge_all([(prompt, Completion((), (), "stop", text)) for text in texts])]


MATHS = [
    ("math500/test.jsonl", 98, "Simplify $(-k + 4) + (-2 + 3k)$.", "2k+2", r"\boxed{2(k+1)}", r"\boxed{2k-2}"),
    ("aime24/test.jsonl", 7, "There exist real numbers $x$ and $y$, both greater than 1, such that "
     "$\\log_x\\left(y^x\\right)=\\log_y\\left(x^{4y}\\right)=10$. Find $xy$.", "025", r"so $xy = \boxed{25}$.", r"\boxed{52}"),
    ("amc23/test.jsonl", 16, "How many positive perfect squares less than $2023$ are divisible by $5$?", "8", r"\boxed{8}",
     "8"),
    ("gaokao2023en/test.jsonl", 70, "Solve $|x-2|<1$.", "$(1,3)$", r"\boxed{1<x<3}", r"\boxed{[1,3]}"),
    ("college_math/train_pool.jsonl", 702, "Solve: $0=-8(p-5)$", "5", r"\boxed{p=5}", r"\boxed{-5}"),
    ("svamp/test.jsonl", 894, "Edward had $ 18. He spent $ 16. How much money does Edward have now?", "2", r"\boxed{\$2}",
     r"\boxed{34}"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "row", "question", "gold", "right", "wrong"), MATHS, ids=[case[0] for case in MATHS])
def test_mathematics(path, row, question, gold, right, wrong):
    task = Math(local(path, columns=ASKED, incomplete="drop"))
    prompt = task.prompts("rows")[row]
    assert (prompt.text, prompt.answer, prompt.id) == (question + BOXED, gold, f"rows/{row}")
    assert answered(task, prompt, right)[0] == "correct" and answered(task, prompt, wrong)[0] != "correct"


def test_a_real_row_without_an_answer_is_an_error_or_left_out():
    with pytest.raises(ConfigError, match="gaokao2023en/test.jsonl: the answer of prompt 'rows/167' is ''; .*incomplete: drop"):
        Math(local("gaokao2023en/test.jsonl", columns=ASKED)).prompts("rows")
    assert len(Math(local("gaokao2023en/test.jsonl", columns=ASKED, incomplete="drop")).prompts("rows")) == 385 - 2


def test_aime_of_four_years():
    task = Math(local("aime21_24/aime_2021_2024.jsonl", filter={"year": [2021]}))
    prompt = task.prompts("rows")[27]
    assert prompt.text == "Find the least positive integer $n$ for which $2^n + 5^n - n$ is a multiple of $1000$ ." + BOXED
    assert answered(task, prompt, r"\boxed{797}", r"\boxed{0797}", r"\boxed{798}") == ["correct", "correct", "wrong"]


def test_minerva_has_lists_of_accepted_answers():
    task = Math(local("minerva/test.jsonl", columns={**ASKED, "answer": "answers"}), several_answers=True)
    prompt = task.prompts("rows")[232]
    assert prompt.text == "What is the working temperature for silica glass in Celsius?" + BOXED
    assert prompt.answer == '["1950^\\\\circ C"]'
    texts = (r"\boxed{1950^\circ C}", r"\boxed{1950^\circ\text{C}}", r"\boxed{1590^\circ C}", r"\boxed{1950^\circ F}")
    assert answered(task, prompt, *texts) == ["correct", "correct", "wrong", "wrong"]


def test_gsm8k():
    task = GSM8K(local("gsm8k/train.jsonl.gz", columns={"solution": "solution"}))
    prompt = task.prompts("rows")[0]
    assert prompt.text == (
        "Natalia sold clips to 48 of her friends in April, and then she sold half as many clips in May. "
        "How many clips did Natalia sell altogether in April and May?\n"
        "Reason step by step. End with #### and the answer, a number.\n"
    )
    solution = task.solution(prompt)
    assert solution == (
        "Natalia sold 48/2 = 24 clips in May.\nNatalia sold 48+24 = 72 clips altogether in April and May.\n#### 72"
    )
    assert answered(task, prompt, solution, "48/2=24 #### 24", "72") == ["correct", "wrong", "ungradable"]


def test_tatqa():
    task = QA(local("tatqa/dev_arith.jsonl.gz"), ABOUT, context=["text", "table"])
    prompt = task.prompts("rows")[302]
    assert (prompt.answer, prompt.text) == (
        "4313",
        "Other non-current assets Other non-current assets consisted of the following (in thousands):\n"
        "— | December 31, 2019 | December 31, 2018\nRight of use assets | $33,014 | $—\n"
        "Deferred contract acquisition costs | 3,297 | 3,184\nDeposits | 2,338 | 1,975\nOther | 3,197 | 3,461\n"
        "Total other non-current assets | 41,846 | $8,620\n\n"
        "What is the total deposits in 2018 and 2019?\nEnd with: The answer is ...\n",
    )
    texts = ("2,338 + 1,975. The answer is $4,313 thousand.", "The answer is 4313", "The answer is 4314.", "2338 and 1975")
    assert answered(task, prompt, *texts) == ["correct", "correct", "wrong", "ungradable"]


def test_convfinqa():
    style = PromptStyle("{text}\n{table}\n{questions}\n{question}\n")
    task = QA(local("convfinqa/dev.jsonl.gz"), style, context=["text", "table", "questions"])
    prompt = task.prompts("rows")[30]
    asked = '["what is the price of e*trade financial corporation in 2014?", "what is that less 100?", '
    asked += '"what is the change over 100?"]'
    assert prompt.text == f"{E_TRADE}{asked}\nwhat is the change over 100?\n" and prompt.answer == "0.3781"
    texts = ("The answer is 37.81%.", "The answer is 0.378", "The answer is 37.81.", "The answer is 38%.")
    assert answered(task, prompt, *texts) == ["correct", "correct", "wrong", "wrong"]


def test_knights_and_knaves():
    task = KnightsKnaves(splits=local("knights_knaves/3ppl_test.jsonl"), rewards="logic_rl")
    prompt = task.prompts("rows")[81]
    assert prompt.text == (
        "A very special island is inhabited only by knights and knaves. Knights always tell the truth, and knaves always lie. "
        'You meet 3 inhabitants: Samuel, Liam, and Luke. "If Samuel is a knight then Liam is a knave" - Samuel. "Luke is not a '
        'knight," Liam declared. Luke asserted: "Liam is a knave". So who is a knight and who is a knave?\n'
        "Reason between <think> and </think>. Then answer between <answer> and </answer>, "
        "with one line per person, such as: (1) NAME is a knight\n"
    )
    assert prompt.answer == "(1) Samuel is a knight\n(2) Liam is a knave\n(3) Luke is a knight"
    frame = "<think>Luke would lie.</think> <answer>{}</answer>"
    texts = (frame.format(prompt.answer), frame.format(prompt.answer.replace("Luke is a knight", "Luke is a knave")), "Luke")
    verdicts = [task.judge(prompt, Completion((), (), "stop", text)) for text in texts]
    assert [(v.outcome, v.reward) for v in verdicts] == [("correct", 3.0), ("wrong", -0.5), ("ungradable", -3.0)]
    assert [v.answer for v in verdicts] == [prompt.answer, prompt.answer.replace("Luke is a knight", "Luke is a knave"), None]


# The benchmarks of configs/eval, with their own tasks, prompts and graders, on the same sets as files

ON_DISK = {
    "gsm8k": ({"path": "gsm8k/test.jsonl.gz"}, 1319, "Janet’s ducks lay 16 eggs per day.", "18", 2),
    "math500": ({"path": "math500/test.jsonl", "columns": ASKED}, 500, "Convert the point $(0,3)$", r"(3, \pi/2)", 2),
    "minerva": ({"path": "minerva/test.jsonl", "columns": ASKED}, 272, "If the Bohr energy levels", "9.6", 2),
    "amc23": ({"path": "amc23/test.jsonl", "columns": ASKED}, 40, "Cities $A$ and $B$ are $45$ miles apart.", "27", 1),
    "aime24": ({"path": "aime24/test.jsonl", "columns": ASKED}, 30, "Every morning Aya goes for a", "204", 1),
}


@pytest.mark.parametrize("name", ON_DISK)
def test_the_benchmarks_of_configs_eval_on_real_rows(name, tmp_path):
    source, count, begin, right, benchmarks = ON_DISK[name]
    overlay = yaml.safe_load((ROOT / "configs" / "eval" / f"{name}.yaml").read_text())
    of_overlay = overlay["data"]["init_args"]["benchmarks"]
    assert len(of_overlay) == benchmarks
    for benchmark in of_overlay.values():
        benchmark["task"]["init_args"]["splits"] = {benchmark["split"]: {**source, "path": str(DATA / source["path"])}}
    (tmp_path / "overlay.yaml").write_text(yaml.safe_dump(overlay))
    data = data_of(["--config", str(ROOT / "configs" / "gsm8k.yaml"), "--config", str(tmp_path / "overlay.yaml")])
    for key in of_overlay:
        benchmark = data.benchmarks[key]
        prompts = benchmark.task.prompts(benchmark.split)
        assert len(prompts) == count
        (encoded,) = encode(prompts[:1], load_tokenizer(TinyModel()))
        assert load_tokenizer(TinyModel()).decode(encoded.token_ids).startswith(HARNESS + begin)
        texts = (rf"Thus $\boxed{{{right}}}$.", r"\boxed{-1000}")
        assert answered(benchmark.task, prompts[0], *texts) == ["correct", "wrong"]
