"""The backends that there are."""

from enum import StrEnum


class Backend(StrEnum):
    """The kernel interface that an iptables binary speaks; the host has to keep to one."""

    NFT = "nft"
    LEGACY = "legacy"
