"""How a chain chooses among endpoints: by a list, as kube-proxy does, or by groups where there are many."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from kpx.compiler.names import endpoint_chain
from kpx.compiler.source_hash import SPACE, below, seed_of
from kpx.compiler.words import one_in
from kpx.family import Family
from kpx.model.service import ServicePortName
from kpx.netfilter.ruleset import Rules

_STEPS = 1 << 31
"""xt_statistic compares 31 random bits with an integer: probabilities come in steps of 2^-31."""


@dataclass(frozen=True, slots=True)
class Direct:
    """An endpoint (`address:port`) of a service port that has no chain: the rule that chooses it translates."""

    owner: ServicePortName
    endpoint: str


@dataclass(frozen=True, slots=True)
class Arm:
    """One endpoint to choose: `note` stands in front of its rules (a comment, or nothing), `target` is its chain.

    It gets `weight` of all weights' sum. `clients` is the name of the list of its clients, if it
    isn't the chain's.
    """

    note: str
    target: str | Direct
    weight: int = 1
    clients: str = ""

    @property
    def chain(self) -> str:
        """The name of its chain; of the one that it would have, if it has none: its hash tells which group it is in."""
        to = self.target
        return to if isinstance(to, str) else endpoint_chain(to.owner, to.endpoint)

    def rule(self, chance: str) -> str:
        """The rule that takes this endpoint with a chance, whose match ends with a space; always if that is empty."""
        to = self.target
        if isinstance(to, str):
            return f"{self.note}{chance}-j {to}"
        return f"-p {to.owner.protocol} {self.note}{chance}-j DNAT --to-destination {to.endpoint}"

    @property
    def list_name(self) -> str:
        """The list (`-m recent`) of the clients that it has: by default the one that is called like its chain."""
        return self.clients or self.chain


@dataclass(frozen=True, slots=True)
class Affinity:
    """Clients stay with their endpoint for `seconds`. `mask` is the one of single addresses."""

    seconds: int
    mask: str

    def knows(self, name: str) -> str:
        """The match for clients that are on the list `name`, with a space behind it."""
        return f"-m recent --rcheck --seconds {self.seconds} --reap --name {name} --mask {self.mask} --rsource "

    def notes(self, name: str) -> str:
        """The match that puts the client on the list `name`, and always holds; with a space behind it."""
        return f"-m recent --set --name {name} --mask {self.mask} --rsource "


Chains = Iterator[tuple[str, Rules]]
Choose = Callable[[str, Rules, Sequence[Arm], Affinity | None], Chains]
"""Makes a chain, and those that it needs before it: from its name, first rules, endpoints and affinity."""

Chances = Callable[[Sequence[tuple[str, int]]], Sequence[str]]
"""Makes the matches, each with a space behind it, that choose among branches with these names and weights.

