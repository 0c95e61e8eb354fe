"""Real servers on a lab host, each with its own configuration in the lab's directory and none of the system's.

Every `start_*` function returns once the server's port is open, and raises KernelError with the end of the
server's log if it does not come up. They live until `Service.stop` or the lab's down, whichever is first.
"""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fastmasq.errors import KernelError
from fastmasq.lab import hosts
from fastmasq.lab.topology import SERVER_ADDRESS, Lab

PAYLOAD_BYTES = 100 * 1024 * 1024
WEB_NAME = "www.example.test"
LONG_NAME = "long.example.test"
IPERF_PORT = 5201

_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class Service:
    """A running server: its process, its directory, and where it logs."""

    process: subprocess.Popen
    directory: Path
    log: Path

    def stop(self) -> None:
        """End the server; one that has ended already is fine too."""
        self.process.terminate()
        try:
            self.process.wait(3)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


@dataclass(frozen=True)
class Payload:
    """A file of pseudo-random bytes and the SHA-256 it must arrive with."""

    path: Path
    sha256: str
    size: int


def make_payload(path: Path, size: int = PAYLOAD_BYTES) -> Payload:
    """Write size pseudo-random bytes, the same on every run. Raises KernelError if they do not fit."""
    source = random.Random(1999)
    digest = hashlib.sha256()
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with path.open("wb") as file:
            for start in range(0, size, _CHUNK_BYTES):
                piece = source.randbytes(min(_CHUNK_BYTES, size - start))
                digest.update(piece)
                file.write(piece)
    except OSError as error:
        raise KernelError(f"{path}: cannot write {size} bytes of test data: {error.strerror}") from None
    return Payload(path, digest.hexdigest(), size)


def start_dns(lab: Lab, host: str = "server") -> Service:
    """Start dnsmasq: knows WEB_NAME (SERVER_ADDRESS) and LONG_NAME, text too long for a plain UDP answer."""
    directory = _directory(lab, host, "dns")
    configuration = directory / "dnsmasq.conf"
    texts = "".join(f"txt-record={LONG_NAME},{number:03}{'x' * 200}\n" for number in range(6))
    configuration.write_text(
        "no-resolv\nno-hosts\nkeep-in-foreground\nbind-interfaces\nuser=root\n"
        f"pid-file={directory}/pid\n"
        f"listen-address={SERVER_ADDRESS}\n"
        f"host-record={WEB_NAME},{SERVER_ADDRESS}\n"
        f"{texts}"
    )
    return _start(lab, host, directory, [_program("dnsmasq"), f"--conf-file={configuration}"], 53, "udp")


def start_http(lab: Lab, root: Path, host: str = "server") -> Service:
    """Start nginx on port 80, serving the files below root."""
    directory = _directory(lab, host, "http")
    configuration = directory / "nginx.conf"
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    temporary = "\n".join(f"  {kind}_temp_path {directory}/{kind};" for kind in kinds)
    configuration.write_text(
        f"daemon off;\nuser root;\nworker_processes 1;\npid {directory}/pid;\n"
        "events { worker_connections 1024; }\n"
        f"http {{\n  access_log off;\n  sendfile on;\n{temporary}\n"
        f"  server {{ listen 80; root {root}; }}\n}}\n"
    )
    argv = [_program("nginx"), "-e", str(directory / "log"), "-p", str(directory), "-c", str(configuration)]
    return _start(lab, host, directory, argv, 80)


def start_iperf(lab: Lab, host: str = "server") -> Service:
    """Start an iperf3 server on IPERF_PORT; it serves one test after the other."""
    argv = [_program("iperf3"), "-s", "-p", str(IPERF_PORT)]
    return _start(lab, host, _directory(lab, host, "iperf"), argv, IPERF_PORT)


@dataclass(frozen=True)
class SshService(Service):
    """An sshd with fresh host and client keys."""

    def client(self, *arguments: str) -> list[str]:
        """Return the ssh command line that logs in as root, checking the server's key against the one we made."""
        options = [
            "BatchMode=yes",
            "ConnectTimeout=5",
            f"IdentityFile={self.directory}/client_key",
            "IdentitiesOnly=yes",
            f"UserKnownHostsFile={self.directory}/known_hosts",
            "StrictHostKeyChecking=yes",
        ]
        spelled = [item for option in options for item in ("-o", option)]
        return ["ssh", "-F", "none", *spelled, f"root@{SERVER_ADDRESS}", *arguments]


