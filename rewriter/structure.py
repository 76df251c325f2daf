"""How a program's arguments or results nest: a tree that survives JSON, and knows nothing of torch.

A tree is one of ``{"leaf": None}`` (an array), ``{"constant": 3}`` (a plain value fixed when the model was read), ``{"ignored": None}`` (an
array that was declared constant, in a container that is still passed),
``{"tuple": [..]}``, ``{"list": [..]}``, ``{"dict": [[key, tree], ..]}``, ``{"record": name, "fields": [[..]]}`` (a named
tuple or a dict-like class) and ``{"object": name, "items": [..]}`` (any other container). A Structure made in this
process also remembers how to build records and objects of the original class; one that was read from JSON builds
named tuples, dicts and lists instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

from rewriter.errors import InvalidInput

Tree = dict[str, Any]
Builder = Callable[[list[Any]], Any]

LEAF: Tree = {"leaf": None}


@dataclass(frozen=True)
class Structure:
    """One tree; for arguments, its top is ``{"arguments": [[name, tree], ..], "positional": n}``."""

    tree: Tree
    builders: Mapping[str, Builder] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def of_inputs(cls, names: Sequence[str]) -> Structure:
        """The arguments of a program that takes one array per name, by place or by name."""
        return cls({"arguments": [[name, LEAF] for name in names], "positional": len(names)})

    @classmethod
    def of_outputs(cls, count: int) -> Structure:
        """Several results as a tuple, a single one as itself."""
        return cls(LEAF if count == 1 else {"tuple": [LEAF] * count})

    def without(self, dropped: Set[int]) -> Structure:
        """The arguments without some of their arrays, by place; one that is an argument by itself is no argument any more."""
        declared: list[Any] = self.tree["arguments"]
        places, kept, positional = iter(range(self.leaves)), [], self.tree["positional"]
        for index, (name, tree) in enumerate(declared):
            reduced = _without(tree, dropped, places)
            if "leaf" in tree and "ignored" in reduced:
                positional -= index < self.tree["positional"]
            else:
                kept.append([name, reduced])
        return Structure({"arguments": kept, "positional": positional}, self.builders)

    def to_json(self) -> Tree:
        """A tree of dicts, lists, strings, numbers and None."""
        return self.tree

    @classmethod
    def from_json(cls, tree: Tree) -> Structure:
        """The inverse of `to_json`, without the original classes."""
        return cls(tree)

    @property
    def leaves(self) -> int:
        """How many arrays it holds."""
        return _leaves(self.tree)

    def flatten(self, args: Sequence[Any], kwargs: Mapping[str, Any] | None = None) -> list[Any]:
        """The arrays in graph-input order; InvalidInput where the arguments nest otherwise than the model's did."""
        declared: list[Any] = self.tree["arguments"]
        if len(args) > self.tree["positional"]:
            raise InvalidInput(f"the model takes {self.tree['positional']} positional inputs, not {len(args)}")
        given = dict(zip((name for name, _ in declared), args, strict=False))
        for name, value in (kwargs or {}).items():
            if name in given:
                raise InvalidInput(f"input '{name}' is given twice")
            given[name] = value
        unknown = next((name for name in given if all(name != each for each, _ in declared)), None)
        if unknown is not None:
            known = ", ".join(f"'{name}'" for name, _ in declared)
            raise InvalidInput(f"the model has no input '{unknown}'; it has {known}")
        leaves: list[Any] = []
        for name, tree in declared:
            if name not in given and _leaves(tree):
                raise InvalidInput(f"input '{name}' is missing")
            if name in given:
                _flatten(tree, given[name], f"input '{name}'", leaves)
        return leaves

    def unflatten(self, leaves: Sequence[Any]) -> Any:
        """The user's structure around the arrays, which come in graph-output order."""
        if len(leaves) != self.leaves:
            raise InvalidInput(f"{len(leaves)} results for a structure of {self.leaves}")
        return self._build(self.tree, iter(leaves))

    def _build(self, tree: Tree, leaves: Any) -> Any:
        if "leaf" in tree:
            return next(leaves)
        if "constant" in tree:
            return tree["constant"]
        if "tuple" in tree:
            return tuple(self._build(each, leaves) for each in tree["tuple"])
        if "list" in tree:
            return [self._build(each, leaves) for each in tree["list"]]
        if "dict" in tree:
            return {key: self._build(each, leaves) for key, each in tree["dict"]}
        if "record" in tree:
            names, values = [key for key, _ in tree["fields"]], [self._build(t, leaves) for _, t in tree["fields"]]
            builder = self.builders.get(tree["record"])
            return builder(values) if builder is not None else dict(zip(names, values, strict=True))
        items = [self._build(each, leaves) for each in tree["items"]]
        builder = self.builders.get(tree["object"])
        return builder(items) if builder is not None else items


def _children(tree: Tree) -> list[Tree]:
    for kind in ("tuple", "list", "items"):
        if kind in tree:
            return list(tree[kind])
    for kind in ("dict", "fields", "arguments"):
        if kind in tree:
            return [each for _, each in tree[kind]]
    return []


def _leaves(tree: Tree) -> int:
    return 1 if "leaf" in tree else sum(_leaves(each) for each in _children(tree))


def _without(tree: Tree, dropped: Set[int], places: Iterator[int]) -> Tree:
    """Inside a container the place stays, and what is passed there is not looked at."""
    if "leaf" in tree:
        return {"ignored": None} if next(places) in dropped else tree
    copy = dict(tree)
    for kind in ("tuple", "list", "items"):
        if kind in tree:
            copy[kind] = [_without(each, dropped, places) for each in tree[kind]]
    for kind in ("dict", "fields"):
        if kind in tree:
            copy[kind] = [[key, _without(each, dropped, places)] for key, each in tree[kind]]
    return copy


def _flatten(tree: Tree, value: Any, where: str, leaves: list[Any]) -> None:
    if "ignored" in tree:
        return
    if "leaf" in tree:
        if value is None or isinstance(value, (str, dict)):
            raise InvalidInput(f"{where} is {type(value).__name__}, not an array")
        leaves.append(value)
    elif "constant" in tree:
        fixed = tree["constant"]
        if type(value) is not type(fixed) or value != fixed:
            raise InvalidInput(f"{where} was {fixed!r} when the model was read and cannot be {value!r} now: read it again")
    elif "dict" in tree or "fields" in tree:
        pairs = tree.get("dict") or tree.get("fields") or []
        for key, each in pairs:
            _flatten(each, _field(value, key, where), f"{where}[{key!r}]", leaves)
    else:
        parts = list(value) if isinstance(value, (tuple, list)) else None
        children = _children(tree)
        if parts is None or len(parts) != len(children):
            raise InvalidInput(f"{where} must be a sequence of {len(children)}, not {type(value).__name__}")
        for index, (each, part) in enumerate(zip(children, parts, strict=True)):
            _flatten(each, part, f"{where}[{index}]", leaves)


def _field(value: Any, key: Any, where: str) -> Any:
    if isinstance(value, Mapping) and key in value:
        return value[key]
    if isinstance(key, str) and hasattr(value, key):
        return getattr(value, key)
    raise InvalidInput(f"{where} has no {key!r}")
