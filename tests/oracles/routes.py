"""What wrong routes cost, row by row, for accuracy."""

from __future__ import annotations


def lost_points(labels: list[int], right: list[bool], expert: list[int], oracle: list[int], routed: list[int]) -> dict:
    """Points of accuracy that rows sent to another task lose to its head, and to the weights it brought.

    A row sent right loses nothing. Of one sent wrong, the head costs its point where the own head would have been right and
    the other is not (and gives one back in the opposite case); the weights, where the own expert would have been right and the own
    head under them is not.
    """
    heads = weights = 0
    for label, is_right, by_expert, by_oracle, by_routed in zip(labels, right, expert, oracle, routed, strict=True):
        if is_right:
            assert by_oracle == by_routed
            continue
        heads += int(by_oracle == label) - int(by_routed == label)
        weights += int(by_expert == label) - int(by_oracle == label)
    return {"heads": heads / len(labels), "weights": weights / len(labels)}