def start_ssh(lab: Lab, host: str = "server") -> SshService:
    """Start sshd on port 22 with keys made for this run; only the client key made here logs in."""
    directory = _directory(lab, host, "ssh")
    for name in ("host_key", "client_key"):
        hosts.checked(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "lab", "-f", str(directory / name)])
    host_key = (directory / "host_key.pub").read_text()
    (directory / "known_hosts").write_text(f"{SERVER_ADDRESS} {host_key}")
    shutil.copy(directory / "client_key.pub", directory / "authorized_keys")
    (directory / "sshd_config").write_text(
        f"Port 22\nListenAddress {SERVER_ADDRESS}\nHostKey /run/host_key\nPidFile /run/pid\n"
        "AuthorizedKeysFile /run/authorized_keys\nPermitRootLogin prohibit-password\n"
        "PasswordAuthentication no\nKbdInteractiveAuthentication no\nStrictModes no\nUseDNS no\nPrintMotd no\n"
        f"UsePAM {'yes' if _root_is_locked() else 'no'}\n"
    )
    # sshd insists on an empty /run/sshd. It gets our directory as its /run, in the mount namespace that
    # `ip netns exec` gives it, so that the machine's own /run stays as it is.
    (directory / "sshd").mkdir()
    script = 'mount --bind "$1" /run && exec "$2" -D -e -f /run/sshd_config'
    argv = ["sh", "-c", script, "sh", str(directory), _program("sshd")]
    service = _start(lab, host, directory, argv, 22)
    return SshService(service.process, service.directory, service.log)


def start_ftp(lab: Lab, root: Path, host: str = "server") -> Service:
    """Start vsftpd on port 21: anonymous, passive, reads below root and writes into its `upload` folder."""
    directory = _directory(lab, host, "ftp")
    (directory / "empty").mkdir()
    upload = root / "upload"
    upload.mkdir(exist_ok=True)
    shutil.chown(upload, "ftp")
    configuration = directory / "vsftpd.conf"
    configuration.write_text(
        "listen=YES\nbackground=NO\nlocal_enable=NO\nanonymous_enable=YES\nno_anon_password=YES\n"
        "write_enable=YES\nanon_upload_enable=YES\nanon_umask=022\nftp_username=ftp\n"
        f"anon_root={root}\nsecure_chroot_dir={directory}/empty\n"
        "pasv_enable=YES\nport_enable=NO\nisolate=NO\nisolate_network=NO\nseccomp_sandbox=NO\n"
        f"xferlog_enable=NO\nvsftpd_log_file={directory}/log\n"
    )
    return _start(lab, host, directory, [_program("vsftpd"), str(configuration)], 21)


def _directory(lab: Lab, host: str, name: str) -> Path:
    """Return a fresh directory for one service of one host."""
    directory = lab.directory / host / name
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    return directory


def _program(name: str) -> str:
    """Return the full path of a server program, also where PATH lacks sbin. Raises KernelError if it is missing."""
    path = shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if path is None:
        raise KernelError(f"the lab needs the program {name!r}: install it, or run scripts/install")
    return path


def _start(lab: Lab, host: str, directory: Path, argv: Sequence[str], port: int, protocol: str = "tcp") -> Service:
    """Start a server and wait for its port; its output goes to `log` in its directory.

    Standard input is the log as well: vsftpd writes its complaints there.
    """
    log = directory / "log"
    with log.open("ab") as output:
        process = lab.popen(host, argv, stdin=output, stdout=output, stderr=output)
    service = Service(process, directory, log)
    if not hosts.wait_for_port(process, port, protocol):
        service.stop()
        end = "; ".join(log.read_text(errors="replace").split("\n")[-4:]).strip("; ") or "it logged nothing"
        raise KernelError(f"{directory.name} server on {host} did not open {protocol} port {port}: {end}")
    return service


def _root_is_locked() -> bool:
    """Return whether root's password is locked; sshd then lets root in by key only through PAM."""
    rows = Path("/etc/shadow").read_text().splitlines()
    return any(row.startswith("root:!") for row in rows)
