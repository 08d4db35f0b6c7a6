"""The server of a live report: what it shows, whom it answers, and that it changes nothing."""

from __future__ import annotations

import contextlib
import http.client
import json
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fedkit.cli.watch import newest
from fedkit.core.errors import ConfigError
from fedkit.fleet.folder import open_fleet
from fedkit.report import live as live_module
from fedkit.report import plotly_library
from fedkit.report.live import Live
from fedkit.report.serving import served
from tests.processes import HANG, left_running, started, wait_for
from tests.report.run_folders import EVIL, hostile, make_run, step, whole, write_steps


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read whenever it is asked, and leave 2 MB of JavaScript out."""
    monkeypatch.setattr(live_module, "_SHARE", 0)
    monkeypatch.setattr(plotly_library, "packed", lambda: "")


class Client:
    """Asks a server as anything may that reaches it."""

    def __init__(self, url: str) -> None:
        address = url.removeprefix("http://").partition("/")[0]
        self.host, _, port = address.rpartition(":")
        self.port = int(port)

    def ask(
        self, path: str = "/data", method: str = "GET", **headers: str
    ) -> tuple[int, dict[str, str], str]:
        connection = http.client.HTTPConnection(self.host, self.port, timeout=120)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, headers=named)
        answer = connection.getresponse()
        text = answer.read().decode()
        connection.close()
        return answer.status, dict(answer.headers), text

    def body(self) -> str:
        return str(json.loads(self.ask()[2])["body"])


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return whole(tmp_path / "run")


@pytest.fixture
def reader(run: Path) -> Iterator[Client]:
    with served(Live(lambda: [run])) as url:
        yield Client(url)


def test_the_page_is_served_and_says_it_is_live(reader: Client) -> None:
    status, headers, text = reader.ask("/")
    assert status == 200 and headers["Content-Type"].startswith("text/html")
    assert 'id="live"' in text and "connect-src 'self'" in text
    assert headers["X-Frame-Options"] == "DENY" and headers["Referrer-Policy"] == "no-referrer"
    status, headers, text = reader.ask()
    assert status == 200 and set(json.loads(text)) == {"title", "body", "figures"}
    assert reader.ask(method="HEAD")[::2] == (200, "")


def test_what_is_new_is_told_once(run: Path, reader: Client) -> None:
    _, headers, _ = reader.ask()
    assert reader.ask(If_None_Match=headers["ETag"])[0] == 304
    write_steps(run, [step(n) for n in range(3)])
    status, after, text = reader.ask(If_None_Match=headers["ETag"])
    assert status == 200 and after["ETag"] != headers["ETag"]
    figures = json.loads(text)["figures"].values()
    loss = next(f for f in figures if f["layout"]["yaxis"]["title"]["text"] == "loss")
    assert loss["data"][0]["x"] == [0, 1, 2]


def test_a_run_that_is_killed_is_told(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", [step(1)])
    with served(Live(lambda: [folder.path])) as url:
        with folder.held():
            assert "running" in Client(url).body()
        assert "stopped" in Client(url).body()
        with folder.held():
            write_steps(folder.path, [step(1), step(2)])
            assert "running" in Client(url).body()
        assert "stopped" in Client(url).body()


def test_what_is_half_or_missing_is_told_and_the_rest_shown(run: Path, reader: Client) -> None:
    (run / "partition.npz").unlink()
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"round": 9, "ac')
    body = reader.body()
    assert "1 line that cannot be read" in body and "partition.npz: there is none" in body
    (run / "config.toml").rename(run / "elsewhere")
    assert "There is no run yet." in reader.body()
    (run / "elsewhere").rename(run / "config.toml")
    assert "Overview" in reader.body()


def test_a_run_that_begins_later_appears(tmp_path: Path) -> None:
    with served(Live(lambda: newest(tmp_path / "runs"))) as url:
        assert json.loads(Client(url).ask()[2])["title"] == "No run yet"
        for name in ("first", "second"):
            make_run(tmp_path / "runs" / name, [step(1)])
            assert json.loads(Client(url).ask()[2])["title"] == f"Report of {name}"


def test_hostile_runs_are_text(tmp_path: Path) -> None:
    path = hostile(tmp_path, EVIL)
    with served(Live(lambda: [path])) as url:
        text = Client(url).ask()[2]
    assert "<script" not in text and "\x1b" not in text
    assert "<img" not in json.loads(text)["body"]


# Nothing is changed ------------------------------------------------------------------------------


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "ODD"])
def test_other_methods_are_refused(reader: Client, method: str) -> None:
    status, headers, _ = reader.ask("/", method)
    assert status == 501 if method in ("TRACE", "ODD") else status == 405
    assert status == 501 or headers["Allow"] == "GET, HEAD"


SHOWN = ["/?x=/data", "//data", "/data?token=x"]  # what leads the name of a path is one slash
PATHS = [*SHOWN, "/config.toml", "/../config.toml", "/data/", "/%2e%2e/etc/passwd", "/data\\..",
         "http://evil.example/x"]  # fmt: skip


def test_no_request_reads_a_file_by_name_or_changes_one(run: Path, reader: Client) -> None:
    before = contents(run)
    codes = {path: reader.ask(path)[0] for path in PATHS}
    assert [path for path, code in codes.items() if code == 200] == SHOWN
    for method in ("PUT", "POST", "DELETE"):
        assert reader.ask("/config.toml", method)[0] == 405
    assert contents(run) == before


RAW = [b"", b"\r\n\r\n", b"GET\r\n\r\n", b"\x16\x03\x01\x02\x00", b"GET / HTTP/9.9\r\n\r\n",
       b"GET /" + b"x" * 100_000 + b" HTTP/1.1\r\n\r\n", b"GET / HTTP/1.1\r\n" + b"a:b\r\n" * 1000,
       b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\nGET / HTTP"]  # fmt: skip


@pytest.mark.parametrize("raw", RAW, ids=range(len(RAW)))
def test_no_bytes_end_the_server(
    reader: Client, raw: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    place = (reader.host, reader.port)  # which may hang up before the end
    with socket.create_connection(place, 60) as connection, contextlib.suppress(OSError):
        connection.sendall(raw)
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(65536):
            pass
    assert reader.ask()[0] == 200
    assert capfd.readouterr().err == ""


# Whom it answers ---------------------------------------------------------------------------------

OWN = ["127.0.0.1", "127.0.0.1:1", "localhost", "LOCALHOST:80", "[::1]:8000"]
OTHERS = ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "localhost.evil.example",
          "", "127.0.0.1@evil", "localhost:evil", "0.0.0.0", "[::2]"]  # fmt: skip


@pytest.mark.parametrize("name", [*OWN, *OTHERS])
def test_a_browser_that_was_led_here_is_refused(reader: Client, name: str) -> None:
    status, _, text = reader.ask(Host=name)
    assert status == (200 if name in OWN else 403)
    assert name in OWN or "body" not in text


def another_address() -> str:
    """An address of this machine that others reach, or ""."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # nothing is sent
        except OSError:
            return ""
        found: str = probe.getsockname()[0]
    return "" if found.startswith(("127.", "0.")) else found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        port: int = probe.getsockname()[1]
    return port


