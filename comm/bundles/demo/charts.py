"""Charts as SVG (bars, a line, a histogram) and tables as Markdown: pure functions from values to text."""

import math
from collections.abc import Sequence
from xml.sax.saxutils import escape

from .wording import escaped, number, shortened

WIDTH, HEIGHT = 640, 360
LEFT, RIGHT, TOP, BOTTOM = 72, 16, 44, 64
INK, MUTED, GRID, FILL = "#1f2937", "#6b7280", "#e5e7eb", "#2f6fed"

Points = Sequence[tuple[str, float]]


def bar_chart(title: str, points: Points) -> str:
    """Draw labelled bars, negative ones downwards; at most 24 points are drawn."""
    points = points[:24]
    low, high = _bounds([value for _, value in points])
    step = (WIDTH - LEFT - RIGHT) / max(1, len(points))
    shapes = []
    for place, (label, value) in enumerate(points):
        x, top = LEFT + place * step, _y(max(value, 0.0), low, high)
        height = max(abs(_y(value, low, high) - _y(0.0, low, high)), 0.5)
        shapes.append(
            f'<rect x="{x + step * 0.12:.1f}" y="{top:.1f}" width="{step * 0.76:.1f}" height="{height:.1f}"'
            f' fill="{FILL}"><title>{_text(label)}: {_text(number(value))}</title></rect>'
        )
        shapes.append(_label(x + step / 2, label, slanted=len(points) > 6))
    return _drawing(title, low, high, shapes)


def line_chart(title: str, points: Points) -> str:
    """Draw a line through the points, evenly spaced; at most 200 points are drawn."""
    points = points[:200]
    low, high = _bounds([value for _, value in points])
    step = (WIDTH - LEFT - RIGHT) / max(1, len(points) - 1)
    places = [(LEFT + i * step, _y(value, low, high)) for i, (_, value) in enumerate(points)]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    shapes = [f'<polyline points="{path}" fill="none" stroke="{FILL}" stroke-width="2"/>']
    if len(points) <= 60:
        for (x, y), (label, value) in zip(places, points, strict=True):
            tip = f"{_text(label)}: {_text(number(value))}"
            shapes.append(
                f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{FILL}"><title>{tip}</title></circle>'
            )
    for place in sorted({0, len(points) // 2, len(points) - 1} if points else ()):
        anchor = "start" if place == 0 else "end" if place == len(points) - 1 else "middle"
        shapes.append(_label(places[place][0], points[place][0], anchor=anchor))
    return _drawing(title, low, high, shapes)


def histogram(title: str, values: Sequence[float]) -> str:
    """Draw how values are distributed, in 5 to 20 intervals of one width."""
    return bar_chart(title, intervals(values))


def intervals(values: Sequence[float]) -> list[tuple[str, float]]:
    """Count values per interval; one interval where all are the same."""
    if not values:
        return []
    low, high = min(values), max(values)
    count = max(5, min(20, math.ceil(math.sqrt(len(values)))))
    width = high / count - low / count
    if not width or low + width == low:
        return [(number(low), float(len(values)))]
    counts = [0] * count
    for value in values:
        counts[min(count - 1, int((value - low) / width))] += 1
    return [
        (f"{number(low + i * width)}–{number(low + (i + 1) * width)}", float(n)) for i, n in enumerate(counts)
    ]


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]], numeric: Sequence[int] = ()) -> str:
    """Write a Markdown table; cells are escaped, the columns of these places are aligned to the right."""
    rules = [" ---: " if place in numeric else " --- " for place in range(len(head))]
    lines = [_row(head), "|" + "|".join(rules) + "|", *[_row(row) for row in rows]]
    return "\n".join(lines) + "\n"


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(escaped(cell) or " " for cell in cells) + " |"


def _bounds(values: Sequence[float]) -> tuple[float, float]:
    """The ends of the axis; zero is always on it, since bars start there."""
    if not values:
        return 0.0, 1.0
    low, high = min(values), max(values)
    low, high = min(low, 0.0), max(high, 0.0)
    return (low, high) if high - low > 0 and (high - low) / 4 > 0 else (low, low + 1.0)


def _y(value: float, low: float, high: float) -> float:
    return TOP + (HEIGHT - TOP - BOTTOM) * (1 - (value - low) / (high - low))


def _label(x: float, text: str, *, slanted: bool = False, anchor: str = "middle") -> str:
    y = HEIGHT - BOTTOM + 16
    if slanted:
        turned = f'transform="rotate(-35 {x:.1f} {y})" text-anchor="end"'
        return _caption(f'x="{x:.1f}" y="{y}" {turned}', shortened(text, 14))
    return _caption(f'x="{x:.1f}" y="{y}" text-anchor="{anchor}"', shortened(text, 16))


def _caption(attributes: str, text: str) -> str:
    return f'<text {attributes} font-size="11" fill="{MUTED}">{_text(text)}</text>'


def _drawing(title: str, low: float, high: float, shapes: list[str]) -> str:
    """Put axis and title around shapes, one element per line."""
    name = _text(shortened(title, 80))
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}"'
        f' height="{HEIGHT}" role="img" font-family="system-ui, sans-serif">',
        f"<title>{name}</title>",
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
        f'<text x="{LEFT}" y="26" font-size="15" font-weight="600" fill="{INK}">{name}</text>',
    ]
    for part in range(5):
        value = low + (high - low) * part / 4
        y = _y(value, low, high)
        lines.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="{GRID}"/>')
        lines.append(_caption(f'x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end"', number(value)))
    return "\n".join([*lines, *shapes, "</svg>"]) + "\n"


def _text(value: str) -> str:
    return escape(shortened(value, 120), {'"': "&quot;"})
