"""fulgurite browse: the numbers of rounds by hand, every row on the page, and hostile texts that stay texts."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urlencode

import pytest

from comparisons import HOSTILE
from fulgurite import cli
from fulgurite.browse.page import write_page
from fulgurite.browse.rows import round_files, summary
from test_cli import refused

ASSETS = Path(write_page.__code__.co_filename).with_name("assets")
CHROMIUM = shutil.which("chromium")


def row(prompt="q", reward: float | None = 0.0, outcome="wrong", text="so 4", **given) -> dict:
    return {
        "prompt_id": f"id of {prompt}",
        "prompt": prompt,
        "token_ids": [7, 8, 9],
        "text": text,
        "finish_reason": "stop",
        "outcome": outcome,
        "rewards": {"accuracy": reward},
        "reward": reward,
        "extracted": "4",
        "failure": "",
        "coefficients": {"policy": 0.25},
        "kept": True,
        **given,
    }


# Two groups; the second has equal rewards.
MIXED = [
    row("a", 1.0, "correct", token_ids=[1]),
    row("a", 0.0, kept=False),
    row("b", 0.5, "ungradable", extracted=None, finish_reason="length"),
    row("b", 0.5, kept=False),
]


def write_lines(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in rows))


def write_run(folder: Path, rounds: dict[str, list[dict]], losses: tuple[float, ...] = (0.5, -0.125)) -> Path:
    """A run folder; `rounds` has the rows by the stem of their file, as `000003` or `000003.rank1`."""
    for stem, rows in rounds.items():
        write_lines(folder / "rounds" / f"{stem}.completions.jsonl", rows)
        if "rank" not in stem:
            updates = [{"round": int(stem), "update": i, "loss": loss} for i, loss in enumerate(losses)]
            write_lines(folder / "rounds" / f"{stem}.updates.jsonl", updates)
    return folder


def groups_in(path: Path) -> list[dict]:
    """What a round's script calls its function with."""
    number, groups = re.fullmatch(r"fulguriteRound\((\d+), (.*)\);\n", path.read_text()).groups()
    assert path.name == f"round-{int(number):06d}.js"
    return json.loads(groups)


def numbers_in(page: Path) -> dict:
    return json.loads(re.search(r'<script type="application/json" id="data">(.*)</script>', page.read_text())[1])


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_numbers_of_a_round(tmp_path):
    page = write_page(write_run(tmp_path / "grpo" / "run", {"000003": MIXED}), tmp_path / "page")
    numbers = {"reward": 0.5, "correct": 0.25, "kept": 0.5, "equal": 0.5, "tokens": 2.5, "loss": -0.125}
    assert numbers_in(page) == {"name": "grpo/run", "rounds": [{"round": 3, "prompts": 2, "completions": 4, **numbers}]}


def test_numbers_that_are_missing_are_left_out():
    groups = [{"prompt_id": "a", "prompt": "a", "rows": [row(reward=None), row(reward=3.0)]}]
    assert summary(0, groups, [])["reward"] == 3.0 and summary(0, groups, [])["loss"] is None
    assert summary(0, groups, [{"loss": None}])["loss"] is None and summary(0, groups, [])["equal"] == 0
    assert summary(0, [], [])["reward"] is None


def test_all_ranks_are_merged_and_every_row_is_there(tmp_path):
    ranks = {"000003": MIXED, "000003.rank10": [row("d")], "000003.rank2": [row("b", 1.0, "correct"), row("c", token_ids=[])]}
    run = write_run(tmp_path / "run", {**ranks, "000012": MIXED[:2]})
    assert list(round_files(run)) == [3, 12]
    page = write_page(run, run / "browse")
    groups = groups_in(page.with_name("round-000003.js"))
    assert [group["prompt"] for group in groups] == ["a", "b", "b", "c", "d"]
    shown = [{key: group[key] for key in ("prompt_id", "prompt")} | of for group in groups for of in group["rows"]]
    assert [group["group"] for group in groups] == [None] * 5  # as older runs have it
    assert shown == [*MIXED, *ranks["000003.rank2"], *ranks["000003.rank10"]]
    first, second = numbers_in(page)["rounds"]
    assert (first["completions"], first["prompts"], second["completions"]) == (7, 5, 2)
    assert first["reward"] == pytest.approx(3 / 7) and first["equal"] == 4 / 5


