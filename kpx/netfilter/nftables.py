"""Numbers of the kernel's nf_tables interface: `linux/netfilter/nf_tables.h`, `linux/netfilter/nfnetlink.h`."""

from typing import Final

from kpx.family import Family

GROUP: Final = 7
"""The multicast group (NFNLGRP_NFTABLES) that hears of every commit."""
SUBSYSTEM: Final = 10 << 8

NEWTABLE: Final = 0
DELTABLE: Final = 2
NEWCHAIN: Final = 3
DELCHAIN: Final = 5
NEWRULE: Final = 6
DELRULE: Final = 8
NEWGEN: Final = 15
GETGEN: Final = 16

TABLE_ATTRIBUTE: Final = 1
CHAIN_ATTRIBUTE = {NEWTABLE: 0, DELTABLE: 0, NEWCHAIN: 3, DELCHAIN: 3, NEWRULE: 2, DELRULE: 2}
"""Which attribute names the chain, by message; 0 where none does. All of them name the table in attribute 1."""

FAMILIES = {2: Family.IPV4, 10: Family.IPV6}
"""Families by their number in a message."""
