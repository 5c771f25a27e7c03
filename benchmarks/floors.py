"""What a way takes at least, and where its time goes."""

from __future__ import annotations

from collections.abc import Callable
from math import inf

from torch.profiler import ProfilerActivity, profile

from twin_merging.dynamic.model import TwinMergedModel
from twin_merging.dynamic.plan import costs, static_cost
from twin_merging.dynamic.speeds import Speeds

OPERATIONS = Speeds(product=1, thin=1, batched=1, mixed=1, bytes=inf)
BYTES = Speeds(product=inf, thin=inf, batched=inf, mixed=inf, bytes=1, made=0.5)


def floors(twin: TwinMergedModel | None) -> dict[str, float | None]:
    """The operations and the bytes of the last batch's products under the plans that were taken, over the static model's.

    A machine that only multiplied would take the first ratio, one that only moved numbers the second. What both models do
    besides products with weights, attention above all, counts for neither, and neither does routing in a pass of its own.
    """
    found: dict[str, float | None] = {"floor_operations": None, "floor_bytes": None}
    cases = [] if twin is None else [(case, choice.plan) for case, choice in twin.planner.choices.values()]
    for name, unit in (("floor_operations", OPERATIONS), ("floor_bytes", BYTES)) if cases else ():
        ours = sum(costs(case, unit)[plan] for case, plan in cases)
        found[name] = round(ours / sum(static_cost(case, unit) for case, _ in cases), 3)
    return found


def where_time_goes(run: Callable[[], object], rows: int = 8) -> str:
    """The operations that take most of the time of one run, with their calls."""
    with profile(activities=[ProfilerActivity.CPU]) as found:
        run()
    averages = sorted(found.key_averages(), key=lambda each: -each.self_cpu_time_total)
    whole = sum(each.self_cpu_time_total for each in averages)
    return "\n".join(
        f"  {100 * each.self_cpu_time_total / whole:5.1f} % {each.count:>7} x {each.key}" for each in averages[:rows]
    )
