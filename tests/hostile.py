"""Hostile answers, made from a seed, and functions that misbehave inside a grader's worker."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path

COUNT = 1_200
LETTERS = "abcxyzn"


def answers(canary: str, seed: int = 0) -> list[str]:
    """`COUNT` texts; code among them would create the file `canary`. None is a right answer to anything."""
    draw = random.Random(seed)
    made = [kind(draw, canary) for _ in range(COUNT // len(KINDS) + 1) for kind in KINDS][:COUNT]
    return [draw.choice(WRAPPINGS)(text) for text in made]


WRAPPINGS = (
    lambda text: rf"\boxed{{{text}}}",
    lambda text: f"A: {text}",
    lambda text: f"#### {text}",
    lambda text: f"The answer is ${text}$.",
    lambda text: text,
)


def tower(draw, _):
    sign = draw.choice(["^", "**", "^{"])
    digits = [str(draw.randrange(2, 10)) for _ in range(draw.randrange(4, 9))]
    return sign.join(digits) + "}" * (len(digits) - 1) * (sign == "^{")


def factorials(draw, _):
    return draw.choice(
        [f"{draw.randrange(10**3, 10**9)}" + "!" * draw.randrange(1, 9), "((((9!)!)!)!)!", r"\binom{10^{9}}{5\cdot10^{8}}"]
    )


def nested(draw, _):
    depth, (left, right) = (
        draw.randrange(50, 4_000),
        draw.choice(
            [
                ("{", "}"),
                ("(", ")"),
                (r"\frac{1}{", "}"),
                (r"\sqrt{", "}"),
                (r"\left(", r"\right)"),
                ("[", "]"),
                ("|", "|"),
                ("x^{", "}"),
            ]
        ),
    )
    return left * depth + "1" + right * draw.choice([depth, depth - 1, 0])


def unclosed(draw, _):
    return draw.choice([r"\boxed{", r"\frac{", "$", r"\(", "{{", r"\begin{pmatrix}", "<<", r"\left(", "\\"]) * draw.randrange(
        1, 5_000
    )


def megabytes(draw, _):
    piece = draw.choice(
        [r"\frac{1}{2}+", "x+", "9", r"\boxed{1} ", "a_{1}^{2}", "1,", r"\text{a}", " ", "A: ", "1/", "- ", "1 or "]
    )
    return piece * (2**20 // len(piece))


def huge_numbers(draw, _):
    return draw.choice(
        ["9" * draw.randrange(500, 9_000), "1e" + "9" * draw.randrange(3, 40), "0." + "3" * 5_000, "10^{-999999999}"]
    )


def code(draw, canary):
    touch = f"__import__('os').system('touch {canary}')"
    return draw.choice(
        [
            touch,
            f"eval({touch!r})",
            f"().__class__.__bases__[0].__subclasses__(); {touch}",
            f"open('{canary}','w')",
            f"lambda: {touch}",
            f"sympify({touch!r})",
            f"S({touch!r})",
            rf"\text{{{touch}}}",
            f"{{{{{touch}}}}}",
            f"x = {touch}",
            f"exec(compile({touch!r},'','exec'))",
            f"$(touch {canary})",
            f"`touch {canary}`",
            f"; touch {canary} #",
            f"| touch {canary}",
            rf"\input{{|touch {canary}}}",
            rf"\write18{{touch {canary}}}",
            f"!!python/object/apply:os.system ['touch {canary}']",
            f"<script>fetch('http://127.0.0.1:9/{canary}')</script>",
            f"cos\nsystem\n(S'touch {canary}'\ntR.",
        ]
    )


def algebra(draw, _):
    n = draw.randrange(50, 10**6)
    return draw.choice(
        [
            rf"\int_0^\infty e^{{-x^{{{n}}}}}\sin(x^x)\,dx",
            rf"\sum_{{k=1}}^{{{n}}} \frac{{k!}}{{k^k}}",
            rf"\prod_{{k=1}}^{{\infty}} (1+x^k)^{{{n}}}",
            rf"x^{{{n}}}+x^{{{n - 1}}}+1=0",
            rf"(x+y+z+1)^{{{n}}}",
            rf"\lim_{{n\to\infty}} \sqrt[n]{{n^{{{n}}}}}",
            rf"\left(\sin(\cos(\tan(x)))\right)^{{{n}}} = \ln(\ln(\ln(x+{n})))",
            "+".join(rf"\sqrt{{{draw.randrange(2, 999)}}}" for _ in range(90)),
            "*".join(f"(x-{i})" for i in range(90)),
            rf"\begin{{pmatrix}} {' & '.join(['x'] * 200)} \end{{pmatrix}}",
            rf"x \equiv {n} \pmod{{10^{{100}}}}",
            ",".join(str(i) for i in range(300)),
            r"\{" + ",".join(rf"\sin({i}x)" for i in range(90)) + r"\}",
            rf"\cosh(10^{{{n}}})",
            rf"\pi^{{\pi^{{\pi^{{\pi^{{{n}}}}}}}}}",
            r"\pm" * 400 + "1",
            ",".join([r"\pm 1"] * 100),
        ]
    )


def patterns(draw, _):
    n = draw.randrange(1_000, 30_000)
    return (
        draw.choice(
            [
                "1" + ",111" * n + "x",
                "$" * n,
                " " * n + "!",
                "A" * n + ":",
                "answer " * n,
                r"\ " * n,
                "1 " * n,
                "." * n,
                "-" * n,
            ]
        )
        + "\x01"
    )


def oddities(draw, _):
    pool = "\x00\x01\x1b\u200b\u200e\u202e\u2066\ufeff\ud800\udfff\U0001d7d9\U0010ffff٣๔½Ⅷ①⁷₉√∛∫Σ𝟙é̷ﷺ\u2028\u0085"
    return "".join(draw.choice(pool + "0123456789+-^_{}\\$") for _ in range(draw.randrange(1, 400)))


def formats(draw, _):
    return draw.choice(
        [
            "%s%s%s%n",
            "{0.__class__.__mro__}",
            "%(gold)s",
            "{gold}",
            "${jndi:ldap://127.0.0.1/a}",
            "%x" * 300,
            "{}" * 300,
            '[1, true, ["correct", "", ""]]',
            '\n[0, true, ["correct", "", ""]]\n',
        ]
    )


def noise(draw, _):
    signs = list(r"\{}()[]|^_+-*/=<>!%&$#,;:.' ") + [
        r"\frac",
        r"\sqrt",
        r"\cup",
        r"\pm",
        r"\text{",
        r"\begin{array}",
        r"\end{array}",
        "\\\\",
    ]
    return "".join(draw.choice(signs + list(LETTERS + "0123456789")) for _ in range(draw.randrange(1, 900)))


KINDS = (
    tower,
    factorials,
    nested,
    unclosed,
    huge_numbers,
    code,
    algebra,
    patterns,
    oddities,
    formats,
    noise,
    code,
    algebra,
    noise,
    tower,
)
RARE = (megabytes,)


def huge_answers(seed: int = 0, count: int = 24) -> list[str]:
    """Texts of a megabyte each."""
    draw = random.Random(seed)
    return [draw.choice(WRAPPINGS)(megabytes(draw, "")) for _ in range(count)]


# Called inside a worker


def echo(value):
    return value


def square(number):
    return number * number


def process_id(seconds: float = 0.0) -> int:
    time.sleep(seconds)
    return os.getpid()


def imported():
    return [name for name in ("torch", "numpy", "transformers", "lightning", "fulgurite.types") if name in sys.modules]


def spin(_=None):
    """A loop that ignores every signal that can be ignored, in C."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGALRM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    return sum(iter(int, 1))


def sleep(seconds):
    time.sleep(seconds)
    return seconds


def swallow(mib):
    return len(bytearray(mib * 2**20))


def crash(code):
    os._exit(code)


def fail():
    raise KeyError("a reason")


def chatter(value):
    """Writes to every standard stream what looks like replies."""
    for _ in range(50):
        print('[0, true, "forged"]', flush=True)
        print("noise", file=sys.stderr, flush=True)
        os.write(1, b'[1, true, "forged"]\n')
    return value


def forge():
    """Writes a reply to another call into the pipe itself."""
    for descriptor in range(3, 12):
        try:
            os.write(descriptor, b'[12345, true, "forged"]\n')
        except OSError:
            continue
    time.sleep(30)


def escape(how, canary):
    """What a grader may not do."""
    import socket
    import subprocess

    ways = {
        "file": lambda: Path(canary).write_text("escaped"),
        "system": lambda: os.system(f"touch {canary}"),
        "process": lambda: subprocess.run(["touch", canary]),
        "fork": os.fork,
        "network": lambda: socket.create_connection(("127.0.0.1", 9), timeout=1),
    }
    ways[how]()
    return "escaped"
