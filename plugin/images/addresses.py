"""Which addresses an image may be fetched from: those of the public internet, and no others."""

import ipaddress

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

# Public by number, private by use: Azure's host agent, which answers every virtual machine there, and the
# block of IETF's protocols, in which Oracle's cloud has its metadata service.
_METADATA = (ipaddress.ip_network("168.63.129.16/32"), ipaddress.ip_network("192.0.0.0/24"))
# IPv6 ranges in which an IPv4 address is written, and how many bits follow it.
_EMBEDDED = (
    (ipaddress.ip_network("64:ff9b::/96"), 0),  # NAT64
    (ipaddress.ip_network("2002::/16"), 80),  # 6to4
    (ipaddress.ip_network("::/96"), 0),  # IPv4-compatible, long deprecated
    (ipaddress.ip_network("::ffff:0:0:0/96"), 0),  # IPv4-translated
)
# Teredo's tunnels, NAT64 of one network, and site-local addresses; some Python versions count them as global.
_LOCAL = tuple(map(ipaddress.ip_network, ("2001::/32", "64:ff9b:1::/48", "fec0::/10")))


def refusal(address: str) -> str | None:
    """Why nothing is fetched from an address ("loopback", "private", ...); None when it is public.

    An IPv6 address that carries an IPv4 address is judged by both.

    Raises:
        ValueError: not an address.
    """
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.scope_id:
            return "of one network interface"
        embedded = _embedded(ip)
        if embedded is not None:
            return _refusal(embedded)
        if any(ip in network for network in _LOCAL):
            return "reserved"
    return _refusal(ip)


def _refusal(ip: IPAddress) -> str | None:
    if any(ip in network for network in _METADATA):
        return "a cloud's metadata service"
    for name, holds in (
        ("loopback", ip.is_loopback),
        ("link-local", ip.is_link_local),
        ("multicast", ip.is_multicast),
        ("unspecified", ip.is_unspecified),
        ("reserved", ip.is_reserved),
        ("private", ip.is_private),
        ("not public", not ip.is_global),
    ):
        if holds:
            return name
    return None


def _embedded(ip: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    if ip.ipv4_mapped is not None:
        return ip.ipv4_mapped
    for network, shift in _EMBEDDED:
        if ip in network and int(ip) > 1:  # :: and ::1 are what they are
            return ipaddress.IPv4Address((int(ip) >> shift) & 0xFFFFFFFF)
    return None
