"""An address is one that devices can use, or is refused with its reason before keys are made."""

from __future__ import annotations

import ipaddress
import socket
import string
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from cryptography import x509
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fedkit.cli.fleet_server import _tell_of_ipv6
from fedkit.config import make_config
from fedkit.core.errors import ConfigError
from fedkit.fleet.address import (
    join_address,
    listens_on,
    only_by_ipv6,
    parse_address,
    reached_here,
)
from fedkit.fleet.commands import server_command
from fedkit.fleet.folder import Fleet, make_fleet
from sim.simulation import APP

REFUSED = [
    ("https://host:8000", "a scheme, a path or a user"),
    ("user:secret@host:8000", "a scheme, a path or a user"),
    ("user@host:8000", "letters, digits, hyphens"),
    ("a/b:8000", "letters, digits, hyphens"),
    ("evil host;x:8000", "letters, digits, hyphens"),
    (" host:8000", "letters, digits, hyphens"),
    ("ho\tst:8000", "letters, digits, hyphens"),
    ("host\n:8000", "letters, digits, hyphens"),
    ("host:8000\n", "not a number from 1 to 65535"),
    ("host:8000 ", "not a number from 1 to 65535"),
    ("host: 8000", "not a number from 1 to 65535"),
    ("host:+80", "not a number from 1 to 65535"),
    ("host:8_0", "not a number from 1 to 65535"),
    ("host:\u00b2", "not a number from 1 to 65535"),
    ("host:\uff18\uff10", "not a number from 1 to 65535"),
    ("host:65536", "not a number from 1 to 65535"),
    ("host:-1", "not a number from 1 to 65535"),
    (f"{'a' * 64}.example:80", "letters, digits, hyphens"),
    (f"{'a.' * 130}example:80", "at most 253"),
    ("a..b:80", "letters, digits, hyphens"),
    ("host.:80", "letters, digits, hyphens"),
    ("-host:80", "letters, digits, hyphens"),
    ("*.example:80", "letters, digits, hyphens"),
    ("m\u00fcnchen.example:80", "is written as xn--mnchen-3ya.example"),
    ("\U0001f600\ud800:80", "is written as xn--"),
    ("0.0.0.0:80", "no device reaches one by it"),
    ("0.1.2.3:80", "no device reaches one by it"),
    ("[::]:80", "no device reaches one by it"),
    ("224.0.0.1:80", "many machines"),
    ("255.255.255.255:80", "many machines"),
    ("[ff02::1]:80", "many machines"),
    ("256.1.1.1:80", "not an IPv4 address"),
    ("127.1:80", "not an IPv4 address"),
    ("0x7f.1:80", "not an IPv4 address"),
    ("2130706433:80", "not an IPv4 address"),
    ("010.0.0.1:80", "not an IPv4 address"),
    ("2001:db8::10:8000", "stands in brackets"),
    ("[2001:db8::10:8000", "stands in brackets"),
    ("[host]:8000", "not an IPv6 address"),
    ("[192.168.1.10]:8000", "not an IPv6 address"),
    ("[fe80::1%eth0]:80", "without a zone"),
    ("[fe80::1]:80", "link-local"),
    ("[::ffff:192.168.1.10]:80", "write it as 192.168.1.10"),
]


@pytest.mark.parametrize(("address", "words"), REFUSED)
def test_an_address_that_no_device_can_use_is_refused_and_leaves_nothing(
    tmp_path: Path, address: str, words: str
) -> None:
    with pytest.raises(ConfigError, match="must be host:port") as refused:
        make_fleet(tmp_path / "fleet", address, make_config({"devices": 1}), APP, insecure=False)
    assert words in str(refused.value)
    assert str(refused.value).isprintable()  # one line, whatever the address holds
    assert list(tmp_path.iterdir()) == []


TAKEN = [
    ("fleet.example:8443", "fleet.example", "0.0.0.0", "127.0.0.1"),
    ("my_pi-3:1", "my_pi-3", "0.0.0.0", "127.0.0.1"),
    ("192.168.1.10:65535", "192.168.1.10", "0.0.0.0", "127.0.0.1"),
    ("[2001:db8::10]:8000", "2001:db8::10", "::", "::1"),
    ("127.0.0.1:8000", "127.0.0.1", "127.0.0.1", "127.0.0.1"),
    ("127.0.0.2:8000", "127.0.0.2", "127.0.0.2", "127.0.0.2"),
    ("[::1]:8000", "::1", "::1", "::1"),
    ("localhost:8000", "localhost", "localhost", "127.0.0.1"),
]


@pytest.mark.parametrize(("address", "host", "listens", "here"), TAKEN)
def test_a_server_listens_where_its_devices_and_its_own_machine_reach_it(
    address: str, host: str, listens: str, here: str
) -> None:
    found, port = parse_address(address)
    assert (found, f"{port}") == (host, address.rpartition(":")[2])
    assert (listens_on(host), reached_here(host)) == (listens, here)
    command = server_command(Fleet(Path("/f"), host, port, 1))
    assert command[command.index("--host") + 1] == listens


V4 = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.1", 0))
V6 = (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("2001:db8::10", 0, 0, 0))


@pytest.mark.parametrize(
    ("found", "told"), [([V6], True), ([V6, V4], False), ([V4], False), (None, False)], ids=str
)
def test_a_name_that_has_ipv6_addresses_alone_is_told(
    found: list[Any] | None, told: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def resolve(host: str, *_: Any, **__: Any) -> list[Any]:
        if found is None:
            raise socket.gaierror(socket.EAI_NONAME, "unknown")
        return found

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    assert only_by_ipv6("fleet.example") == ("2001:db8::10" if told else "")
    said: list[str] = []
    _tell_of_ipv6(Fleet(Path("/f"), "fleet.example", 8000, 1), said.append)
    assert [("--address [2001:db8::10]:8000" in line) for line in said] == [True] * told
    for host in ("2001:db8::10", "192.0.2.1", "localhost"):
        assert not only_by_ipv6(host)


SOME = st.one_of(
    st.text(),
    st.text(string.ascii_letters + string.digits + ".:[]-_/@%# \\;é\u0660", max_size=30),
    st.builds("{}:{}".format, st.text(string.ascii_lowercase + "0123456789.-x", max_size=20),
              st.integers(-10, 70000)),
    st.builds("[{}]:{}".format, st.ip_addresses(v=6), st.integers(0, 65536)),
    st.builds("{}:{}".format, st.ip_addresses(v=4), st.integers(0, 65536)),
)  # fmt: skip


@given(SOME)
@example("[::ffff:0:0]:1")
@settings(deadline=None, max_examples=500)
def test_what_is_taken_means_the_same_to_a_url_and_to_a_certificate(address: str) -> None:
    assert_taken_or_refused(address)


@pytest.mark.slow
@given(SOME)
@settings(deadline=None, max_examples=5_000)
def test_many_addresses(address: str) -> None:
    assert_taken_or_refused(address)


def assert_taken_or_refused(address: str) -> None:
    try:
        host, port = parse_address(address)
    except ConfigError as error:
        assert str(error).isprintable()
        return
    assert join_address(host, port) == address
    url = urlsplit(f"https://{address}/health")
    assert (url.hostname, url.port) == (host.lower(), port)
    assert (url.username, url.path, url.query) == (None, "/health", "")
    try:
        number = ipaddress.ip_address(host)
    except ValueError:
        x509.DNSName(host)
        assert not host[host.rfind(".") + 1 :].isdigit()
    else:
        assert not (number.is_unspecified or number.is_multicast)
