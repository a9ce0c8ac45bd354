import ipaddress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kpx.api.addresses import canonical, canonical_cidr, is_special, one_per_family


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("10.96.0.1", "10.96.0.1"),
        ("010.096.000.001", "10.96.0.1"),
        ("FD00:0:0::A", "fd00::a"),
        ("fd00:0:0:0:0:0:0:a", "fd00::a"),
        ("::ffff:10.0.0.1", "10.0.0.1"),
        ("::ffff:010.0.0.001", "10.0.0.1"),
        ("::FFFF:a00:1", "10.0.0.1"),
        ("::", "::"),
        ("64:ff9b::1.2.3.4", "64:ff9b::102:304"),
    ],
)
def test_canonical(text: str, expected: str) -> None:
    assert canonical(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        " 10.0.0.1",
        "10.0.0.1\n",
        "10.0.0",
        "10.0.0.256",
        "10.0.0.1/8",
        "0x0a.0.0.1",
        "fe80::1%eth0",
        "[::1]",
        "1.2.3.4.5",
        "1" * 5000,
        ":::",
        "::1\x00",
        "10.0.0.１",
        "\ud800",
        "::ffff:1.2.3",
        "-1.2.3.4",
        "fd00::-j",
    ],
)
def test_no_address(text: str) -> None:
    assert canonical(text) is None


@settings(deadline=None)
@given(st.ip_addresses(v=4) | st.ip_addresses(v=6))
def test_canonical_is_what_python_says(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> None:
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    expected = canonical(str(address))
    assert expected is not None
    assert ipaddress.ip_address(expected) == (mapped or address)
    if isinstance(address, ipaddress.IPv6Address):
        assert canonical(address.exploded) == expected
    assert canonical(expected) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("10.1.2.3/8", "10.0.0.0/8"),
        ("0.0.0.0/0", "0.0.0.0/0"),
        ("FD00::1/64", "fd00::/64"),
        ("::/0", "::/0"),
        ("192.0.2.7/32", "192.0.2.7/32"),
        ("010.0.0.0/08", "10.0.0.0/8"),
        ("::ffff:10.1.2.3/104", "10.0.0.0/8"),
    ],
)
def test_canonical_cidr(text: str, expected: str) -> None:
    assert canonical_cidr(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "10.0.0.0",
        "10.0.0.0/33",
        "fd00::/129",
        "10.0.0.0/-1",
        "10.0.0.0/8 ",
        "10.0.0.0/8\n",
        "/8",
        "10.0.0.0/",
        "10.0.0.0/8/8",
        "::ffff:10.0.0.0/8",
        "10.0.0.0/+8",
        "10.0.0.0/８",
        "fe80::%eth0/64",
        "10.0.0.0/0008",
    ],
)
def test_no_cidr(text: str) -> None:
    assert canonical_cidr(text) is None


@settings(deadline=None)
@given(st.ip_addresses(), st.integers(0, 128))
def test_cidr_is_what_python_says(address: ipaddress.IPv4Address | ipaddress.IPv6Address, prefix: int) -> None:
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        return
    prefix %= address.max_prefixlen + 1
    assert canonical_cidr(f"{address}/{prefix}") == str(ipaddress.ip_network((address, prefix), strict=False))


@settings(deadline=None)
@given(st.ip_addresses())
def test_special_is_what_python_says(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> None:
    text = canonical(str(address))
    assert text is not None
    plain = ipaddress.ip_address(text)
    multicast = ipaddress.ip_network("224.0.0.0/24" if plain.version == 4 else "ff02::/16")
    expected = plain.is_loopback or plain.is_unspecified or plain.is_link_local or plain in multicast
    assert is_special(text) == expected


@pytest.mark.parametrize(
    "text",
    ["0.0.0.0", "127.0.0.1", "127.9.9.9", "169.254.1.1", "224.0.0.5", "::", "::1", "fe80::1", "febf::1", "ff02::1"],
)
def test_special(text: str) -> None:
    assert is_special(text)


@pytest.mark.parametrize(
    "text", ["10.0.0.0", "12.7.0.1", "224.0.1.1", "fe8::1", "fec0::1", "::2", "fd00::1", "ff05::2"]
)
def test_usual(text: str) -> None:
    assert not is_special(text)


def test_one_per_family() -> None:
    assert one_per_family(())
    assert one_per_family(("10.0.0.1", "fd00::1"))
    assert not one_per_family(("10.0.0.1", "10.0.0.2"))
