"""The loop that byte-pair encoding and sentencepiece share: neighbours are joined, the best pair first."""

from __future__ import annotations

from collections.abc import Callable
from heapq import heapify, heappop, heappush


def merge(parts: list[bytes], rank: Callable[[bytes, bytes], float | None]) -> list[bytes]:
    """Joins pairs of neighbours, the lowest rank first and the leftmost of equals, until no pair has a rank.

    parts is used up. The heap holds (rank, place of the left one, both joined); what a join made outdated stays in it
    and is known by its text: parts only ever grow.
    """
    n = len(parts)
    after, before = list(range(1, n + 1)), list(range(-1, n - 1))
    heap = []
    for i in range(n - 1):
        found = rank(parts[i], parts[i + 1])
        if found is not None:
            heap.append((found, i, parts[i] + parts[i + 1]))
    heapify(heap)
    while heap:
        _, left, joined = heappop(heap)
        right = after[left]
        if right == n or not parts[left] or parts[left] + parts[right] != joined:
            continue
        parts[left], parts[right] = joined, b""
        right = after[left] = after[right]
        if right < n:
            before[right] = left
            found = rank(joined, parts[right])
            if found is not None:
                heappush(heap, (found, left, joined + parts[right]))
        if left > 0:
            other = before[left]
            found = rank(parts[other], joined)
            if found is not None:
                heappush(heap, (found, other, parts[other] + joined))
    return [part for part in parts if part]
