"""The address of a fleet's server: refused where no device could use it."""

from __future__ import annotations

import ipaddress
import re
import socket

from fedkit.core.errors import ConfigError

Ip = ipaddress.IPv4Address | ipaddress.IPv6Address

EVERY_IPV4, EVERY_IPV6 = "0.0.0.0", "::"
"""What a server listens on to be reached by its other addresses."""

_PORT = re.compile(r"[1-9][0-9]{0,4}")
_LABEL = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")
_NUMBER = re.compile(r"[0-9]+|0[xX][0-9A-Fa-f]*")
_LONGEST_NAME = 253  # RFC 1035, without the dot at the end


def parse_address(address: str) -> tuple[str, int]:
    """Split host:port, where an IPv6 address stands in brackets.

    Returns:
        A host name, or an address without brackets; and the port.

    Raises:
        ConfigError: It is not such a text, or no device can reach a server by it.
    """
    host, colon, port = address.rpartition(":")
    if not colon or not host:
        raise _refused(address, "it lacks a host or a port")
    if not _PORT.fullmatch(port) or int(port) > 65535:
        raise _refused(address, "its port is not a number from 1 to 65535")
    reason = _no_ipv6(host) if host[0] == "[" or ":" in host else _no_host(host)
    if reason:
        raise _refused(address, reason)
    return host.strip("[]"), int(port)


def join_address(host: str, port: int) -> str:
    """Invert `parse_address`."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_loopback(host: str) -> bool:
    """Whether a host is this machine's loopback interface by its name."""
    found = _ip(host)
    return host.lower() == "localhost" if found is None else found.is_loopback


def listens_on(host: str) -> str:
    """Return what a server listens on that is reached by `host`: every interface, or loopback."""
    if is_loopback(host):
        return host
    return EVERY_IPV6 if ":" in host else EVERY_IPV4


def reached_here(host: str) -> str:
    """Return the loopback address by which its own machine reaches a server of `listens_on`."""
    if is_loopback(host) and _ip(host) is not None:
        return host
    return "::1" if ":" in host else "127.0.0.1"


def only_by_ipv6(host: str) -> str:
    """Return an IPv6 address of a host name that has no other, as far as this machine can find out.

    A server is reached by IPv4 where its host is a name (`listens_on`): Flower listens on one
    family at a time.

    Returns:
        "" for all other names, for addresses, and where the name is not known here.
    """
    if _ip(host) is not None or is_loopback(host):
        return ""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return ""
    families = {family for family, *_ in found}
    return str(found[0][4][0]) if families == {socket.AF_INET6} else ""


def _refused(address: str, reason: str) -> ConfigError:
    return ConfigError(
        f"address is {address!r}: {reason}; it must be host:port as devices reach the server, like "
        "fleet.example:8000, 192.168.1.10:8000 or [2001:db8::10]:8000"
    )


def _no_ipv6(host: str) -> str:
    """Return what is wrong with a host that holds colons or brackets; "" if nothing is."""
    inside = host[1:-1]
    if "/" in host or "@" in host:
        return "it holds more than a host and a port, such as a scheme, a path or a user"
    if host[0] != "[" or host[-1] != "]":
        return "an IPv6 address stands in brackets, and nothing else holds colons"
    found = _ip(inside)
    if "%" in inside or not isinstance(found, ipaddress.IPv6Address):
        return f"{inside!r} is not an IPv6 address without a zone"
    if found.ipv4_mapped is not None:
        return f"write it as {found.ipv4_mapped}"
    if found.is_link_local:
        return "a link-local address means another machine on each interface"
    return _no_machine(found)


def _no_host(host: str) -> str:
    """Return what is wrong with a name or an IPv4 address; "" if nothing is."""
    if not host.isascii():
        return f"a name beyond ASCII is written as {_idna(host)}"
    found = _ip(host)
    if found is not None:
        return _no_machine(found)
    labels = host.split(".")
    if len(host) > _LONGEST_NAME or not all(map(_LABEL.fullmatch, labels)):
        return (
            f"a name has at most {_LONGEST_NAME} letters, digits, hyphens and dots, and 1 to 63 "
            "between dots"
        )
    # Programs read 127.1, 0x7f000001 or 10.0.0.256 each in their own way.
    return "it is not an IPv4 address, but ends like one" if _NUMBER.fullmatch(labels[-1]) else ""


def _no_machine(found: Ip) -> str:
    if found.is_unspecified or (found.version == 4 and found.packed[0] == 0):
        return "a server listens on that, but no device reaches one by it"
    if found.is_multicast or found == ipaddress.IPv4Address("255.255.255.255"):
        return "it stands for many machines"
    return ""


def _idna(host: str) -> str:
    try:
        return host.encode("idna").decode("ascii")
    except UnicodeError:
        return "xn--..."


def _ip(host: str) -> Ip | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None