def test_by_default_no_other_address_answers(run: Path) -> None:
    if not (address := another_address()):
        pytest.skip("this machine has no address but its loopback")
    with served(Live(lambda: [run])) as url, pytest.raises(ConnectionRefusedError):
        socket.create_connection((address, Client(url).port), 60)


def test_another_address_needs_the_token(run: Path) -> None:
    if not (address := another_address()):
        pytest.skip("this machine has no address but its loopback")
    with served(Live(lambda: [run]), f"{address}:{free_port()}") as url:
        token = url.partition("/?token=")[2]
        assert len(token) >= 20
        other = Client(url)
        for given in ("", "?token=", "?token=x", f"?token={token[:-1]}", f"?tokem={token}",
                      "?token=%ff%00"):  # fmt: skip
            assert other.ask(f"/data{given}")[0] == 403
        assert other.ask(f"/data?token={token}", Host="fleet.example")[0] == 200


def test_two_servers_have_two_tokens(run: Path) -> None:
    if not (address := another_address()):
        pytest.skip("this machine has no address but its loopback")
    places = [f"{address}:{free_port()}" for _ in range(2)]
    with served(Live(lambda: [run]), places[0]) as one, served(Live(lambda: []), places[1]) as two:
        assert one.partition("token")[2] != two.partition("token")[2]


def test_an_address_that_is_taken_or_none_is_refused(run: Path, reader: Client) -> None:
    for address in (f"127.0.0.1:{reader.port}", "127.0.0.1", "0.0.0.0:80", "127.0.0.1:99999"):
        with pytest.raises(ConfigError, match="address"), served(Live(lambda: [run]), address):
            raise AssertionError("it listens")


def test_the_server_ends_with_its_block(run: Path) -> None:
    with served(Live(lambda: [run])) as url:
        other = Client(url)
        assert other.ask()[0] == 200
    with pytest.raises(ConnectionRefusedError):
        other.ask()


def test_many_ask_at_once_while_a_run_writes(run: Path, reader: Client) -> None:
    found: list[Any] = []

    def ask() -> None:
        found.extend(reader.ask()[0] for _ in range(10))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for number in range(20):
        write_steps(run, [step(n) for n in range(number)])
    for thread in threads:
        thread.join(120)
    assert found == [200] * 40
    last = json.loads(reader.ask()[2])["figures"].values()
    assert next(f for f in last if f["data"][0]["type"] == "scatter")["data"][0]["x"][-1] == 18


# As a person starts it ---------------------------------------------------------------------------


def told_address(process: subprocess.Popen[str]) -> Client:
    assert process.stderr is not None
    line = next(line for line in process.stderr if line.startswith("live: "))
    return Client(line.split()[1])


@pytest.mark.slow
def test_a_run_is_shown_live_and_the_server_ends_with_it(tmp_path: Path) -> None:
    words = ["--live", "--quick", "--in-process", "--devices=2", "--rounds=500", "--name=a"]
    out = f"--out={tmp_path / 'runs'}"
    with started(tmp_path, "-m", "fedkit", "run", *words, out) as process:
        reader = told_address(process)
        wait_for(lambda: "of 500" in reader.body() or "running" in reader.body())
        before = reader.ask()[1]["ETag"]
        wait_for(lambda: reader.ask(If_None_Match=before)[0] == 200)
        process.kill()
        process.wait(HANG)
        with pytest.raises(ConnectionRefusedError):
            reader.ask()
        wait_for(lambda: not left_running(f"FEDKIT_TEST={tmp_path}"))


@pytest.mark.slow
def test_a_fleet_is_watched_until_a_person_stops_it(tmp_path: Path) -> None:
    fleet = ["-m", "fedkit", "fleet"]
    subprocess.run([sys.executable, *fleet, "init", str(tmp_path / "f"), "--devices=2"], check=True)
    with started(tmp_path, *fleet, "watch", str(tmp_path / "f")) as process:
        reader = told_address(process)
        assert "There is no run yet." in reader.body()
        make_run(open_fleet(tmp_path / "f").runs / "one", [step(1)])
        wait_for(lambda: "Overview" in reader.body())
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=HANG)
        assert process.returncode == 0 and "Traceback" not in err
