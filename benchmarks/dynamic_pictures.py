"""Pictures of benchmarks/dynamic.py's rows."""

from __future__ import annotations

from pathlib import Path

PLANS = ("auto", "factored", "dense")
TITLES = {"stock": "products by torch", "auto": "products by the faster library, of the static model too"}
TICKS = (1, 1.25, 1.5, 2, 3, 5, 8)
SIDES = (("encoder", "rank of v_t"), ("experts", "experts"), ("tokens", "tokens of an example"))


def draw(rows: list[dict], file: Path) -> None:
    """Time over the static model's by rank, experts and tokens, for each plan; a picture for each kind of kernels."""
    from matplotlib import pyplot

    sides = [side for side in SIDES if any(row["case"].startswith(side[0]) for row in rows)]
    for kernels in TITLES if sides else ():
        figure, axes = pyplot.subplots(1, len(sides), figsize=(4.2 * len(sides), 4), sharey=True, squeeze=False)
        for axis, (case, label) in zip(axes[0], sides, strict=True):
            chosen = [row for row in rows if row["case"].startswith(case) and row["kernels"] == kernels]
            for plan, style in zip(PLANS, ("-", "--", ":"), strict=True):
                points = [(_place(row, case), row["ratio_to_static"]) for row in chosen if row["plan"] == plan]
                axis.plot(*zip(*points, strict=True), marker="o", linestyle=style, label=plan)
            axis.axhline(1, color="grey", linewidth=0.8)
            axis.set(xlabel=label, yscale="log")
            axis.set_yticks(TICKS, [f"{tick:g}" for tick in TICKS])
            axis.minorticks_off()
        axes[0][0].set_ylabel("time over the static model's")
        axes[0][0].legend()
        figure.suptitle(TITLES[kernels])
        figure.tight_layout()
        figure.savefig(file.with_name(f"{file.stem}_{kernels}.png"), dpi=150)
        pyplot.close(figure)


def _place(row: dict, case: str) -> int:
    return row["rank"] if case == "encoder" else int(row["case"].split()[1])
