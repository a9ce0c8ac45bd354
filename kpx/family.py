"""The two IP families. Everything below the model is done once per family."""

from enum import StrEnum


class Family(StrEnum):
    """An IP family, under the name that the command line and the logs use."""

    IPV4 = "ipv4"
    IPV6 = "ipv6"

    @property
    def host_bits(self) -> int:
        """Prefix length of a single address: 32 or 128."""
        return 32 if self is Family.IPV4 else 128

    @classmethod
    def of(cls, address: str) -> "Family":
        """The family of a valid address or CIDR."""
        return cls.IPV6 if ":" in address else cls.IPV4


def host_port(host: str, port: int | str) -> str:
    """`host:port`, with brackets around an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
