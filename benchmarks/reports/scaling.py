"""How do time and memory grow with tokens, and from how many tokens on is one layer faster than another?

Pure functions of recorded cases. A curve is the points (tokens, figure) of one variant; a fit is a power of the tokens,
figure = factor * tokens ** exponent, by least squares between logarithms. Small sizes bend a curve away from its power:
`residual` tells how far.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

Points = Sequence[tuple[int, float]]
BENT = 0.1  # residuals above it are marked


@dataclass(frozen=True)
class Fit:
    """figure = factor * tokens ** exponent. residual: RMS of log(figure / fit), 0.1 being about 10 %."""

    exponent: float
    factor: float
    residual: float

    def at(self, tokens: float) -> float:
        return self.factor * tokens**self.exponent


@dataclass(frozen=True)
class Crossover:
    """From `tokens` on `faster` is faster than `slower`, up to the most that were measured."""

    faster: str
    slower: str
    tokens: float


def fit(points: Points) -> Fit:
    """The power that fits best. Raises ValueError for fewer than two sizes or figures that are not above 0."""
    checked = sorted(points)
    if len({tokens for tokens, _ in checked}) < 2:
        raise ValueError(f"points: got {len({tokens for tokens, _ in checked})} sizes, wants two or more")
    if not all(tokens > 0 and math.isfinite(figure) and figure > 0 for tokens, figure in checked):
        raise ValueError(f"points: got {checked}, wants tokens and figures above 0")
    x, y = (np.log(np.array(values, dtype=float)) for values in zip(*checked))
    exponent, intercept = np.polyfit(x, y, 1)
    residual = float(np.sqrt(np.mean((y - exponent * x - intercept) ** 2)))
    return Fit(float(exponent), float(np.exp(intercept)), residual)


def exponent(points: Points) -> str:
    """That of the power that fits, as text; "~" before it where the points do not lie on one within a tenth."""
    fitted = fit(points)
    return ("~" if fitted.residual > BENT else "") + f"{fitted.exponent:.2f}"


def about(tokens: float) -> str:
    """A crossing as text, in the two digits that sizes far apart can tell."""
    return f"about {float(f'{tokens:.2g}'):,.0f}"


def crossover(one: Points, other: Points) -> float | None:
    """The tokens from which on `one` is the lower, found between measured sizes, where both are taken for powers.

    None where it is not the lower at the largest size that both have, or is the lower at all of them.
    """
    first, second = dict(one), dict(other)
    tokens = sorted(first.keys() & second.keys())
    gaps = [math.log(first[count] / second[count]) for count in tokens]
    if not gaps or gaps[-1] >= 0 or all(gap < 0 for gap in gaps):
        return None
    last = max(i for i, gap in enumerate(gaps) if gap >= 0)
    share = gaps[last] / (gaps[last] - gaps[last + 1])
    return math.exp(math.log(tokens[last]) + share * math.log(tokens[last + 1] / tokens[last]))


def crossovers(curves: Mapping[str, Points]) -> list[Crossover]:
    """All pairs of curves that cross, in the order of their names' appearance."""
    found = []
    for one in curves:
        for other in curves:
            if one != other and (tokens := crossover(curves[one], curves[other])) is not None:
                found.append(Crossover(one, other, tokens))
    return found


def layer_curves(cases: Iterable[Mapping], figure: str = "median") -> dict[tuple[str, str, str], dict[str, Points]]:
    """Curves of recorded cases (benchmarks/harness/record.py) of layers, by (operator, dtype, passes) and variant.

    figure: "median" (seconds; those of the device where they were taken) or "peak_memory" (bytes).
    """
    found: dict = defaultdict(lambda: defaultdict(list))
    for case in cases:
        if case.get("level") != "layer":
            continue
        for name, row in case["variants"].items():
            value = (row | (row.get("device") or row.get("eager") or {})).get(figure)
            if value:
                found[case["operator"], case["dtype"], case["passes"]][name].append((case["tokens"], value))
    return {key: {name: sorted(points) for name, points in curves.items()} for key, curves in found.items()}


def lines(cases: Sequence[Mapping]) -> list[str]:
    """For a terminal: the exponents of each variant's time and memory, and where times cross; none without layers."""
    memory, text = layer_curves(cases, "peak_memory"), []
    for key, curves in layer_curves(cases).items():
        fitted = {name: fit(points) for name, points in curves.items() if len(points) > 1}
        if not fitted:
            continue
        text += ["", ", ".join(key)]
        width = max(map(len, fitted))
        for name, of_time in fitted.items():
            sizes = f"{curves[name][0][0]} to {curves[name][-1][0]} tokens"
            points = memory.get(key, {}).get(name, ())
            of_memory = f", memory as tokens ^ {exponent(points)}" if len(points) > 1 else ""
            # Any power goes through two points.
            residual = f" (residual {of_time.residual:.2f})" if len(curves[name]) > 2 else ""
            text.append(f"  {name:{width}}  {sizes}: time as tokens ^ {of_time.exponent:.2f}{residual}{of_memory}")
        text += [
            f"  {found.faster} is faster than {found.slower} from {about(found.tokens)} tokens on"
            for found in crossovers(curves)
        ]
    return text
