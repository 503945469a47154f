"""Plain reward functions, for tests."""

SEVEN = 7


def digits(text):
    return sum(character.isdigit() for character in text)


def everything(text, tokens, finish_reason, prompt, answer, metadata, extracted, outcome, factor, *, bonus=0.25):
    seen = (text, tokens, finish_reason, prompt, answer, metadata, extracted, outcome)
    expected = ("say 7", 3, "stop", "3+4=", "7", {"kind": "sum"}, "7", "correct")
    return factor + bonus if seen == expected else 0


def penalty(text):
    if "hang" in text:
        while True:
            pass
    if "raise" in text:
        raise ValueError("cannot read this")
    if "nan" in text:
        return float("nan")
    return -2.0 if "bad" in text else -1.0


def words(text):
    return text.split()


def hangs_on_even_digits(text):
    while any(character in "02468" for character in text):
        pass
    return 1.0
