"""The demo's checks: real programs on the inside host talk to real servers through whatever forwards in the gateway.

Every check takes the Stage and returns its figure as text, or raises CheckFailed with one line. Nothing here knows
which forwarder is at work: `throughputs` and the checks run alike against fastmasq and against the kernel.
"""

from __future__ import annotations

import hashlib
import json
import re
import statistics
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fastmasq.errors import FastmasqError
from fastmasq.lab import services
from fastmasq.lab.topology import EXTERNAL_ADDRESS, SERVER_ADDRESS, Lab

UPLOAD_BYTES = 16 * 1024 * 1024
STREAM_SECONDS = 3
PATIENCE_S = 30.0

HOPS = ("10.0.0.1", "200.200.200.1", SERVER_ADDRESS)

_PINGS = 50
_LINES = 20
_CHUNK_BYTES = 1 << 18


class CheckFailed(FastmasqError):
    """A program in the lab did not get what it should."""


@dataclass(frozen=True)
class Stage:
    """A lab of the masquerade network with all servers running, and what the checks compare with."""

    lab: Lab
    ssh: services.SshService
    download: services.Payload
    upload: services.Payload


@dataclass(frozen=True)
class Check:
    """One line of the demo: its title and what it does."""

    title: str
    run: Callable[[Stage], str]


def set_stage(lab: Lab) -> Stage:
    """Start every server the checks need. Raises KernelError if one does not start."""
    root = lab.directory / "files"
    download = services.make_payload(root / "payload.bin")
    upload = services.make_payload(lab.directory / "upload.bin", UPLOAD_BYTES)
    services.start_dns(lab)
    services.start_http(lab, root)
    services.start_iperf(lab)
    services.start_ftp(lab, root)
    return Stage(lab, services.start_ssh(lab), download, upload)


def check_ping(stage: Stage) -> str:
    """Ping: every echo is answered."""
    text = _run(stage, ["ping", "-n", "-c", str(_PINGS), "-i", "0.01", "-W", "1", SERVER_ADDRESS])
    times_ms = [float(value) for value in re.findall(r"time=([\d.]+) ms", text)]
    if len(times_ms) != _PINGS:
        raise CheckFailed(f"{len(times_ms)} of {_PINGS} echo requests were answered")
    return f"{_PINGS} of {_PINGS} answered, median {statistics.median(times_ms):.3f} ms, worst {max(times_ms):.3f} ms"


def check_traceroute(stage: Stage) -> str:
    """Traceroute: each hop shows itself, the gateway by its inside address, and the server is reached."""
    text = _run(stage, ["traceroute", "-n", "-q", "1", "-w", "2", SERVER_ADDRESS])
    hops = tuple(line.split()[1] for line in text.splitlines()[1:])
    if hops != HOPS:
        raise CheckFailed(f"hops are {', '.join(hops)} instead of {', '.join(HOPS)}")
    return " -> ".join(hops)


def check_dns_udp(stage: Stage) -> str:
    """A name resolved over UDP."""
    answer = _dig(stage, services.WEB_NAME, "A", "+notcp")
    if f"\t{SERVER_ADDRESS}\n" not in answer:
        raise CheckFailed(f"dig did not find the address of {services.WEB_NAME}")
    return f"{services.WEB_NAME} is {SERVER_ADDRESS}, {_query_time(answer)}"


def check_dns_tcp(stage: Stage) -> str:
    """A name with an answer too long for UDP, resolved over TCP."""
    answer = _dig(stage, services.LONG_NAME, "TXT", "+tcp")
    size = re.search(r"MSG SIZE\s+rcvd: (\d+)", answer)
    if not size or "(TCP)" not in answer or answer.count("\tTXT\t") < 6:
        raise CheckFailed(f"dig did not get all texts of {services.LONG_NAME} over TCP")
    return f"answer of {size[1]} bytes, {_query_time(answer)}"


def check_http(stage: Stage) -> str:
    """A file fetched over HTTP, compared by its SHA-256."""
    return _fetch(stage, f"http://{SERVER_ADDRESS}/{stage.download.path.name}")


def check_ssh_command(stage: Stage) -> str:
    """A command run over ssh: both hosts have proved themselves by key, and the output is the expected one."""
    started = time.monotonic()
    text = _run(stage, stage.ssh.client("echo $SSH_CONNECTION; seq 20000 | sha256sum"))
    seconds = time.monotonic() - started
    digest = hashlib.sha256("".join(f"{number}\n" for number in range(1, 20001)).encode()).hexdigest()
    connection, _, output = text.partition("\n")
    if not output.startswith(digest):
        raise CheckFailed("the command's output is not what the server must have sent")
    client, port, *_ = connection.split()
    if client != EXTERNAL_ADDRESS:
        raise CheckFailed(f"the server saw {client} instead of {EXTERNAL_ADDRESS}")
    return f"answered in {seconds:.2f} s, the server saw {client}:{port}"


def check_ssh_session(stage: Stage) -> str:
    """An interactive ssh session: each line sent comes back before the next is sent."""
    command = stage.ssh.client("cat")
    times_ms = []
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with stage.lab.popen("inside", command, text=True, **pipes) as session:
        alarm = threading.Timer(PATIENCE_S, session.kill)
        alarm.start()
        try:
            for number in range(_LINES + 1):
                line = f"line {number} of an interactive session\n"
                started = time.monotonic()
                session.stdin.write(line)
                session.stdin.flush()
                if session.stdout.readline() != line:
                    raise CheckFailed(f"line {number} did not come back from the session")
                times_ms.append((time.monotonic() - started) * 1e3)
            session.stdin.close()
            status = session.wait()
        except BrokenPipeError:
            raise CheckFailed("the session broke off") from None
        finally:
            alarm.cancel()
            session.kill()
    if status:
        raise CheckFailed(f"the session ended with status {status}")
    # The first line waits for the login as well.
    return f"{_LINES} lines echoed, median {statistics.median(times_ms[1:]):.2f} ms"