They stand in a list; the last one, for what is left, is empty.
"""


def at_random(branches: Sequence[tuple[str, int]]) -> Sequence[str]:
    """Chances by `-m statistic`: every new connection is a throw of the dice. See `Chances`."""
    return weighted(tuple(weight for _, weight in branches))


def by_source(family: Family) -> Chances:
    """Chances by a hash of the client's address: the same client always gets the same endpoint. See `Chances`.

    Each rule asks a hash of its own, seeded by its name, and takes its weight's share of what the rules behind it have
    together with it. So one that is added or removed changes only the shares of those in front of it, by little
    (Lamping and Veach's jump hash, upside down).
    """

    def chances(branches: Sequence[tuple[str, int]]) -> Sequence[str]:
        matches = []
        left = sum(weight for _, weight in branches)
        for name, weight in branches[:-1]:
            matches.append(f"{below(family, seed_of(name), _divide(SPACE * weight, left))} ")
            left -= weight
        return (*matches, "")

    return chances


@lru_cache
def hashed(family: Family) -> "Grouped":
    """Choice by source for `family`, in long lists: each level of groups moves some more clients with each change."""
    return Grouped(limit=64, inline=1, chances=by_source(family))


def linear(chain: str, first: Rules, arms: Sequence[Arm], affinity: Affinity | None) -> Chains:
    """All in one chain, as kube-proxy writes it."""
    if len({arm.weight for arm in arms}) > 1:
        chances = at_random([(arm.chain, arm.weight) for arm in arms])
    else:
        chances = (*(f"{one_in(left)} " for left in range(len(arms), 1, -1)), "")
    choice = (arm.rule(chance) for arm, chance in zip(arms, chances, strict=True))
    yield chain, (*first, *known(arms, affinity), *choice)


def known(arms: Sequence[Arm], affinity: Affinity | None, noted: Mapping[str, str] | None = None) -> Iterator[str]:
    """The rules that lead clients to the endpoint that knows them; `noted` are further matches by endpoint chain."""
    if affinity:
        for arm in arms:
            yield arm.rule(f"{affinity.knows(arm.list_name)}{(noted or {}).get(arm.chain, '')}")


@dataclass(frozen=True, slots=True)
class _Branch:
    """What a chain chooses among: one endpoint, or the chain of a group. `name` stays, also if a group has only one."""

    name: str
    arms: Sequence[Arm]

    @property
    def is_group(self) -> bool:
        return len(self.arms) > 1

    def rule(self, chance: str) -> str:
        """The rule that takes it with a chance."""
        return f"{chance}-j {self.name}" if self.is_group else self.arms[0].rule(chance)

    @property
    def weight(self) -> int:
        return sum(arm.weight for arm in self.arms)


@dataclass(frozen=True, slots=True)
class Grouped:
    """Choice among groups, then within one: O(log n) rules for n endpoints.

    Up to `limit` endpoints are one list. More are put into sixteen groups by the first bits of the hashes that name
    their KUBE-SEP chains, and groups of more than `limit` into sixteen again, `depth` times at most. Groups of up to
    `inline` endpoints have no chain of their own. So an endpoint's group depends on nothing but itself, and one
    endpoint more or less changes the chains on its way only. The groups of KUBE-SVC-X are KPX-SVC-X-0 to -f.

    Every endpoint is chosen with its share of all weights, less than 2^-31 off: groups by what theirs add up to, see
    `weighted`. `chances` says by what.

    Affinity: kube-proxy asks n lists, one for each endpoint, whether the client is on them, and the kernel looks for
    each by its name among all lists there are. With more than `listed` endpoints groups have lists too: a client who
    is on one is looked for in that group first (KPX-AFC-X-0 to -f). Who isn't found that way is looked for on all n
    lists as ever, because absence from a group's list proves nothing: the kernel keeps the last 100 clients of a list
    (`ip_list_tot`), and a list starts empty with the first rule that names it, for instance when kpx takes over. So a
    known client stays where it is, whatever the groups' lists say. One whom two endpoints know (it came under the
    Local policy and under the Cluster policy) stays with one of them.
    """

    limit: int = 16
    inline: int = 2
    depth: int = 2
    listed: int = 64
    chances: Chances = at_random

    def __call__(self, chain: str, first: Rules, arms: Sequence[Arm], affinity: Affinity | None) -> Chains:
        """See `Choose`."""
        if len(arms) <= self.limit and self.chances is at_random:
            return linear(chain, first, arms, affinity)
        if affinity and len(arms) > self.listed:
            return self._with_lists(chain, first, arms, affinity)
        return self._choice(chain, (*first, *known(arms, affinity)), arms, 0)

    def _with_lists(self, chain: str, first: Rules, arms: Sequence[Arm], affinity: Affinity) -> Chains:
        groups = {branch.name: branch for branch in self._branches(chain, arms, 0) if branch.is_group}
        lists = {target: _affinity_chain(target) for target in groups}
        noted = {arm.chain: affinity.notes(lists[one.name]) for one in groups.values() for arm in one.arms}
        by_arm = dict(zip((arm.chain for arm in arms), known(arms, affinity, noted), strict=True))
        for target, branch in groups.items():
            yield lists[target], tuple(by_arm[arm.chain] for arm in branch.arms)
        look_up = (*(f"{affinity.knows(one)}-j {one}" for one in lists.values()), *by_arm.values())
        before = {target: (affinity.notes(one).rstrip(),) for target, one in lists.items()}
        yield from self._choice(chain, (*first, *look_up), arms, 0, before)

    def _choice(
        self, chain: str, first: Rules, arms: Sequence[Arm], depth: int, before: Mapping[str, Rules] | None = None
    ) -> Chains:
        """The chain that chooses among `arms` after its `first` rules; `before` are those of its groups' chains."""
        branches = self._branches(chain, arms, depth)
        for one in branches:
            if one.is_group:
                yield from self._choice(one.name, (before or {}).get(one.name, ()), one.arms, depth + 1)
        chances = self.chances([(one.name, one.weight) for one in branches])
        choice = (one.rule(chance) for one, chance in zip(branches, chances, strict=True))
        yield chain, (*first, *choice)

    def _branches(self, chain: str, arms: Sequence[Arm], depth: int) -> list[_Branch]:
        if len(arms) <= self.limit or depth == self.depth:
            return [_Branch(arm.chain, (arm,)) for arm in arms]
        groups: dict[str, list[Arm]] = defaultdict(list)
        for arm in arms:
            groups[_digit(arm.chain, depth)].append(arm)
        branches: list[_Branch] = []
        for digit, group in sorted(groups.items()):
            name = _group_chain(chain, digit)
            if len(group) > self.inline:
                branches.append(_Branch(name, group))
            else:
                branches += (_Branch(name, (arm,)) for arm in group)
        return branches


