"""A table as Markdown, CSV, LaTeX, and on a terminal of any width."""

from __future__ import annotations

import csv
import io
import re
from typing import TYPE_CHECKING

from twin_merging.reporting.tables import Column, Table

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table as RichTable

HEAD_WIDTH = 13  # little more than the cell "81.7 / 99.2"
LABEL_WIDTH = 30
LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "[": "{[}", "]": "{]}", "±": r"$\pm$", "×": r"$\times$", "–": "--", "λ": r"$\lambda$", "τ": r"$\tau$", "θ": r"$\theta$",
    "α": r"$\alpha$", "≤": r"$\leq$", "≥": r"$\geq$", "·": r"$\cdot$", "→": r"$\rightarrow$", "\n": " ",
}  # fmt: skip


def to_markdown(table: Table) -> str:
    """A GitHub-flavoured table with its title above and its notes below."""
    heads = [_markdown(f"{column.head} ({column.unit})" if column.unit else column.head) for column in table.columns]
    rules = ["---:" if _right(column) else "---" for column in table.columns]
    rows = [[_markdown(cell.text) for cell in row] for row in table.rows]
    lines = ["| " + " | ".join(row) + " |" for row in (heads, rules, *rows)]
    warning = [f"**{_markdown(table.warning)}**", ""] if table.warning else []
    notes = [f"- {_markdown(note)}" for note in table.notes]
    return "\n".join([f"### {_markdown(table.title)}", "", *warning, *lines, "", *notes, ""])


def to_csv(table: Table) -> str:
    """The values behind the cells, unrounded, one column a value; what is missing is empty."""
    text = io.StringIO()
    names = [name for column in table.columns for name in column.fields]
    writer = csv.DictWriter(text, [*names, *(["warning"] if table.warning else [])], lineterminator="\n")
    writer.writeheader()
    writer.writerows(table.records())
    return text.getvalue()


def to_latex(table: Table) -> str:
    r"""A ``table`` environment for ``\usepackage{booktabs}``; everything else is plain LaTeX."""
    alignment = "".join("r" if _right(column) else "l" for column in table.columns)
    heads = " & ".join(_latex_head(column) for column in table.columns)
    rows = [" & ".join(_latex(cell.text) for cell in row) + r" \\" for row in table.rows]
    warning = [rf"\textbf{{{_latex(table.warning)}.}}"] if table.warning else []
    notes = "\n".join([*warning, *(_latex(note) for note in table.notes)])
    return "\n".join(
        [
            r"% \usepackage{booktabs}", r"\begin{table}", r"\centering", r"\small", rf"\caption{{{_latex(table.title)}}}",
            rf"\begin{{tabular}}{{{alignment}}}", r"\toprule", heads + r" \\", r"\midrule", *rows, r"\bottomrule",
            r"\end{tabular}", "", r"\smallskip", rf"\parbox{{\linewidth}}{{\footnotesize {notes}}}", r"\end{table}", "",
        ]
    )  # fmt: skip


def print_table(table: Table, console: Console) -> None:
    """Print the whole table if the console is wide enough, else summary columns and then tasks, as many as fit at a time."""
    from rich.text import Text

    console.print(Text(table.title, style="bold"))
    if table.warning:
        console.print(Text(table.warning, style="bold yellow"))
    for part in _layout(table, console):
        console.print(part)
    for note in table.notes:
        console.print(Text(note, style="dim"))


def _layout(table: Table, console: Console) -> list[RichTable]:
    everything = list(range(len(table.columns)))
    if _fits(table, everything, console):
        return [_rich(table, everything)]
    keys = [index for index in everything if table.columns[index].part == "key"]
    parts: list[list[int]] = []
    for kind in ("summary", "task"):
        chunk: list[int] = []
        for index in (index for index in everything if table.columns[index].part == kind):
            if chunk and not _fits(table, [*keys, *chunk, index], console):
                parts.append(sorted([*keys, *chunk]))
                chunk = []
            chunk.append(index)
        if chunk:
            parts.append(sorted([*keys, *chunk]))
    return [_rich(table, part) for part in parts or [keys]]


def _fits(table: Table, indices: list[int], console: Console) -> bool:
    boundless = console.options.update(width=10_000)
    return console.measure(_rich(table, indices), options=boundless).maximum <= console.width


def _rich(table: Table, indices: list[int]) -> RichTable:
    """The chosen columns as a rich table. Texts are not markup: labels may hold square brackets."""
    from rich import box
    from rich.table import Table as RichTable
    from rich.text import Text

    shown = RichTable(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    for index in indices:
        column = table.columns[index]
        head = Text("\n".join([wrap_name(column.head), *([wrap_name(column.unit)] if column.unit else [])]))
        shown.add_column(
            head,
            justify="right" if _right(column) else "left",
            vertical="top",
            max_width=LABEL_WIDTH if column.part == "key" else None,
            no_wrap=column.part != "key",
        )
    for row in table.rows:
        shown.add_row(*(Text(_stacked(row[index].text)) for index in indices))
    return shown


def _stacked(text: str) -> str:
    """Put a normalized score below its raw score where ± makes the pair too wide for one line."""
    return text.replace(" / ", " /\n") if "±" in text else text


def wrap_name(name: str, width: int = HEAD_WIDTH) -> str:
    """Break a name after ``_``, ``-``, ``/`` or a space so that no line is longer than ``width``; cut a longer word with …"""
    lines = [""]
    for piece in re.findall(r"[^_\-/ ]*[_\-/ ]?", name):
        if lines[-1] and len(lines[-1] + piece.rstrip()) > width:
            lines.append("")
        lines[-1] += piece if len(piece.rstrip()) <= width else piece[: width - 1] + "…"
    return "\n".join(line.rstrip() for line in lines)


def _right(column: Column) -> bool:
    return column.part != "key"


def _markdown(text: str) -> str:
    return re.sub(r"([\\|*_`\[\]<>])", r"\\\1", text).replace("\n", " ")


def _latex(text: str) -> str:
    return "".join(LATEX.get(character, character) for character in text)


def _latex_head(column: Column) -> str:
    if not column.unit:
        return _latex(column.head)
    return rf"\shortstack{{{_latex(column.head)}\\{{\footnotesize {_latex(column.unit)}}}}}"
