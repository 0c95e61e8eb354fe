"""The FTP servers that people use, vsftpd and pure-ftpd, on hosts of a lab, with a few files for anybody."""

from __future__ import annotations

import shutil
from pathlib import Path

from fastmasq.lab import hosts
from tests.support.lab_network import Network

PURE_FTPD = Path(__file__).parents[2] / ".venv/unpacked/pure-ftpd/usr/sbin/pure-ftpd"  # scripts/install says why

FILE = "file"  # and a number: 500 lines that say which file it is


def start_vsftpd(net: Network, host: str, directory: Path, port: int = 21) -> None:
    """Start vsftpd, active and passive."""
    place = directory / f"vsftpd-{host}"
    (place / "empty").mkdir(parents=True)
    configuration = place / "conf"
    configuration.write_text(
        f"listen=YES\nlisten_port={port}\nbackground=NO\nlocal_enable=NO\nanonymous_enable=YES\nno_anon_password=YES\n"
        f"ftp_username=ftp\nanon_root={_files(place)}\nsecure_chroot_dir={place}/empty\nport_enable=YES\npasv_enable=YES\n"
        f"isolate=NO\nisolate_network=NO\nseccomp_sandbox=NO\nxferlog_enable=NO\nvsftpd_log_file={place}/log\n"
    )
    _start(net, host, ["/usr/sbin/vsftpd", str(configuration)], place, port)


def start_pure_ftpd(net: Network, host: str, directory: Path, port: int = 21) -> None:
    """Start pure-ftpd, active and passive. What it shows is the home of the user ftp, which is ours for it alone."""
    place = directory / f"pure-ftpd-{host}"
    place.mkdir()
    script = 'mount --bind "$1" ~ftp && shift && exec "$@"'
    options = ["--ipv4only", "--anonymousonly", "--dontresolve", "--bind", str(port), "--pidfile", str(place / "pid")]
    _start(net, host, ["sh", "-c", script, "sh", str(_files(place)), str(PURE_FTPD), *options], place, port)


def _files(place: Path) -> Path:
    """Return a folder with the files, which anybody may read."""
    files = place / "files"
    files.mkdir()
    for number in range(3):
        (files / f"{FILE}{number}").write_text(f"content {number}\n" * 500)
    for folder in (files, *files.parents):
        if folder.is_relative_to("/tmp") or folder == files:
            folder.chmod(folder.stat().st_mode | 0o055)
    shutil.chown(files, "root")
    return files


def _start(net: Network, host: str, argv: list[str], place: Path, port: int) -> None:
    with (place / "output").open("wb") as log:
        process = net.lab.popen(host, argv, stdin=log, stdout=log, stderr=log)
    assert hosts.wait_for_port(process, port, "tcp"), (place / "output").read_text()
