"""`fastmasq check` reads the rule files that a configuration names."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from fastmasq.cli.main import fastmasq


@pytest.mark.parametrize(
    ("lines", "strict", "status", "said"),
    [
        ("\nipfwadm -F -a accept -P 99999\n", False, 2, ':2: ipfwadm: invalid protocol "99999" specified; correct the'),
        ("ipchains -A input -j vpn\n", False, 2, ":1: there is no target 'vpn'"),
        ("ipfwadm -0 -a accept\n", True, 2, ":1: ipfwadm: invalid option -- 0; correct the line or remove it"),
        ("ipfwadm -0 -a accept\n", False, 1, ":1: -0 (the digit) is no option; taken as -O, the output rules"),
    ],
)
def test_mistakes_and_repairs_have_their_places(
    tmp_path: Path, lines: str, strict: bool, status: int, said: str
) -> None:
    """The links named do not exist, so that nothing else is ready here: status 1 when the rules are in order."""
    rules, config = tmp_path / "rc.firewall", tmp_path / "fastmasq.toml"
    rules.write_text(lines)
    config.write_text(
        f'[interfaces]\ninside = ["none0"]\noutside = "none1"\n'
        f'[rules]\nfiles = ["{rules}"]\nstrict = {str(strict).lower()}\n'
    )
    done = CliRunner().invoke(fastmasq, ["check", "-c", str(config)])
    assert done.exit_code == status
    assert f"{rules}{said}" in done.output
