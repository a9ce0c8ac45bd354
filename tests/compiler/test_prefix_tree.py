"""The search tree on its own: the same for the same keys, changed little by a little change, and never too high."""

import random
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kpx.compiler.prefix_tree import ROOT, Held, Prefix, PrefixTree, Shape

LEVELS = (0, 2, 4, 5, 8, 11)
SHAPE = Shape(leaf=3, crowd=5, inline=1, height=2)
SHARED = 8

keys = st.integers(0, 2 ** LEVELS[-1] - 1)
# Keys with all their bits in a few places: such trees are high.
nested = st.integers(0, LEVELS[-1]).map(lambda bit: 1 << bit >> 1) | st.integers(0, 7)
key_sets = st.sets(keys | nested, max_size=60)

Look = dict[Prefix, tuple[object, ...]]


def made(
    of: Iterable[int], shape: Shape = SHAPE, levels: tuple[int, ...] = LEVELS, shared: int = SHARED
) -> PrefixTree[str]:
    tree: PrefixTree[str] = PrefixTree(levels, shared, shape)
    for key in of:
        tree.add(key, f"item {key}")
    return tree


def look(tree: PrefixTree[str]) -> Look:
    """Everything: what each node lists."""
    return {
        prefix: tuple(one if isinstance(one, Prefix) else (one.key, tuple(one.items)) for one in tree.look(prefix))
        for prefix in tree.nodes()
    }


@given(st.lists(keys | nested | st.integers(0, 7) | st.integers(1024, 1031), max_size=60))
def test_the_tree_is_a_function_of_its_keys(steps: list[int]) -> None:
    """Each step adds its key, or removes it if it is there."""
    tree = made(())
    held: set[int] = set()
    for key in steps:
        (tree.remove if key in held else tree.add)(key, f"item {key}")
        held ^= {key}
        assert len(tree) == len(held)
        assert look(tree) == look(made(sorted(held)))


@given(key_sets)
def test_every_key_is_found_by_following_prefixes(held: set[int]) -> None:
    tree = made(held)
    found: list[int] = []

    def descend(prefix: Prefix) -> None:
        for one in tree.look(prefix):
            key, length = (one.bits, one.length) if isinstance(one, Prefix) else (one.key, LEVELS[-1])
            assert length > prefix.length
            assert key >> (length - prefix.length) == prefix.bits
            if isinstance(one, Prefix):
                descend(one)
            else:
                assert one.items == [f"item {one.key}"]
                found.append(one.key)

    descend(ROOT)
    assert found == sorted(held)
    assert sorted(tree.everything()) == sorted(f"item {key}" for key in held)


@given(key_sets)
def test_nodes_come_after_those_below_them_and_nowhere_else(held: set[int]) -> None:
    tree = made(held)
    before: set[Prefix] = set()
    for prefix in tree.nodes():
        listed = {one for one in tree.look(prefix) if isinstance(one, Prefix)}
        assert listed <= before
        before |= {prefix}
        assert prefix == ROOT or len(tuple(tree.look(prefix))) > SHAPE.inline
    missing = {Prefix(bits, length) for length in LEVELS for bits in range(1 << min(length, 5))} - before
    assert all(not tuple(tree.look(prefix)) for prefix in missing)


@given(key_sets)
def test_no_way_is_longer_than_the_shape_allows(held: set[int]) -> None:
    tree = made(held)

    def height(prefix: Prefix) -> int:
        return max((1 + height(one) for one in tree.look(prefix) if isinstance(one, Prefix)), default=0)

    assert height(ROOT) <= SHAPE.height


@given(key_sets, keys | nested)
def test_a_change_reaches_only_what_it_says(held: set[int], key: int) -> None:
    tree = made(held)
    before = look(tree)
    reach = set(tree.reach(key))
    if key in held:
        tree.remove(key, f"item {key}")
    else:
        made_now = set(tree.add(key, f"item {key}"))
        assert not made_now & before.keys()
        reach |= made_now
    after = look(tree)
    changed = {prefix for prefix in before.keys() | after.keys() if before.get(prefix) != after.get(prefix)}
    assert changed <= reach
    assert len(reach) <= len(LEVELS) * (SHAPE.crowd + 2)


def test_one_of_many_keys_changes_a_bounded_number_of_lines() -> None:
    levels, shape = tuple(range(0, 33, 4)), Shape(leaf=8, crowd=64, inline=2, height=6)
    pick = random.Random(1)
    held = pick.sample(range(1 << 20), 20_000) + pick.sample(range(1 << 32), 500)
    tree = made(held[:-300], shape, levels, levels[-1])
    for key in held[-300:]:
        reach = set(tree.reach(key))
        before = {prefix: tuple(map(str, tree.look(prefix))) for prefix in reach}
        reach |= set(tree.add(key, "new"))
        after = {prefix: tuple(map(str, tree.look(prefix))) for prefix in reach}
        lines = sum(len(set(before.get(prefix, ())) ^ set(after[prefix])) for prefix in reach)
        assert lines <= 2 * (shape.leaf + 1) + 16


def test_items_of_a_key_stay_together() -> None:
    tree = made(range(9))
    tree.add(4, "another")
    assert len(tree) == 9
    assert tree.items(4) == ["item 4", "another"]
    assert [
        one.items for prefix in tree.nodes() for one in tree.look(prefix) if isinstance(one, Held) and one.key == 4
    ] == [["item 4", "another"]]
    tree.remove(4, "item 4")
    assert (len(tree), tree.items(4)) == (9, ["another"])
    tree.remove(4, "another")
    assert (len(tree), tree.items(4)) == (8, ())


def test_what_is_not_there_cannot_be_removed() -> None:
    tree = made((1, 2, 3, 4, 5))
    before = look(tree)
    for key, item, error in ((1, "other", ValueError), (6, "item 6", KeyError), (2000, "item 2000", KeyError)):
        with pytest.raises(error):
            tree.remove(key, item)
    assert look(tree) == before