def check_ftp_download(stage: Stage) -> str:
    """A file fetched over passive FTP (EPSV), compared by its SHA-256."""
    return _fetch(stage, f"ftp://{SERVER_ADDRESS}/{stage.download.path.name}")


def check_ftp_upload(stage: Stage) -> str:
    """A file stored over passive FTP (PASV), compared by its SHA-256 on the server."""
    stored = stage.download.path.parent / "upload" / "received.bin"
    stored.unlink(missing_ok=True)
    started = time.monotonic()
    source = str(stage.upload.path)
    url = f"ftp://{SERVER_ADDRESS}/upload/{stored.name}"
    _run(stage, ["curl", "-sS", "--disable-epsv", "--connect-timeout", "5", "-T", source, url])
    seconds = time.monotonic() - started
    if hashlib.sha256(stored.read_bytes()).hexdigest() != stage.upload.sha256:
        raise CheckFailed("the stored file's SHA-256 differs from the one sent")
    return _transfer(stage.upload.size, seconds)


CHECKS = (
    Check("ping", check_ping),
    Check("traceroute", check_traceroute),
    Check("DNS over UDP", check_dns_udp),
    Check("DNS over TCP", check_dns_tcp),
    Check("HTTP download", check_http),
    Check("ssh command", check_ssh_command),
    Check("ssh session", check_ssh_session),
    Check("FTP download, passive", check_ftp_download),
    Check("FTP upload, passive", check_ftp_upload),
)

# What fastmasq may drop of them: packets that traceroute lets die, and resets by an FTP client that has closed, of an
# answer that was being read while the server's acknowledgment of the end went ahead: the server ignores such resets
# (RFC 5961 section 3).
HONEST_DROPS = frozenset({"ttl_exceeded", "tcp_rst_out_of_window"})

STREAMS: dict[str, tuple[str, ...]] = {
    "iperf3 upload": (),
    "iperf3 download": ("--reverse",),
    "iperf3 8 streams": ("--parallel", "8"),
}


def throughput(stage: Stage, options: Sequence[str]) -> float:
    """Return bit/s that arrived in one iperf3 run of STREAM_SECONDS from the inside host. Raises CheckFailed."""
    address = ["-c", SERVER_ADDRESS, "-p", str(services.IPERF_PORT), "--connect-timeout", "5000"]
    argv = ["iperf3", "--json", "-t", str(STREAM_SECONDS), *address, *options]
    done = _attempt(stage, argv)
    try:
        report = json.loads(done.stdout)
    except ValueError:
        raise CheckFailed(f"iperf3: {_last_line(done)}") from None
    if "error" in report:
        raise CheckFailed(f"iperf3: {report['error']}")
    return float(report["end"]["sum_received"]["bits_per_second"])


def format_bit_rate(bits_per_second: float) -> str:
    """Return "12.34 Gbit/s"."""
    return f"{bits_per_second / 1e9:.2f} Gbit/s"


def _dig(stage: Stage, name: str, kind: str, *options: str) -> str:
    return _run(stage, ["dig", "-u", "+tries=2", "+time=2", *options, f"@{SERVER_ADDRESS}", name, kind])


def _query_time(answer: str) -> str:
    found = re.search(r"Query time: (\d+) usec", answer)
    return f"in {int(found[1]) / 1e3:.2f} ms" if found else "time unknown"


def _fetch(stage: Stage, url: str) -> str:
    """Fetch the download payload with curl and compare its SHA-256 while it arrives."""
    argv = ["curl", "-sS", "--connect-timeout", "5", "--max-time", str(PATIENCE_S), url]
    digest = hashlib.sha256()
    size = 0
    started = time.monotonic()
    with stage.lab.popen("inside", argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as curl:
        try:
            while piece := curl.stdout.read(_CHUNK_BYTES):
                digest.update(piece)
                size += len(piece)
            complaint = curl.stderr.read().decode(errors="replace").strip()
        finally:
            curl.kill()
    seconds = time.monotonic() - started
    if size != stage.download.size:
        raise CheckFailed(f"{size} of {stage.download.size} bytes arrived: {complaint or 'no message'}")
    if digest.hexdigest() != stage.download.sha256:
        raise CheckFailed(f"{size} bytes arrived, but their SHA-256 differs")
    return _transfer(size, seconds)


def _transfer(size: int, seconds: float) -> str:
    return f"{size / 1e6:.1f} MB in {seconds:.2f} s, {format_bit_rate(size * 8 / seconds)}, sha256 equal"


def _run(stage: Stage, argv: Sequence[str]) -> str:
    """Run a program on the inside host and return its output. Raises CheckFailed with its last line if it fails."""
    done = _attempt(stage, argv)
    if done.returncode:
        raise CheckFailed(f"{argv[0]} ended with status {done.returncode}: {_last_line(done)}")
    return done.stdout


def _attempt(stage: Stage, argv: Sequence[str]) -> subprocess.CompletedProcess:
    try:
        return stage.lab.exec("inside", argv, capture_output=True, text=True, timeout=PATIENCE_S)
    except subprocess.TimeoutExpired:
        raise CheckFailed(f"{argv[0]} got no further within {PATIENCE_S:g} s") from None


def _last_line(done: subprocess.CompletedProcess) -> str:
    lines = (done.stderr.strip() or done.stdout.strip()).splitlines()
    return lines[-1] if lines else "no message"