def test_two_groups_of_one_prompt_stay_two(tmp_path):
    rows = [row("a", 1.0, group=0), row("a", 1.0, group=0), row("a", 0.0, group=1), row("a", 0.0, group=1)]
    page = write_page(write_run(tmp_path / "run", {"000000": rows}), tmp_path / "page")
    assert [len(group["rows"]) for group in groups_in(page.with_name("round-000000.js"))] == [2, 2]
    numbers = numbers_in(page)["rounds"][0]
    assert (numbers["prompts"], numbers["equal"]) == (2, 1.0)


class Page(HTMLParser):
    """A page: its tags with their attributes, and the texts of the elements of each tag, class and id."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.texts: dict[str, list[str]] = {}
        self.open: list[tuple[str, list[str]]] = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        names = [tag, *given.get("class", "").split(), given.get("id")]
        self.tags.append((tag, given))
        for name in names:
            self.texts.setdefault(name, []).append("")
        if tag not in ("meta", "input"):
            self.open.append((tag, names))

    def handle_endtag(self, tag):
        while self.open and self.open.pop()[0] != tag:
            pass

    def handle_data(self, data):
        for name in (name for _, names in self.open for name in names):
            self.texts[name][-1] += data


def hostile_run(folder: Path, tail: str = "\u2028</script>$script") -> Path:
    """A run in which every text and every name is hostile; its own name, too."""
    odd = HOSTILE + tail
    names = {"rewards": {odd: 1.0, "__proto__": 0.0}, "coefficients": {odd: -1.0}, "failure": odd, "extracted": odd}
    bad = row(odd, 1.0, odd, odd, prompt_id=odd + "!", finish_reason=odd, **names)
    return write_run(folder / HOSTILE.replace("/", "|"), {"000000": [bad, row(odd, 1.0, prompt_id=odd + "!")]})


def test_hostile_texts_are_never_markup(tmp_path):
    hostile = write_page(hostile_run(tmp_path, "</script>$script\ud800"), tmp_path / "hostile")
    plain = write_page(write_run(tmp_path / "plain", {"000000": MIXED}), tmp_path / "page")
    assert Page(hostile.read_text()).tags == Page(plain.read_text()).tags
    assert "alert(" not in re.sub(r'id="data">.*</script>', "", hostile.read_text())
    assert "<" not in re.search(r'id="data">(.*)</script>', hostile.read_text())[1]
    written = hostile.with_name("round-000000.js").read_bytes()
    assert written.isascii() and b"<" not in written and written.count(b"\n") == 1
    assert groups_in(hostile.with_name("round-000000.js"))[0]["rows"][0]["text"].startswith(HOSTILE)


def test_the_page_loads_and_runs_nothing_else(tmp_path):
    page = write_page(write_run(tmp_path / "run", {"000000": MIXED}), tmp_path / "page")
    attributes = [set(of) for _, of in Page(page.read_text()).tags]
    assert not any(name in ("src", "href", "action", "style") or name.startswith("on") for of in attributes for name in of)
    script = (ASSETS / "browse.js").read_text()
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|\beval\b|new Function|import\(", script)
    assert re.findall(r"https?://[^\"]*", page.read_text()) == ["http://www.w3.org/2000/svg"]


def test_a_second_page_replaces_the_first(tmp_path):
    run = write_run(tmp_path / "run", {"000000": MIXED, "000001": MIXED})
    out = write_page(run, tmp_path / "page").parent
    first = files_of(out)
    write_page(run, out)
    assert files_of(out) == first and len(first) == 3
    (run / "rounds" / "000001.completions.jsonl").unlink()
    write_page(run, out)
    assert set(files_of(out)) == {"index.html", "round-000000.js"}


def test_the_command_writes_into_the_run_and_says_where(tmp_path, capsys):
    run = write_run(tmp_path / "run", {"000000": MIXED})
    cli.main(["browse", str(run)])
    assert capsys.readouterr().out.strip() == str(run / "browse" / "index.html")
    cli.main(["browse", str(run), "--out", str(tmp_path / "page")])
    assert files_of(tmp_path / "page") == files_of(run / "browse")


def test_what_cannot_be_browsed_is_refused(tmp_path, capsys):
    assert "has neither rounds nor a config.yaml" in refused(capsys, "browse", str(tmp_path / "nowhere"))
    (tmp_path / "config.yaml").touch()
    assert "has no rounds/*.completions.jsonl" in refused(capsys, "browse", str(tmp_path))
    run = write_run(tmp_path / "run", {"000000": MIXED})
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "index.html").touch()
    (tmp_path / "mine" / "notes.txt").touch()
    assert "holds notes.txt" in refused(capsys, "browse", str(run), "--out", str(tmp_path / "mine"))
    assert set(files_of(tmp_path / "mine")) == {"index.html", "notes.txt"}
    assert "is a file" in refused(capsys, "browse", str(run), "--out", str(tmp_path / "mine" / "notes.txt"))


# In a browser


@pytest.fixture
def browser(tmp_path):
    """Opens a page with a hash in a real browser, without a server."""
    if not CHROMIUM:
        pytest.skip("needs chromium on the PATH, and there is none: the page was not opened")

    def opened(page: Path, **state) -> Page:
        command = [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--dump-dom", "--virtual-time-budget=4000"]
        address = f"{page.resolve().as_uri()}#{urlencode(state)}"
        ran = subprocess.run(
            [*command, f"--user-data-dir={tmp_path / 'profile'}", address], capture_output=True, text=True, timeout=120
        )
        return Page(ran.stdout)

    return opened


def test_a_browser_opens_the_round_of_the_hash_and_compares_two(tmp_path, browser):
    other = [row("b", 1.0, "correct", "so 5"), row("z", 0.0)]
    page = write_page(write_run(tmp_path / "run", {"000003": MIXED, "000004": other}), tmp_path / "page")
    shown = browser(page, round=3).texts
    assert shown["title"][-1] == "Round 3" and shown["h3"] == ["id of aa", "id of bb"] and len(shown["completion"]) == 4
    assert shown["b"] == ["✓ correct", "✗ wrong", "? ungradable", "✗ wrong"]
    assert shown["state"] == ["kept", "kept", "dropped"] * 2  # of each group the head of the column and two rows
    assert shown["rounds"] == ["30.50025.0%50.0%50.0%2.500−0.125" + "40.50050.0%100.0%100.0%3.000−0.125"]

    shown = browser(page, round=3, **{"with": 4}).texts
    assert [text.split(":")[0] for text in shown["side"]] == ["Round 3", "Round 4"] and len(shown["completion"]) == 3
    assert "+25.0 pp" in shown["numbers"][0]


def test_a_browser_filters_completions_and_sorts_prompts(tmp_path, browser):
    matches = {"outcome": "wrong", "kept": "kept", "finish": "stop", "least": 0, "most": 1, "text": "SO", "spread": 1}
    others = [row("p", 0.5, "correct"), row("p", 0.5, kept=False), row("p", 0.5, finish_reason="length"), row("p", -1.0)]
    others += [row("p", 2.0), row("p", 0.5, text="no")]
    rows = [row("q", 0.0, text="so 1"), row("q", 0.25, text="so 2"), row("e", 0.75), row("e", 0.75)]
    rows += [row("p", 0.5, text="so 3"), *others]
    page = write_page(write_run(tmp_path / "run", {"000000": rows}), tmp_path / "page")
    shown = browser(page, round=0, sort="worst", **matches).texts
    assert shown["pre"] == ["so 1", "so 2", "so 3"] and shown["h3"] == ["id of qq", "id of pp"]
    assert shown["shown"] == ["3 of 11 completions and 2 of 3 prompts are shown."]
    for sort, prompts in (("worst", "qpe"), ("best", "epq"), ("spread", "pqe")):
        assert browser(page, sort=sort).texts["h3"] == [f"id of {prompt}{prompt}" for prompt in prompts]


def test_a_browser_shows_hostile_texts_as_texts(tmp_path, browser):
    hostile = browser(write_page(hostile_run(tmp_path), tmp_path / "hostile"), round=0)
    assert len(hostile.texts["completion"]) == 2 and hostile.texts["h1"][0].endswith(HOSTILE.replace("/", "|"))
    tags = [tag for tag, _ in hostile.tags]
    assert "img" not in tags and tags.count("script") == 2
    for place in ("pre", "h3", "failure", "thead", "b"):
        assert any(HOSTILE in text for text in hostile.texts[place]), place
