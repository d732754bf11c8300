#!/usr/bin/env python3
"""Draws what a program prints as a picture of a terminal, in SVG: reads standard input, writes standard output.

    cargo run --release --example fragile | examples/pictures/terminal.py fragile > examples/pictures/fragile.svg
"""

import re
import sys
from xml.sax.saxutils import escape

FONT_SIZE = 13
ADVANCE = 7.83  # the width of a character, in a font of that size
LEADING = 19
MARGIN = 18
BAR = 34  # of the window

# What is drawn in a colour of its own: the first of these that matches.
COLOURS = re.compile(
    r"(?P<bad>was killed by \S+|exited with code \d+|panicked|ran past its time limit)"
    r"|(?P<name>`[^`]*`)"
    r"|(?P<dim>\(input \d+\)|process \d+)"
)


def coloured(text):
    parts, end = [], 0
    for match in COLOURS.finditer(text):
        parts.append(escape(text[end : match.start()]))
        parts.append(f'<tspan class="{match.lastgroup}">{escape(match[0])}</tspan>')
        end = match.end()
    return "".join(parts) + escape(text[end:])


def main():
    title = f"cargo run --release --example {sys.argv[1]}"
    lines = [f"$ {title}"] + sys.stdin.read().splitlines()
    width = round(max(map(len, lines)) * ADVANCE + 2 * MARGIN)
    height = BAR + len(lines) * LEADING + MARGIN
    print(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img">'
    )
    print(f"<title>What `{title}` prints</title>")
    print(
        f"""<style>
text {{ font: {FONT_SIZE}px ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; fill: #d7dae0; white-space: pre }}
.bad {{ fill: #ff7b72 }} .name {{ fill: #79c0ff }} .dim {{ fill: #8b949e }} .command {{ fill: #7ee787 }}
</style>
<rect width="{width}" height="{height}" rx="9" fill="#161b22"/>"""
    )
    for at, colour in enumerate(["#ff5f57", "#febc2e", "#28c840"]):
        print(f'<circle cx="{MARGIN + 4 + 20 * at}" cy="18" r="6" fill="{colour}"/>')
    for number, line in enumerate(lines):
        y = BAR + (number + 1) * LEADING - 2
        body = f'<tspan class="command">{escape(line)}</tspan>' if number == 0 else coloured(line)
        # The length keeps the columns straight, whatever font there is.
        length = f' textLength="{len(line) * ADVANCE:.1f}"' if line else ""
        print(f'<text x="{MARGIN}" y="{y}" xml:space="preserve"{length}>{body}</text>')
    print("</svg>")


if __name__ == "__main__":
    main()
