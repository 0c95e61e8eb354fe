"""The demo's checks through a gateway that is truly another kernel: user-mode-linux 6.1, without IP of nftables."""

from __future__ import annotations

import json

from fastmasq.kernel import features
from fastmasq.lab import scenario
from fastmasq.lab.topology import Lab
from tests.support import candidate
from tests.support.other_kernel import OtherKernel

RULES = """ipchains -A input -i eth0 -p tcp -d 10.0.0.1 9 -j DENY
ipchains -A forward -i eth1 -s 10.0.0.0/8 -j MASQ
"""
CONFIGURATION = """[interfaces]
inside = ["eth0"]
outside = "eth1"
[rules]
files = ["/run/rules"]
[takeover]
guard = "{guard}"
"""


def test_the_demo_on_another_kernel(lab: Lab) -> None:
    command = candidate.command()
    stage = scenario.set_stage(lab)
    with OtherKernel(lab) as kernel:
        kernel.run("echo 1 >/proc/sys/net/ipv4/ip_forward")
        for number, line in enumerate(RULES.splitlines()):
            kernel.run(f"echo '{line}' >{'>' if number else ''}/run/rules")
        for guard in ("auto", "iptables"):
            kernel.start(command, CONFIGURATION.format(guard=guard))
            status = json.loads(kernel.run(f"{' '.join(command)} status --json"))
            assert status["guard"]["backend"] == ("tc" if guard == "auto" else guard)
            named = {each["use"] for each in status["fallbacks"]}
            assert named == {features.UDP_BURSTS, features.HOST_RULES, features.IDLE_PORTS}
            for check in scenario.CHECKS:
                assert check.run(stage), check.title
            drops = {row["reason"] for row in json.loads(kernel.run(f"{' '.join(command)} status --json"))["drops"]}
            assert drops <= {"ttl_exceeded"}
            kernel.stop()
            assert kernel.run("cat /proc/sys/net/ipv4/ip_forward").strip() == "1"
            assert "fastmasq" not in kernel.run("iptables-legacy-save; tc filter show dev eth0 ingress")
