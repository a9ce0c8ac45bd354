"""A search tree over keys of bits, whose nodes are prefixes. Pure, and it knows nothing of rules.

The tree is a function of the keys it holds: whatever was added and removed before, the same keys stand in the same
nodes, so that a restarted program, or another one, arrives at the same tree. And one key more or less changes a
bounded number of nodes: those on its way, and what one bucket splits into or is merged from.

Nodes stand at fixed prefix lengths, the levels. A node with at most `Shape.leaf` keys is a bucket that lists them;
one with more has a child for each value of the bits up to the next level. Nodes with a single child are passed over.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

T = TypeVar("T")


class Prefix(NamedTuple):
    """The first `length` bits of keys."""

    bits: int
    length: int


ROOT = Prefix(0, 0)


@dataclass(frozen=True, slots=True)
class Shape:
    """When a node splits.

    `leaf` is how many keys a bucket may have, `crowd` how many if they share the first `shared` bits. The parent lists
    the keys of buckets with up to `inline` keys itself. `height` bounds how many nodes stand above each other below the
    root; where keys are so unevenly spread that it takes more, the root lists the children of those that stand too
    high.
    """

    leaf: int
    inline: int
    height: int
    crowd: int


@dataclass(frozen=True, slots=True)
class Held(Generic[T]):
    """A key and what was put under it, in order."""

    key: int
    items: Sequence[T]


class _Node(Generic[T]):
    """One prefix. Buckets have `items`, others `children`; `height` is None until it is asked for."""

    __slots__ = ("children", "count", "height", "items", "level", "prefix")

    def __init__(self, prefix: Prefix, level: int) -> None:
        self.prefix, self.level = prefix, level
        self.count = 0
        self.items: dict[int, list[T]] = {}
        self.children: dict[int, _Node[T]] | None = None
        self.height: int | None = None


class PrefixTree(Generic[T]):
    """The tree over keys of `levels[-1]` bits.

    `levels` are prefix lengths in ascending order, 0 is the first. `shared` is one of them: see `Shape.crowd`.
    """

    def __init__(self, levels: Sequence[int], shared: int, shape: Shape) -> None:
        self._levels, self._shared, self._shape = tuple(levels), shared, shape
        self._root: _Node[T] = _Node(ROOT, 0)

    def __len__(self) -> int:
        """How many keys there are."""
        return self._root.count

    # -- changes ---------------------------------------------------------------------------------------

    def add(self, key: int, item: T) -> Sequence[Prefix]:
        """Put `item` under `key`, behind what is there. Returns the prefixes that come to have a node by that."""
        made: list[Prefix] = []
        way = self._way(key)
        if way[-1].children is not None:
            way.append(self._child(way[-1], key, made))
        items = way[-1].items
        added = key not in items
        items.setdefault(key, []).append(item)
        for node in way:
            node.count += added
            node.height = None
        self._split(way[-1], made)
        return made

    def remove(self, key: int, item: T) -> None:
        """Take `item` from under `key`. Raises KeyError or ValueError if it isn't there."""
        way = self._way(key)
        items = way[-1].items
        items[key].remove(item)
        if items[key]:
            return
        del items[key]
        for node in way:
            node.count -= 1
            node.height = None
        parent = way[-2].children if len(way) > 1 else None
        if parent is not None and not items:
            del parent[self._digit(key, way[-1].level)]
        crowded = next((node for node in way if node.count <= self._room(node)), None)
        if crowded is not None:
            self._merge(crowded)

    def _split(self, node: _Node[T], made: list[Prefix]) -> None:
        while node.children is None and node.count > self._room(node) and node.level + 1 < len(self._levels):
            node.children = {}
            for key, items in node.items.items():
                child = self._child(node, key, made)
                child.items[key] = items
                child.count += 1
            node.items = {}
            if len(node.children) > 1:
                return
            (node,) = node.children.values()

    def _room(self, node: _Node[T]) -> int:
        """How many keys the node can have and be a bucket."""
        return self._shape.crowd if node.prefix.length >= self._shared else self._shape.leaf

    def _merge(self, node: _Node[T]) -> None:
        if node.children is not None:
            node.items = {key: items for bucket in _buckets(node) for key, items in bucket.items.items()}
            node.children = None

    def _child(self, node: _Node[T], key: int, made: list[Prefix]) -> _Node[T]:
        """The child of an inner node that `key` belongs to; if there is none it is made, and noted in `made`."""
        assert node.children is not None
        digit = self._digit(key, node.level + 1)
        child = node.children.get(digit)
        if child is None:
            child = node.children[digit] = _Node(self._prefix(key, node.level + 1), node.level + 1)
            made.append(child.prefix)
        return child

    def _digit(self, key: int, level: int) -> int:
        """The bits of `key` between the level before and this one."""
        length = self._levels[level]
        return key >> (self._levels[-1] - length) & ((1 << (length - self._levels[level - 1])) - 1)

    def _prefix(self, key: int, level: int) -> Prefix:
        length = self._levels[level]
        return Prefix(key >> (self._levels[-1] - length), length)

    def _way(self, key: int) -> list[_Node[T]]:
        """The nodes on the way to `key`, from the root to its bucket, or to where that is missing."""
        way = []
        node: _Node[T] | None = self._root
        while node is not None:
            way.append(node)
            node = node.children.get(self._digit(key, node.level + 1)) if node.children is not None else None
        return way

    # -- what it looks like ----------------------------------------------------------------------------

    def items(self, key: int) -> Sequence[T]:
        """What stands under `key`; nothing if there is no such key."""
        return self._way(key)[-1].items.get(key, ())

    def everything(self) -> Iterator[T]:
        """All items."""
        for bucket in _buckets(self._root):
            for items in bucket.items.values():
                yield from items

    def reach(self, key: int) -> Iterator[Prefix]:
        """The prefixes whose look a change at `key` can alter, the root among them; `add` tells which it makes.

        Those are the ones on the way to the key, and those that may be merged into one of them.
        """
        for node in self._way(key):
            if node.count <= self._room(node) + 1:
                yield from (one.prefix for one in _nodes(node))
                return
            yield node.prefix

    def nodes(self) -> Iterator[Prefix]:
        """The prefixes that have a node of their own, each after those below it, the root last."""
        yield from self._below(self._root)
        yield ROOT

    def look(self, prefix: Prefix) -> Iterator[Prefix | Held[T]]:
        """What the node of `prefix` lists, in the order of the keys: further prefixes and keys.

        Nothing if it has no node of its own; the root always has one.
        """
        node = self._find(prefix)
        if node is None or not (node is self._root or self._stands(node)):
            return
        if node.children is None:
            yield from _held(node)
        else:
            yield from self._list(node)

    def _below(self, node: _Node[T]) -> Iterator[Prefix]:
        if node.children is not None:
            for child in _sorted(node.children):
                yield from self._below(child)
                if self._stands(child):
                    yield child.prefix

    def _list(self, node: _Node[T]) -> Iterator[Prefix | Held[T]]:
        assert node.children is not None
        for child in _sorted(node.children):
            below = _branching(child)
            if self._stands(below):
                yield below.prefix
            elif below.children is None:
                yield from _held(below)
            else:
                yield from self._list(below)

    def _stands(self, node: _Node[T]) -> bool:
        """Whether a node below the root is one of its own: neither passed over, nor listed by another one."""
        if node.children is None:
            return node.count > self._shape.inline
        return len(node.children) > 1 and self._height(node) <= self._shape.height

    def _height(self, node: _Node[T]) -> int:
        """How many nodes stand above each other from here down."""
        if node.height is None:
            if node.children is None:
                node.height = int(node.count > self._shape.inline)
            else:
                node.height = max(map(self._height, node.children.values())) + (len(node.children) > 1)
        return node.height

    def _find(self, prefix: Prefix) -> _Node[T] | None:
        node = self._root
        while node.prefix.length < prefix.length:
            if node.children is None:
                return None
            length = self._levels[node.level + 1]
            digit = prefix.bits >> (prefix.length - length) & ((1 << (length - node.prefix.length)) - 1)
            child = node.children.get(digit)
            if child is None:
                return None
            node = child
        return node if node.prefix == prefix else None


def _branching(node: _Node[T]) -> _Node[T]:
    """The first node from here down that isn't passed over."""
    while node.children is not None and len(node.children) == 1:
        (node,) = node.children.values()
    return node


def _sorted(children: dict[int, _Node[T]]) -> Iterator[_Node[T]]:
    return (children[digit] for digit in sorted(children))


def _held(bucket: _Node[T]) -> Iterator[Held[T]]:
    return (Held(key, bucket.items[key]) for key in sorted(bucket.items))


def _nodes(node: _Node[T]) -> Iterator[_Node[T]]:
    yield node
    for child in (node.children or {}).values():
        yield from _nodes(child)


def _buckets(node: _Node[T]) -> Iterator[_Node[T]]:
    return (one for one in _nodes(node) if one.children is None)
