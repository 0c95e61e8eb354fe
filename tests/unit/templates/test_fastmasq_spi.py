"""fastmasq-spi, the program for inside hosts: the kernel's SAs, what the gateway lacks of them, its configuration."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import json
import os
import socket
import subprocess
import sys
import threading

import pytest

from fastmasq.advice.templates import FOLDER

PROGRAM = FOLDER / "updown/fastmasq-spi"
HOST, REMOTE, OTHER = "10.0.0.2", "199.0.0.1", "199.0.0.2"


@pytest.fixture(scope="module")
def spi():
    loader = importlib.machinery.SourceFileLoader("fastmasq_spi", str(PROGRAM))
    spec = importlib.util.spec_from_loader("fastmasq_spi", loader)
    module = importlib.util.module_from_spec(spec)
    sys.dont_write_bytecode, before = True, sys.dont_write_bytecode
    loader.exec_module(module)
    sys.dont_write_bytecode = before
    return module


def run(*arguments, **options):
    return subprocess.run(
        [sys.executable, str(PROGRAM), *arguments], capture_output=True, text=True, timeout=20, **options
    )


def state(source, destination, number, added="19:00:00", extra=""):
    """Return an SA as iproute2 6.1 prints it with -s."""
    return (
        f"src {source} dst {destination}\n"
        f"\tproto esp spi 0x{number:08x}({number}) reqid 1(0x00000001) mode tunnel\n"
        "\treplay-window 32 seq 0x00000000 flag af-unspec (0x00100000)\n"
        "\tauth-trunc hmac(sha256) 0x00 (256 bits) 128\n"
        f"\tenc cbc(aes) 0x00 (128 bits)\n{extra}"
        "\tlifetime config:\n\t  limit: soft (INF)(bytes), hard (INF)(bytes)\n"
        "\tlifetime current:\n\t  0(bytes), 0(packets)\n"
        f"\t  add 2026-11-26 {added} use -\n"
        "\tstats:\n\t  replay-window 0 replay 0 failed 0\n"
    )


def test_esp_is_read_oldest_first(spi):
    text = state(HOST, REMOTE, 0x2000, "19:00:01") + state(REMOTE, HOST, 0x5000, "19:00:00")
    assert spi.parse_sas(text) == [(REMOTE, HOST, 0x5000), (HOST, REMOTE, 0x2000)]
    assert spi.parse_sas("") == []


def test_all_else_is_left_out(spi):
    in_udp = state(HOST, REMOTE, 0x2000, extra="\tencap type espinudp sport 4500 dport 4500 addr 0.0.0.0\n")
    others = state("fd00::2", "fd00::1", 0x2000) + state(HOST, REMOTE, 0x2000).replace("proto esp", "proto ah")
    wanted_only = state(HOST, REMOTE, 0)  # the kernel has asked the IKE daemon for an SA
    assert spi.parse_sas(in_udp + others + wanted_only) == []


@pytest.mark.parametrize(
    ("kernel", "told", "new", "gone"),
    [
        ([], [], [], []),
        ([("in", 5), ("out", 1)], [], [(REMOTE, 5, 1)], []),
        ([("in", 5), ("out", 1)], [(REMOTE, 5, 1)], [], []),
        ([("in", 5)], [], [(REMOTE, 5, 0)], []),
        ([("in", 5)], [(REMOTE, 5, None)], [], []),
        ([("in", 5), ("out", 1)], [(REMOTE, 5, None)], [(REMOTE, 5, 1)], []),
        ([("out", 1)], [], [], []),
        ([("out", 1)], [(REMOTE, 5, 1)], [], [(REMOTE, 5, 1)]),
        ([("in", 5), ("out", 1), ("in", 6), ("out", 2)], [(REMOTE, 5, 1)], [(REMOTE, 6, 2)], []),
        ([("in", 5), ("out", 1), ("in", 6), ("out", 2)], [(REMOTE, 5, 2)], [(REMOTE, 6, 1)], []),
        ([("in", 6), ("out", 2)], [(REMOTE, 5, 1)], [(REMOTE, 6, 2)], [(REMOTE, 5, 1)]),
        ([("in", 5), ("out", 2)], [(REMOTE, 5, 1)], [(REMOTE, 5, 2)], []),
        ([("in", 5)], [(REMOTE, 5, 1)], [], []),
        ([("in", 5), ("out", 1)], [(OTHER, 5, 1)], [(REMOTE, 5, 1)], [(OTHER, 5, 1)]),
    ],
)
def test_what_the_gateway_lacks(spi, kernel, told, new, gone):
    sas = [(REMOTE, HOST, number) if way == "in" else (HOST, REMOTE, number) for way, number in kernel]
    assert spi.missing([*sas, ("10.0.0.9", REMOTE, 9), (REMOTE, "10.0.0.9", 9)], HOST, told) == (new, gone)


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("", ": gateway is missing"),
        ("gateway = 10.0.0.1\n", ": key is missing"),
        ("gateway = 10.0.0.1\nsecret = x\n", ":2: not gateway, port or key = value"),
        ("gateway =\n", ":1: not gateway, port or key = value"),
        ("gateway = g\nkey = k\nport = many\n", ": port many is not a port"),
        ("gateway = g\nkey = k\nport = 65536\n", ": port 65536 is not a port"),
    ],
)
def test_mistakes_in_the_configuration(tmp_path, text, wrong):
    path = tmp_path / "spi.conf"
    path.touch(0o600)
    path.write_text(text)
    done = run("-c", str(path), "list")
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"fastmasq-spi: {path}{wrong}\n")


def test_a_configuration_that_others_can_read(tmp_path):
    path = tmp_path / "spi.conf"
    path.write_text("gateway = 10.0.0.1\nkey = k\n")
    path.chmod(0o644)
    assert "others than its owner may read the key" in run("-c", str(path), "list").stderr
    missing = run("list", env={"FASTMASQ_SPI_CONF": "/no/where"})
    assert (missing.returncode, missing.stderr[:24]) == (2, "fastmasq-spi: /no/where:")


@pytest.mark.parametrize("arguments", [[], ["add", REMOTE, "255"], ["add", REMOTE], ["delete", REMOTE, "x"], ["fly"]])
def test_wrong_usage(arguments):
    done = run(*arguments)
    assert done.returncode == 2 and done.stderr.startswith("usage: fastmasq-spi")


@pytest.mark.parametrize(
    ("said", "text"),
    [
        (b"", "the connection was closed without an answer"),
        (b"hello\n", "an answer that is not fastmasq's; who listens there?"),
        (b"[]\n", "an answer that is not fastmasq's"),
        (b'{"challenge": 1}\n', "an answer that is not fastmasq's"),
        (json.dumps({"error": {"message": "no key", "exit_status": 1}}).encode() + b"\n", "the gateway says: no key"),
    ],
)
def test_gateways_that_do_not_answer_as_they_should(tmp_path, said, text):
    path = tmp_path / "spi.conf"
    path.touch(0o600)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        path.write_text(f"gateway = 127.0.0.1\nport = {listener.getsockname()[1]}\nkey = a-long-secret-key\n")
        thread = threading.Thread(target=answer_once, args=(listener, said))
        thread.start()
        done = run("-c", str(path), "list")
        thread.join()
    assert done.returncode == 1 and text in done.stderr and done.stderr.count("\n") == 1


def test_watching_looks_again_when_nothing_changes(spi, monkeypatch):
    tries = []

    def synchronise(gateway, lifetime):
        tries.append(lifetime)
        if len(tries) == 3:
            os.close(write_end)

    read_end, write_end = os.pipe()
    monkeypatch.setattr(spi, "LOOK_S", 0.001)
    monkeypatch.setattr(spi, "synchronise", synchronise)
    with pytest.raises(spi.Failure):
        spi.follow(None, None, read_end)
    os.close(read_end)
    assert len(tries) == 3


def test_watching_goes_on_while_the_gateway_is_away(spi, monkeypatch, capsys):
    """It tries again by itself, complains once for each trouble, and ends with `ip xfrm monitor`."""
    away, tries = [True, True, True, False, True], []

    def synchronise(gateway, lifetime):
        tries.append(lifetime)
        if len(tries) == len(away):
            os.close(write_end)
        if away[len(tries) - 1]:
            raise spi.Failure("nobody is there")
        os.write(write_end, b"an SA has changed")

    read_end, write_end = os.pipe()
    monkeypatch.setattr(spi, "RETRY_S", 0.001)
    monkeypatch.setattr(spi, "synchronise", synchronise)
    with pytest.raises(spi.Failure, match="ip xfrm monitor has ended"):
        spi.follow(None, 60, read_end)
    os.close(read_end)
    assert tries == [60] * len(away)
    assert capsys.readouterr().err == "fastmasq-spi: nobody is there\n" * 2


def answer_once(listener, said):
    connection, _ = listener.accept()
    with connection:
        connection.sendall(said)


def test_nobody_listens(tmp_path):
    path = tmp_path / "spi.conf"
    path.touch(0o600)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        path.write_text(f"gateway = 127.0.0.1\nport = {taken.getsockname()[1]}\nkey = a-long-secret-key\n")
        done = run("-c", str(path), "list")
    assert done.returncode == 1 and "Connection refused; is fastmasq running there, with [vpn] preload?" in done.stderr
