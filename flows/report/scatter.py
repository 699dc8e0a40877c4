"""The map of gradient space as inline SVG: dots, numbered places, and names where there is room for them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any
from unicodedata import east_asian_width

from markupsafe import Markup

from flows.report.charts import WIDTH, domain, num, svg, tag, text

HEIGHT, EDGE = 400.0, 14.0


def scatter(dots: Sequence[Mapping[str, Any]], badges: Sequence[Mapping[str, Any]], label: str) -> Markup:
    """Rows on two axes, stretched in the middle, with numbered, named places; names that would overlap are left to the list beside it.

    dots: `x`, `y`, `kind`, `title`. badges: `x`, `y`, `number`, `name`, `title`.
    """
    wide, tall = _opened([d["x"] for d in dots]), _opened([d["y"] for d in dots])
    x_low, x_high = domain([wide(p["x"]) for p in (*dots, *badges)])
    y_low, y_high = domain([tall(p["y"]) for p in (*dots, *badges)])

    def place(p: Mapping[str, Any]) -> tuple[float, float]:
        x = EDGE + (wide(p["x"]) - x_low) / (x_high - x_low) * (WIDTH - 2 * EDGE)
        return x, HEIGHT - EDGE - (tall(p["y"]) - y_low) / (y_high - y_low) * (HEIGHT - 2 * EDGE)

    parts = [tag("rect", x="0", y="0", width=str(WIDTH), height=num(HEIGHT), rx="6", class_="ground")]
    for dot in dots:
        x, y = place(dot)
        at = {"cx": num(x), "cy": num(y), "r": "2.2" if "synthetic" in dot["kind"] else "2"}
        parts.append(tag("circle", tag("title", dot["title"]), **at, class_=f"row {dot['kind']}"))
    spots = [place(b) for b in badges]
    names = _free_names(badges, spots)
    for badge, (x, y), name in zip(badges, spots, names, strict=True):
        number = text(x, y + 3.2, str(badge["number"]), "number", "middle")
        circle = tag("circle", cx=num(x), cy=num(y), r="8.5" if badge["number"] > 99 else "7")
        parts.append(tag("g", tag("title", badge["title"]), circle, number, class_="badge"))
        if name:
            parts.append(text(*name, badge["name"], "place"))
    return svg(HEIGHT, label, *parts, class_="map")


def _opened(values: Sequence[float]) -> Any:
    """A scale that is linear near zero and logarithmic far out: the crowded middle of a map becomes readable."""
    known = sorted(abs(v) for v in values if math.isfinite(v))
    unit = (known[len(known) // 2] if known else 0.0) or 1.0
    return lambda value: math.asinh(value / unit)


def _free_names(
    badges: Sequence[Mapping[str, Any]], spots: Sequence[tuple[float, float]]
) -> list[tuple[float, float] | None]:
    """Where each name fits without covering a badge or another name; None when nowhere."""
    taken = [(x - 8, y - 8, x + 8, y + 8) for x, y in spots]
    found: list[tuple[float, float] | None] = []
    for badge, (x, y) in zip(badges, spots, strict=True):
        wide = 5.9 * sum(1 + (east_asian_width(c) in "WF") for c in badge["name"]) + 4
        spot = None
        sides = ((x + 11, y + 3.5), (x - 11 - wide, y + 3.5), (x - wide / 2, y - 11), (x - wide / 2, y + 19))
        for left, base in sides:
            box = (left, base - 9, left + wide, base + 3)
            inside = box[0] >= 2 and box[2] <= WIDTH - 2 and box[1] >= 2 and box[3] <= HEIGHT - 2
            if inside and all(
                box[2] < t[0] or box[0] > t[2] or box[3] < t[1] or box[1] > t[3] for t in taken
            ):
                spot = (left, base)
                taken.append(box)
                break
        found.append(spot)
    return found
