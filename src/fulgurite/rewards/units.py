"""Units after a number: what they measure and how large they are, so that 5 km is 5000 m and 15 cm is not 15 cm^2."""

from __future__ import annotations

import re
from collections import Counter
from fractions import Fraction
from typing import NamedTuple

# dimension: {factor: names}. A name also stands for its plural in s.
TABLE = {
    "length": {
        "1": "m meter metre",
        "1/1000": "mm millimeter millimetre",
        "1/100": "cm centimeter centimetre",
        "1/10": "dm decimeter decimetre",
        "1000": "km kilometer kilometre",
        "0.0254": "inch inches in",
        "0.3048": "ft foot feet",
        "0.9144": "yd yard",
        "1609.344": "mi mile",
        "1e-9": "nm nanometer nanometre",
        "1e-10": "angstrom",
    },
    "mass": {
        "1": "g gram",
        "1000": "kg kilogram",
        "1/1000": "mg milligram",
        "453.59237": "lb lbs pound",
        "28.349523125": "oz ounce",
        "1e6": "tonne",
    },
    "time": {
        "1": "s sec second",
        "1/1000": "ms millisecond",
        "60": "min minute mins",
        "3600": "h hr hour",
        "86400": "day",
        "604800": "week",
        "31557600": "yr year",
        "2629800": "month",
    },
    "volume": {"1": "l liter litre", "1/1000": "ml milliliter millilitre", "3.785411784": "gallon gal"},
    "angle": {"1": "degree deg"},
    "radian": {"1": "radian rad"},
    "money": {"1": "dollar usd buck", "1/100": "cent"},
    "euro": {"1": "euro"},
    "pounds sterling": {"1": "gbp"},
    "energy": {"1": "j joule", "1000": "kj kilojoule", "4.184": "cal calorie", "4184": "kcal", "1.602176634e-19": "ev"},
    "force": {"1": "n newton", "1000": "kn"},
    "power": {"1": "w watt", "1000": "kw kilowatt"},
    "frequency": {"1": "hz hertz", "1000": "khz", "1e6": "mhz", "1e9": "ghz", "1e12": "thz"},
    "temperature": {"1": "k kelvin"},
    "percent": {"1": "percent % pct"},
}
KNOWN = {
    name: (dimension, Fraction(factor))
    for dimension, sizes in TABLE.items()
    for factor, names in sizes.items()
    for name in names.split()
}
SCALES = {"hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9, "trillion": 10**12, "dozen": 12}
SCALES |= {name + "s": size for name, size in SCALES.items()}
# Words that change what a number says, or join it to another: never a unit.
CHANGES = """half halves third thirds fourth fourths quarter quarters fifth fifths sixth sixths seventh sevenths
eighth eighths ninth ninths tenth tenths hundredth hundredths thousandth thousandths squared cubed times factorial
tens root plus minus over negative or and not mod divided by to the than approximately about at least most if when where
but no none is are equals equal between from undefined infinity inf sin cos tan log ln exp sqrt pi"""
NEVER = set(CHANGES.split())
SPEEDS = {"mph": "mi/h", "kph": "km/h", "kmh": "km/h"}
SQUARES = {"square": 2, "sq": 2, "cubic": 3, "cu": 3}
PART = re.compile(r"(?P<word>[A-Za-z%$]+)|\^\s*\{?\s*(?P<power>-?\d)\s*\}?|(?P<per>/)|(?P<gap>[\s.]+|\\cdot)")


class Unit(NamedTuple):
    """`dimensions` as sorted (name, power) pairs and the size in base units; a unit outside the table keeps its own name."""

    dimensions: tuple[tuple[str, int], ...]
    factor: Fraction


def stem(word: str) -> str:
    word = word if word in ("m", "M", "s", "S") else word.lower()
    if word in KNOWN or len(word) < 3 or (len(word) == 3 and word[:-1] not in KNOWN):
        return word
    return word[:-1] if word.endswith("s") and not word.endswith("ss") else word


def read_unit(text: str) -> Unit | None:
    """The unit that a text is, or None: `cm^2`, `square inches`, `km/h`, `students`."""
    text = re.sub(r"[A-Za-z]+", lambda word: SPEEDS.get(word[0].lower(), word[0]), text)
    dimensions: Counter[str] = Counter()
    factor, sign, power_ahead, place, last = Fraction(1), 1, 1, 0, ("", Fraction(1), 0)
    while place < len(text):
        part = PART.match(text, place)
        if part is None:
            return None
        place = part.end()
        if part["per"] or (part["word"] or "").lower() in ("per", "an", "a") or (part["word"] or "").lower() == "each":
            sign = -1 if part["per"] or part["word"].lower() == "per" else sign
        elif part["word"]:
            word = part["word"]
            if word.lower() in SQUARES:
                power_ahead = SQUARES[word.lower()]
                continue
            if word.lower() in NEVER:
                return None
            dimension, size = KNOWN.get(stem(word), (stem(word), Fraction(1)))
            power = sign * power_ahead
            dimensions[dimension] += power
            factor *= size**power
            last, power_ahead = (dimension, size, power), 1
        elif part["power"]:
            if not last[0]:
                return None
            extra = last[2] * int(part["power"]) - last[2]
            dimensions[last[0]] += extra
            factor *= last[1] ** extra
    if not dimensions:
        return None
    return Unit(tuple(sorted((name, power) for name, power in dimensions.items() if power)), factor)


def is_known(word: str) -> bool:
    return stem(word) in KNOWN or word.lower() in SPEEDS
