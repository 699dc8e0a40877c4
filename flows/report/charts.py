"""Charts of the report as inline SVG: every text is escaped here, colours come from the page's classes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from markupsafe import Markup

WIDTH = 360  # user units; about one CSS pixel each on a phone, so that text stays readable
ROW = 42
MARKS = {"candidate": "diamond", "control": "square"}


def tag(name: str, *content: str, **attributes: Any) -> Markup:
    """An element; attribute values and plain strings are escaped, `class_` is class, `_` is a hyphen."""
    written = Markup("").join(
        Markup(' {}="{}"').format(key.rstrip("_").replace("_", "-"), value)
        for key, value in attributes.items()
        if value is not None
    )
    return Markup("<{0}{1}>{2}</{0}>").format(Markup(name), written, Markup("").join(content))


def text(x: float, y: float, words: str, class_: str = "", anchor: str | None = None) -> Markup:
    """A line of text at x, y."""
    return tag("text", words, x=num(x), y=num(y), class_=class_ or None, text_anchor=anchor)


def num(value: float) -> str:
    """A coordinate with at most one digit after the point."""
    return f"{value:.1f}".removesuffix(".0")


def signed(value: float | None, digits: int = 1) -> str:
    """A signed number with a true minus; `?` when unknown."""
    if value is None or value != value:
        return "?"
    written = f"{abs(value):.{digits}f}"
    return written if not float(written) else f"{'+' if value > 0 else '−'}{written}"


def plain(value: float | None, digits: int = 1) -> str:
    """An unsigned number with a true minus; `?` when unknown."""
    return signed(value, digits).removeprefix("+")


def small(value: float | None) -> str:
    """Two significant digits, powers of ten written out: 0.0017, 5.6 × 10⁻⁵."""
    if value is None or not math.isfinite(value):
        return "?"
    digits, _, power = f"{value:.2g}".partition("e")
    return (f"{digits} × {scale(int(power), True)}" if power else digits).replace("-", "−")


def probability(p: float | None) -> str:
    """A p value in two significant digits."""
    if p is None or p != p:
        return "?"
    return "1" if p >= 0.995 else f"{p:.2g}".removeprefix("0")


def limits(low: float | None, high: float | None) -> str:
    """An interval; words when there is none."""
    if low is None or low != low:
        return "[no interval]"
    return f"[{plain(low)}, {plain(high)}]"


def svg(height: float, label: str, *content: str, class_: str = "", width: float = WIDTH) -> Markup:
    """A chart that fills its box, named for those who do not see it."""
    box = f"0 0 {num(width)} {num(height)}"
    return tag("svg", *content, viewBox=box, role="img", aria_label=label, class_=f"chart {class_}".strip())


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round positions between low and high."""
    span = high - low
    if not span > 0 or not math.isfinite(span):
        return [low] if math.isfinite(low) else [0.0]
    power = 10.0 ** math.floor(math.log10(span / about))
    step = next(power * k for k in (1, 2, 5, 10) if span / (power * k) <= about)
    return [k * step for k in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def domain(values: Iterable[float | None], include: Sequence[float] = ()) -> tuple[float, float]:
    """Limits around the finite values, with a little air."""
    known = [v for v in values if v is not None and math.isfinite(v)] + list(include)
    low, high = (min(known), max(known)) if known else (0.0, 1.0)
    air = 0.04 * (high - low) or 1.0
    return low - air, high + air


def mark(kind: str, x: float, y: float) -> Markup:
    """The mean: a diamond for the candidate, a square for a control, a circle for the others."""
    shape = MARKS.get(kind, "circle")
    if shape == "circle":
        return tag("circle", cx=num(x), cy=num(y), r="4.5", class_=f"mean {kind}")
    if shape == "square":
        return tag("rect", x=num(x - 4.2), y=num(y - 4.2), width="8.4", height="8.4", class_=f"mean {kind}")
    points = f"{num(x)},{num(y - 6)} {num(x + 6)},{num(y)} {num(x)},{num(y + 6)} {num(x - 6)},{num(y)}"
    return tag("polygon", points=points, class_=f"mean {kind}")


def interval_rows(rows: Sequence[Mapping[str, Any]], label: str, zero: bool = False) -> Markup:
    """One row an arm: name and figures, mean with interval, and a dot for every replicate.

    rows: `label`, `figure`, `kind` (CSS class), `mean`, `low`, `high`, `dots` [(replicate, value, title)]; a row
    without a mean keeps its place, so that two charts side by side line up. zero: draw the line of no difference.
    """
    values = [v for r in rows for v in (r["mean"], r["low"], r["high"], *(d[1] for d in r["dots"]))]
    low, high = domain(values, (0.0,) if zero else ())

    def at(v: float) -> float:
        return 8 + (v - low) / (high - low) * (WIDTH - 16)

    row_height = ROW if any(r["dots"] for r in rows) else ROW - 10
    bottom = row_height * len(rows) + 4
    parts = [_axis(ticks(low, high), at, bottom)]
    if zero:
        parts.append(tag("line", x1=num(at(0)), x2=num(at(0)), y1="0", y2=num(bottom), class_="zero"))
    for number, row in enumerate(rows):
        parts += _interval_row(row, row_height * number, at)
    return svg(bottom + 20, label, *parts, class_="rows")


def _axis(places: Sequence[float], at: Any, bottom: float) -> Markup:
    step = places[1] - places[0] if len(places) > 1 else 1.0
    digits = max(0, -math.floor(math.log10(step) + 1e-9)) if step > 0 else 0
    parts = []
    for value in places:
        x = at(value)
        parts.append(tag("line", x1=num(x), x2=num(x), y1="0", y2=num(bottom), class_="grid"))
        anchor = "start" if x < 20 else "end" if x > WIDTH - 20 else "middle"
        parts.append(text(x, bottom + 14, plain(value, digits), "tick", anchor))
    return Markup("").join(parts)


def _interval_row(row: Mapping[str, Any], top: float, at: Any) -> list[Markup]:
    parts = [
        text(0, top + 13, str(row["label"]), f"name {row['kind']}"),
        text(WIDTH, top + 13, str(row["figure"]), "figure", "end"),
    ]
    if row["mean"] is None or not math.isfinite(row["mean"]):
        return parts
    y = top + 24
    if row["low"] is not None and math.isfinite(row["low"]):
        ends = {"x1": num(at(row["low"])), "x2": num(at(row["high"]))}
        parts.append(tag("line", **ends, y1=num(y), y2=num(y), class_=f"bar {row['kind']}"))
    parts.append(mark(row["kind"], at(row["mean"]), y))
    for replicate, value, title in row["dots"]:
        if math.isfinite(value):
            place = {"cx": num(at(value)), "cy": num(y + 11), "r": "2.8"}
            name = f"dot r{int(replicate)} {row['kind']}"
            parts.append(tag("circle", tag("title", title), **place, class_=name))
    return parts


def lollipops(rows: Sequence[Mapping[str, Any]], label: str) -> Markup:
    """One row a set: name and figure over a bar from zero, with a tick at the most that the set could reach.

    rows: `label`, `figure`, `kind`, `value`, `ceiling` (or None).
    """
    top = max([v for r in rows for v in (r["value"], r["ceiling"]) if v and math.isfinite(v)] + [1e-12])
    parts = []
    for number, row in enumerate(rows):
        y = 32 * number
        length = max(0.0, row["value"]) / top * WIDTH if math.isfinite(row["value"]) else 0.0
        parts += [
            text(0, y + 12, row["label"], f"name {row['kind']}"),
            text(WIDTH, y + 12, row["figure"], "figure", "end"),
            tag("rect", x="0", y=num(y + 18), width=num(WIDTH), height="5", class_="track"),
            tag("rect", x="0", y=num(y + 18), width=num(length), height="5", class_=f"fill {row['kind']}"),
        ]
        if row["ceiling"]:
            x = num(row["ceiling"] / top * (WIDTH - 1))
            parts.append(tag("line", x1=x, x2=x, y1=num(y + 15), y2=num(y + 26), class_="ceiling"))
    return svg(32 * len(rows), label, *parts, class_="rows")


def histogram(counts: Sequence[int], edges: Sequence[float], label: str, log: bool) -> Markup:
    """Bars of equal width (on a log scale when `log`; edges are then powers of ten); hover gives the counts."""
    width, height = 300.0, 110.0
    most, step = max([*counts, 1]), width / max(1, len(counts))
    parts = []
    for i, count in enumerate(counts):
        tall = count / most * (height - 8)
        title = tag("title", f"{scale(edges[i], log)} to {scale(edges[i + 1], log)}: {count:,} rows")
        parts.append(
            tag(
                "rect",
                title,
                x=num(i * step + 0.5),
                y=num(height - tall),
                width=num(step - 1),
                height=num(tall),
                class_="column",
            )
        )
    parts.append(tag("line", x1="0", x2=num(width), y1=num(height), y2=num(height), class_="base"))
    low, high = edges[0], edges[-1]
    places = [float(k) for k in range(math.ceil(low), math.floor(high) + 1)] if log else ticks(low, high, 4)
    for value in places[:: max(1, math.ceil(len(places) / 6))]:
        x = (value - low) / (high - low or 1.0) * width
        anchor = "start" if x < 14 else "end" if x > width - 14 else "middle"
        parts.append(text(x, height + 15, scale(value, log), "tick", anchor))
    return svg(height + 20, label, *parts, width=width)


def scale(value: float, log: bool) -> str:
    """A position on an axis: 10⁻³ for -3 on a log scale, else the number itself."""
    if log and float(value).is_integer():
        return "10" + str(int(value)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"{10**value if log else value:.3g}".replace("-", "−")


def interval_mark(mean: float, low: float | None, high: float | None, limits: tuple[float, float]) -> Markup:
    """One interval on a common scale, a line high; its figures stand beside it, so it has no name of its own."""
    width, least, most = 140.0, *limits

    def at(value: float) -> str:
        return num((value - least) / (most - least) * width)

    parts = [tag("line", x1=at(0), x2=at(0), y1="0", y2="16", class_="zero")]
    if low is not None and high is not None and math.isfinite(low) and math.isfinite(high):
        parts.append(tag("line", x1=at(low), x2=at(high), y1="8", y2="8", class_="bar candidate"))
    parts.append(mark("candidate", (mean - least) / (most - least) * width, 8))
    return tag("svg", *parts, viewBox=f"0 0 {num(width)} 16", aria_hidden="true", class_="mark")
