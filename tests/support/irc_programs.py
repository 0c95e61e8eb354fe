"""An IRC server that people use, ngircd, and WeeChat, which sends and takes files by DCC, on hosts of a lab."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from fastmasq.lab import hosts
from tests.support.lab_network import Network

IRC_PORT = 6667
_UNPACKED = Path(__file__).parents[2] / ".venv/unpacked"  # scripts/install says why
_WEECHAT = _UNPACKED / "weechat-headless/usr/bin/weechat-headless"


def start_ngircd(net: Network, host: str, directory: Path) -> Path:
    """Start an IRC server that asks nobody who a client is; return what it logs."""
    configuration = directory / "ngircd.conf"
    configuration.write_text(
        "[Global]\nName = irc.lab\nInfo = lab\nMotdPhrase = hello\nServerUID = 65534\nServerGID = 65534\n"
        "[Limits]\nMaxConnectionsIP = 0\n[Options]\nDNS = no\nIdent = no\nPAM = no\n"
    )
    argv = [str(_UNPACKED / "ngircd/usr/sbin/ngircd"), "--nodaemon", "--config", str(configuration)]
    log = directory / "ngircd.log"
    assert hosts.wait_for_port(_start(net, host, argv, log), IRC_PORT, "tcp"), log.read_text()
    return log


class WeeChat:
    """A client with a name. It takes every file that it is offered, and goes on with those that it has in part.

    It does `commands` when the server has welcomed it.
    """

    def __init__(self, net: Network, host: str, directory: Path, nick: str, server: str, *commands: str) -> None:
        place = directory / nick
        self.files = place / "files"
        self.files.mkdir(parents=True, exist_ok=True)
        settings = {
            "irc.server.lab.nicks": nick,
            "irc.server.lab.command": "\\;".join(commands),  # what runs has commands between ";", too
            "irc.server.lab.autoreconnect": "off",
            "irc.server.lab.anti_flood_prio_low": "0",
            "irc.server.lab.anti_flood_prio_high": "0",
            "xfer.file.auto_accept_files": "on",
            "xfer.file.auto_resume": "on",
            "xfer.file.download_path": str(self.files),
            "xfer.file.use_nick_in_filename": "off",
            "xfer.file.upload_path": "/",
            "logger.file.auto_log": "off",
        }
        run = [f"/server add lab {server}/{IRC_PORT}", *(f"/set {name} {value}" for name, value in settings.items())]
        argv = [str(_WEECHAT), "--dir", str(place / "home"), "--stdout"]
        for command in (*run, "/connect lab"):
            argv += ["--run-command", command]
        _start(net, host, argv, place / "log")


def _start(net: Network, host: str, argv: Sequence[str], output: Path) -> subprocess.Popen[bytes]:
    libraries = _UNPACKED / "libident/usr/lib/x86_64-linux-gnu"
    plugins = _UNPACKED / "weechat-core/usr/lib/x86_64-linux-gnu/weechat"
    environment = {**os.environ, "LD_LIBRARY_PATH": str(libraries), "WEECHAT_EXTRA_LIBDIR": str(plugins)}
    with output.open("wb") as log:
        return net.lab.popen(host, argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment)
