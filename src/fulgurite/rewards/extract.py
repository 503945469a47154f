"""The final answer inside a solution text."""

from __future__ import annotations

import re
from typing import Literal

Where = Literal["boxed", "marked", "any"]
LONGEST_TAIL = 20_000
LONGEST_BARE = 120
MOST_BOXES = 8
BOX = re.compile(r"\\(?:boxed|fbox)\s*(\{|\d+)")
BETWEEN_BOXES = re.compile(r"[\s$.,;]*(?:and|or|,|;)?[\s$,]*\Z")
MARKER = re.compile(
    r"####|(?:^|\n)[ \t]*\**A(?:nswer)?\**[ \t]*:\**|\bfinal\s+answer\b[ \t]*(?:is|[:=])?|\banswer\b[ \t]*(?:is|are|[:=])+"
    r"(?:,?[ \t]*(?:therefore|thus|hence|then)\b,?)?",
    re.IGNORECASE,
)
MATH = re.compile(
    r"\$\$(.{1,500}?)\$\$|(?<!\\)\$((?:\\.|[^$\\\n]){1,500}?)\$(?!\d)|\\\((.{1,500}?)\\\)|\\\[(.{1,500}?)\\\]", re.DOTALL
)
NUMBER = re.compile(
    r"(?<![\w.])[-−+]?(?:\\?\$ ?)?[-−]?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+)?(?<=\d)(?:/\d+|[eE][-+]?\d+)?(?:\s?\\?%)?"
)
SENTENCE_END = re.compile(r"[.!?](?:\s+(?=[A-Z])|\s*\n)")
PROSE = re.compile(r"(?<![\\A-Za-z{])[A-Za-z]{2,}")
OPENING = re.compile(r"[A-Z][a-z]+[ ,]")
ALTERNATIVE = re.compile(r"\s*\$?,?\s*(?:or|and)\s+(?:by |about |is |it is )?\$?", re.IGNORECASE)
TAGGED = re.compile(r"<answer>((?:(?!<answer>).)*?)</answer>", re.DOTALL | re.IGNORECASE)
CALCULATION = re.compile(r"<<[^<>\n]{0,200}>>")


def final_answer(text: str, where: Where = "any") -> str | None:
    """What a text gives as its answer; None where it gives none.

    Only what the last `<answer>...</answer>` encloses is read, where there is such a pair.

    Args:
        where: `boxed` reads only the last \\boxed{...} (with those it is joined to by `and`, `or` or a comma), `marked` also
            what follows the last `####`, `A:` or `answer is`, and the whole content of a tag, `any` also the whole of a short
            text and the last formula or number.
    """
    text = text[-LONGEST_TAIL:]
    text = text.rpartition("</think>")[2].strip() or text
    tagged = TAGGED.findall(text)
    text = tagged[-1] if tagged else text
    boxes = last_boxes(text)
    if boxes is not None or where == "boxed":
        return boxes or None
    marked = after_marker(text)
    if marked is not None or (where == "marked" and not tagged):
        return marked or None
    return bare(text) or None


def last_boxes(text: str) -> str | None:
    """Contents of the last box, with those boxes just before it; None without a box, "" where it is empty or never closed."""
    found: list[tuple[int, int, str]] = []
    for match in list(BOX.finditer(text))[-MOST_BOXES:]:
        if match[1] != "{":
            found.append((match.start(), match.end(), match[1]))
            continue
        end = closing_brace(text, match.end())
        found.append((match.start(), end, text[match.end() : end - 1].strip()) if end else (match.start(), len(text), ""))
    found = [box for i, box in enumerate(found) if not any(other[0] < box[0] and box[1] < other[1] for other in found[:i])]
    if not found:
        return None
    kept = [found[-1]]
    for box in reversed(found[:-1]):
        between = text[box[1] : kept[0][0]]
        if len(between) > 20 or not re.search(r"and|or|,|;", between) or not BETWEEN_BOXES.match(between):
            break
        kept.insert(0, box)
    contents = ", ".join(box[2] for box in kept) if all(box[2] for box in kept) else ""
    return last_boxes(contents) if BOX.match(contents) else contents


def closing_brace(text: str, start: int) -> int | None:
    """The place after the brace that closes the one before `start`."""
    depth, place = 1, start
    while place < len(text):
        char = text[place]
        if char == "\\":
            place += 2
            continue
        depth += (char == "{") - (char == "}")
        place += 1
        if depth == 0:
            return place
    return None


def after_marker(text: str) -> str | None:
    """What follows the last marker, to the end of its line or sentence; None without a marker."""
    last = None
    for last in MARKER.finditer(text):  # noqa: B007
        pass
    if last is None:
        return None
    line = text[last.end() :].strip(" \t*:").lstrip("\n")
    line = re.split(r"\n\s*\n|\n(?=[A-Z#])|\n(?!\s*[\\$&])", line, maxsplit=1)[0]
    line = SENTENCE_END.split(line + "\n", maxsplit=1)[0].strip(" *\t\n")
    return line


def formula_or_number(text: str) -> str | None:
    """The last formula between dollar signs, or the last number where it stands after that."""
    text = CALCULATION.sub("", text)
    formulas, numbers = list(MATH.finditer(text)), list(NUMBER.finditer(text))
    found = sorted(formulas + [n for n in numbers if all(n.start() >= f.end() for f in formulas[-1:])], key=lambda m: m.start())
    if not found:
        return None
    kept = [found[-1]]
    for match in reversed(found[:-1]):  # 5 or 6: an answer that names both is not the one that is right
        if not ALTERNATIVE.fullmatch(text[match.end() : kept[0].start()]):
            break
        kept.insert(0, match)
    return ", ".join(next(filter(None, match.groups()), match[0]).strip() for match in kept)


def bare(text: str) -> str | None:
    """The whole of a short text of one line that is no sentence; else its last formula or number."""
    text = text.strip()
    opens_with_word = OPENING.match(text) and MATH.search(text)
    sentence = opens_with_word or len(PROSE.findall(text)) >= 4 and any(char.isdigit() for char in text)
    return formula_or_number(text) if sentence or len(text) > LONGEST_BARE or "\n" in text else text
