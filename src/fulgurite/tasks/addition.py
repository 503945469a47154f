"""Addition: `47+86=` is answered by `#133`. Made from its settings, nothing to download.

With a scratchpad the solution is `3131#133`: column by column from the right, the digit and what is carried. What stands before
`#` is never judged.

The held-out split is a tenth of the problems, chosen by a hash of the unordered pair of operands, so a+b and b+a are always
on the same side.
"""

from __future__ import annotations

from dataclasses import replace

from ..seeding import address
from ..types import Completion, ConfigError, Prompt, Verdict
from .protocol import Task, binary_verdict


class Addition(Task):
    """Sums of two numbers, zero-padded to equal width.

    Args:
        digits: of each operand.
        held_out: share of the unordered pairs of operands that training never sees.
        scratchpad: of the solutions.
    """

    def __init__(self, digits: int = 2, held_out: float = 0.1, scratchpad: bool = False) -> None:
        if not 1 <= digits <= 3:
            raise ConfigError(f"digits is {digits}; expected 1, 2 or 3: all problems are listed in memory")
        if not 0 < held_out < 1:
            raise ConfigError(f"held_out is {held_out}; expected a share between 0 and 1")
        self.digits, self.held_out, self.scratchpad = digits, held_out, scratchpad

    def prompts(self, split: str) -> list[Prompt]:
        if split not in ("train", "held_out"):
            raise ConfigError(f"Addition has no split {split!r}; expected train or held_out")
        return [
            self._prompt(a, b)
            for a in range(10**self.digits)
            for b in range(10**self.digits)
            if self._is_held_out(a, b) == (split == "held_out")
        ]

    def judge(self, prompt: Prompt, completion: Completion) -> Verdict:
        parts = completion.text.split("#")
        if completion.finish_reason != "stop" or len(parts) != 2:
            return binary_verdict("ungradable")
        return replace(binary_verdict("correct" if parts[1] == prompt.answer else "wrong"), answer=parts[1])

    def solution(self, prompt: Prompt) -> str:
        return f"{self._columns(prompt) if self.scratchpad else ''}#{prompt.answer}"

    def _columns(self, prompt: Prompt) -> str:
        written, carry = "", 0
        for a, b in zip(*(reversed(operand) for operand in prompt.text[:-1].split("+")), strict=True):
            carry, digit = divmod(int(a) + int(b) + carry, 10)
            written += f"{digit}{carry}"
        return written

    def _prompt(self, a: int, b: int) -> Prompt:
        question = f"{a:0{self.digits}}+{b:0{self.digits}}="
        return Prompt(id=question, text=question, answer=f"{a + b:0{self.digits + 1}}", source="addition")

    def _is_held_out(self, a: int, b: int) -> bool:
        return address("addition", self.digits, min(a, b), max(a, b)) % 10_000 < self.held_out * 10_000