_BITS = {letter: bits for bits, letter in enumerate("ABCDEFGHIJKLMNOPQRSTUVWXYZ234567")}
"""Base32 (RFC 4648): a letter is five bits."""


def _digit(chain: str, depth: int) -> str:
    """A hexadecimal digit, one of the first three, of the hash in an endpoint chain's name."""
    first = _BITS[chain[-16]] << 10 | _BITS[chain[-15]] << 5 | _BITS[chain[-14]]
    return f"{first >> (11 - 4 * depth) & 15:x}"


def _group_chain(chain: str, digit: str) -> str:
    return f"KPX-{chain.removeprefix('KUBE-')}-{digit}" if chain.startswith("KUBE-") else chain + digit


def _affinity_chain(group: str) -> str:
    """KPX-SVC-X-0 → KPX-AFC-X-0, KPX-SVL-X-0 → KPX-AFL-X-0."""
    return group.replace("-SVC-", "-AFC-", 1).replace("-SVL-", "-AFL-", 1)


@lru_cache(maxsize=8192)
def weighted(weights: tuple[int, ...]) -> tuple[str, ...]:
    """The matches, each with a space behind it, that choose among arms by `weights`; the last one takes what is left.

    Each probability is rounded such that what is left for the arms behind it is right: so errors don't add up. What
    is left is off by at most half a step of 2^-31, an arm's share thus by less than one step. Within a group the same
    holds of the group's share only, c/n: a group of c endpoints adds 1/c of its own error to theirs. Over all levels
    an endpoint is less than one step off 1/n.
    """
    unit = 1 << 96  # of which `left`, the probability that no arm was chosen so far, is counted
    total = ahead = sum(weights)
    left = unit
    chances = []
    for weight in weights[:-1]:
        ahead -= weight
        passed = _divide(unit * _STEPS * ahead, total * left)
        left = left * passed // _STEPS
        chances.append(f"-m statistic --mode random --probability {(_STEPS - passed) / _STEPS:.11f} ")
    return (*chances, "")


def _divide(numerator: int, denominator: int) -> int:
    """The nearest integer to a fraction."""
    return (2 * numerator + denominator) // (2 * denominator)
