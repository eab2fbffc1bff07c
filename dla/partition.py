"""Cutting the DLA's layers into loadables: maximal connected groups that can each run as one piece."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def partition(
    order: Sequence[str], reads: Mapping[str, Sequence[str]], joins: Mapping[str, Sequence[str]]
) -> tuple[tuple[str, ...], ...]:
    """Group layers along their joins, so that no group has to wait for what itself waits for that group.

    `order` is topological; `reads` holds the layers that each layer reads from; `joins` has an entry for each of the
    DLA's layers: those it reads from that may share its loadable. Groups come in the order of their first layers.
    """
    groups = _Groups(order, reads)
    for layer in order:
        for producer in joins.get(layer, ()):
            groups.join(producer, layer)
    loadables: dict[int, list[str]] = {}
    for layer in order:
        if layer in joins:
            loadables.setdefault(groups.of(layer), []).append(layer)
    return tuple(map(tuple, loadables.values()))


class _Groups:
    """Layers contracted to groups: a graph that stays free of cycles."""

    def __init__(self, order: Sequence[str], reads: Mapping[str, Sequence[str]]) -> None:
        self._index = {layer: index for index, layer in enumerate(order)}
        self._root = list(range(len(order)))
        self._reads = [{self._index[producer] for producer in reads[layer]} for layer in order]

    def of(self, layer: str) -> int:
        """Return the group of a layer."""
        return self._find(self._index[layer])

    def join(self, producer: str, layer: str) -> None:
        """Merge two groups, the second reading from the first, unless that closes a cycle."""
        first, second = self.of(producer), self.of(layer)
        if first == second or self._reached(first, self._before(second) - {first}):
            return
        self._root[second] = first
        self._reads[first] = (self._before(first) | self._before(second)) - {first, second}

    def _before(self, group: int) -> set[int]:
        return {self._find(other) for other in self._reads[group]} - {group}

    def _reached(self, target: int, groups: set[int]) -> bool:
        """Return whether one of the groups reads, directly or not, from the target."""
        seen, waiting = set(groups), list(groups)
        while waiting:
            for group in self._before(waiting.pop()) - seen:
                if group == target:
                    return True
                seen.add(group)
                waiting.append(group)
        return False

    def _find(self, group: int) -> int:
        while self._root[group] != group:
            self._root[group] = self._root[self._root[group]]
            group = self._root[group]
        return group
