"""Which nodes become one kernel: a computation and the element-wise nodes that can follow it while it is in registers.

A group has one result. Its inner values are read by its own nodes alone, so the groups depend on each other as their
results do, and no group can wait for itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from backends.tvm.graph import Graph, Node
from backends.tvm.pointwise import takes

MOST_STEPS = 32
MOST_OPERANDS = 10


@dataclass(frozen=True)
class Group:
    """``anchor`` is None for a group of element-wise nodes alone; ``chain`` is in an order in which it can run."""

    anchor: Node | None
    chain: tuple[Node, ...]

    @property
    def nodes(self) -> tuple[Node, ...]:
        """All nodes, in order."""
        return self.chain if self.anchor is None else (self.anchor, *self.chain)

    @property
    def result(self) -> str:
        """The value that leaves the group."""
        return self.nodes[-1].outputs[0]

    def external(self, graph: Graph) -> list[str]:
        """What the chain reads and the group does not make: constants too."""
        made = {node.outputs[0] for node in self.nodes}
        return list(dict.fromkeys(n for node in self.chain for n in node.inputs if n and n not in made))


def is_pointwise(graph: Graph, node: Node) -> bool:
    """Whether the node works on each element of its (broadcast) inputs."""
    if len(node.outputs) != 1:
        return False
    kinds = [graph.dtypes[name] for name in (*node.inputs, *node.outputs) if name]
    return takes(node.op, kinds, node.attributes)


def groups(graph: Graph, follows: frozenset[str]) -> list[Group]:
    """The groups of ``graph`` in an order in which they can run. ``follows``: operators that a chain may follow."""
    return list(_ordered(graph, _Fusion(graph, follows).run()))


class _Fusion:
    def __init__(self, graph: Graph, follows: frozenset[str]) -> None:
        self.graph = graph
        self.follows = follows
        self.users = graph.users()
        self.maker = graph.makers()
        self.place = {id(node): i for i, node in enumerate(graph.nodes)}
        self.pointwise = {id(node) for node in graph.nodes if is_pointwise(graph, node)}
        self.before = self._ancestors()
        self.grouped: set[int] = set()

    def run(self) -> list[Group]:
        made = []
        for node in self.graph.nodes:  # what computes comes first, so that chains go to it and not to each other
            if id(node) not in self.pointwise:
                grown = self._grown([node]) if node.op in self.follows and len(node.outputs) == 1 else []
                chain = [inner for inner in grown if inner is not node]  # which may have come before it
                self.grouped.update(map(id, (node, *chain)))
                made.append(Group(node, tuple(chain)))
        for node in self.graph.nodes:
            if id(node) not in self.grouped:
                chain = self._grown([node])
                self.grouped.update(map(id, chain))
                made.append(Group(None, tuple(chain)))
        return made

    def _grown(self, start: list[Node]) -> list[Node]:
        """The longest chain from ``start`` that leaves one value."""
        chain, best = list(start), list(start)
        shape = self.graph.shapes[start[-1].outputs[0]]
        while len(chain) < MOST_STEPS:
            added = self._next(chain, shape)
            if not added:
                break
            chain = sorted({id(n): n for n in (*chain, *added)}.values(), key=lambda n: self.place[id(n)])
            if self._operands(chain) > MOST_OPERANDS:
                break
            if self._leaving(chain) == [chain[-1].outputs[0]]:
                best = list(chain)
        return best

    def _next(self, chain: list[Node], shape: tuple[int, ...]) -> list[Node]:
        """A node that reads the chain and can join it, with what it needs to come along."""
        inside = {id(node) for node in chain}
        readers = {id(u): u for node in chain for u in self.users.get(node.outputs[0], ())}
        for reader in sorted(readers.values(), key=lambda n: self.place[id(n)]):
            if id(reader) not in inside and self._joins(reader, shape):
                company = self._company(reader, inside, shape)
                if company is not None:
                    return company
        return []

    def _joins(self, node: Node, shape: tuple[int, ...]) -> bool:
        fits = self.graph.shapes[node.outputs[0]] == shape
        return id(node) in self.pointwise and id(node) not in self.grouped and fits

    def _company(self, node: Node, inside: set[int], shape: tuple[int, ...]) -> list[Node] | None:
        """``node`` and the element-wise nodes that only it waits for; None if it waits for the chain by another way."""
        found = [node]
        mask = sum(1 << self.place[i] for i in inside)
        for name in node.inputs:
            maker = self.maker.get(name)
            if maker is None or id(maker) in inside:
                continue
            alone = len(self.users[name]) == 1 and name not in self.graph.outputs
            if alone and self._joins(maker, shape):
                more = self._company(maker, inside, shape)
                if more is None:
                    return None
                found += more
            elif self.before[id(maker)] & mask:
                return None
        return found

    def _leaving(self, chain: list[Node]) -> list[str]:
        inside = {id(node) for node in chain}
        return [
            name for node in chain for name in node.outputs
            if name in self.graph.outputs or any(id(user) not in inside for user in self.users.get(name, ()))
        ]  # fmt: skip

    def _operands(self, chain: list[Node]) -> int:
        made = {name for node in chain for name in node.outputs}
        read = {name for node in chain for name in node.inputs if name and name not in made}
        return sum(name not in self.graph.constants or self.graph.constants[name].size > 1 for name in read)

    def _ancestors(self) -> dict[int, int]:
        """For each node the nodes that it depends on, itself included, as bits."""
        found: dict[int, int] = {}
        for node in self.graph.nodes:
            bits = 1 << self.place[id(node)]
            for name in node.inputs:
                if name in self.maker:
                    bits |= found[id(self.maker[name])]
            found[id(node)] = bits
        return found


def _ordered(graph: Graph, found: list[Group]) -> Iterator[Group]:
    """The groups so that each comes after those whose results it reads; else in the order of their last nodes."""
    place = {id(node): i for i, node in enumerate(graph.nodes)}
    maker = {name: group for group in found for node in group.nodes for name in node.outputs}
    done: set[int] = set()
    for root in sorted(found, key=lambda g: place[id(g.nodes[-1])]):
        waiting = [(root, False)]
        while waiting:
            group, ready = waiting.pop()
            if id(group) in done:
                continue
            if ready:
                done.add(id(group))
                yield group
                continue
            waiting.append((group, True))
            needs = [maker[n] for node in group.nodes for n in node.inputs if n in maker and maker[n] is not group]
            waiting += [(need, False) for need in reversed(needs) if id(need) not in done]
