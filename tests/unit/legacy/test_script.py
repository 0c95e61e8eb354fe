"""Rule files: taken whole or refused, with the place of every mistake, repair and ignored line."""

from __future__ import annotations

import pytest
from msgspec import Struct

from fastmasq.errors import ConfigurationError
from fastmasq.legacy.requests import Changes, Forwarding, SetDynaddr, SetTimeouts
from fastmasq.legacy.script import READERS, Item, Prepared, forwarding, load, parse, prepare
from fastmasq.policy.chains import Rule, RuleSet
from fastmasq.policy.changes import Change
from tests.support.legacy import NAMES, chains_after


def requests_of(text: str, **options) -> list:
    return [item.request for item in parse(text, "f", NAMES, **options).items]


def warnings_of(text: str, **options) -> list[str]:
    return list(parse(text, "f", NAMES, **options).warnings)


def mistakes_of(text: str, **options) -> list[str]:
    with pytest.raises(ConfigurationError) as caught:
        parse(text, "f", NAMES, **options)
    return str(caught.value).splitlines()


def prepared(tmp_path, text: str, rules: RuleSet | None = None, **options) -> Prepared:
    file = tmp_path / "rc.firewall"
    file.write_text(text)
    return prepare([file], NAMES, rules or RuleSet(), **options)


SCRIPT = """\
#!/bin/sh
# our gateway
PATH=/sbin:/bin
LAN="10.0.0.0/8"
FW=/sbin/ipfwadm
modprobe ip_masq_ftp
$FW -F -f;  $FW -F -p deny &
/sbin/ipfwadm -F -a accept -m \\
    -S $LAN -D any/0 -W ppp0
ipchains -M -S 7200 10 60
echo "Firewall is up" >/dev/console
echo 7 > /proc/sys/net/ipv4/ip_dynaddr
echo 1 > /proc/sys/net/ipv4/ip_forward
/sbin/route add -net 10.0.0.0 eth0
ipfwadm -F -l
exit 0
nonsense (that is never reached
"""


def test_a29_a_whole_script():
    script = parse(SCRIPT, "rc.fw", NAMES)
    assert script.items == (
        Item("rc.fw:7", Changes((Change(do="flush", chain="forward"),))),
        Item("rc.fw:7", Changes((Change(do="policy", chain="forward", target="DENY"),))),
        Item("rc.fw:8", script.items[2].request),
        Item("rc.fw:10", SetTimeouts(7200, 10, 60)),
        Item("rc.fw:12", SetDynaddr(7)),
    )
    assert script.items[2].request.changes[0].rule.match.interface == "ppp0"
    assert script.warnings == (
        "rc.fw:6: ignored: modprobe; fastmasq needs no modules of the kernel",
        "rc.fw:13: ignored: ip_forward; fastmasq forwards in place of the kernel",
        "rc.fw:14: ignored: '/sbin/route add -net 10.0.0.0', a line of another program",
        "rc.fw:15: ignored: ipfwadm would only print something",
    )


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("ipfwadm -F -a yes", 1, 'ipfwadm: invalid policy "yes" specified; correct the line or remove it'),
        (
            "\n\nipchains -A input -n",
            3,
            "ipchains: Illegal option `-n' with this command; correct the line or remove it",
        ),
        (
            "if [ -x /sbin/ipchains ]; then",
            1,
            "'if' needs a shell; run the script with sh, and fastmasq's programs in its",
        ),
        ("case $1 in", 1, "'case' needs a shell"),
        ("(ipfwadm -F -l)", 1, "'(' needs a shell"),
        (". /etc/firewall.rules", 1, "'.' needs a shell"),
        ("sh /etc/firewall.rules", 1, "'sh' needs a shell"),
        ("ipchains-restore < /etc/ipchains.rules", 1, "'ipchains-restore' needs a shell"),
        ("ip netns exec x ipchains -F", 1, "'ip' needs a shell"),
        ("sudo /sbin/ipchains -F", 1, "'sudo' needs a shell"),
        ("grep x /y || exit 1\nipchains -F", 1, "'exit' is run or not by what stands before ||"),
        ("! ipchains -F", 1, "'!' needs a shell"),
        (
            "echo 5 > /proc/sys/net/ipv4/ip_dynaddr && x || echo 1 > /proc/sys/net/ipv4/ip_dynaddr",
            1,
            "is run or not by",
        ),
        ("/etc/rc.d/rc.firewall2", 1, "/etc/rc.d/rc.firewall2 may have rules of its own and is not run; name it in"),
        ("true\n./other.rules start", 2, "./other.rules may have rules of its own"),
        ("/usr/local/sbin/firewall.sh", 1, "/usr/local/sbin/firewall.sh may have rules"),
        ("/etc/init.d/ipchains restart", 1, "/etc/init.d/ipchains may have rules"),
        ("run-parts /etc/fw.d", 1, "run-parts may have rules"),
        ("A=$(ipchains -N x)", 1, "is run within a command substitution"),
        ("ipfwadm -F -p $POLICY", 1, "depends on $POLICY, which is not set in this file; write it out"),
        ("ipfwadm -I -a deny -V ${4}", 1, "depends on argument 4, which is not given; write it out"),
        ("IP=`ifconfig ppp0`\nipfwadm -I -a deny -V $IP", 2, "depends on $IP, which has a value that only a shell can"),
        (
            "ipfwadm -F -a accept\n -m -W ppp0",
            2,
            "begins with the option -m; end the line before it with \\, or name the",
        ),
        ("$FW -F -f", 1, "the program depends on $FW, which is not set in this file; write it out"),
        ("FW=`which ipfwadm`\n$FW", 2, "the program depends on $FW, which has a value that only a shell can find"),
        ("test -x /x && ipfwadm -F -f", 1, "is run or not by what stands before &&; write it on a line of its own"),
        ("ping x && ipfwadm -F -f", 1, "is run or not by what stands before &&; write it on a line of its own"),
        ("ipchains -N x || ipchains -F x", 1, "is run or not by what stands before ||"),
        ("ipchains -X | ipchains -F", 1, "is run while another of our programs runs before |"),
        ("ipautofw -A", 0, ""),
        ("echo 8 > /proc/sys/net/ipv4/ip_dynaddr", 1, "ip_dynaddr takes one number from 0 to 7"),
    ],
)
def test_mistakes_have_their_places(text, line, said):
    if not said:
        assert warnings_of(text) == ["f:1: ignored: 'ipautofw -A', a line of another program"]
        return
    assert mistakes_of(text)[0].startswith(f"f:{line}: {said}")


def test_the_text_of_a_here_document_is_no_rule():
    text = "cat > f <<EOF\nipchains -F input\nEOF\ncat > f <<-'E F'\n\tipchains -F input\n\tE F\nipchains -X\n"
    assert [request.changes[0].do for request in requests_of(text)] == ["delete_chain"]


def test_listings_may_go_where_they_like():
    assert requests_of("ipchains -L -n >/var/log/rules 2>&1\nX=$(ipchains -L -n | wc -l)\n") == []


def test_a_file_of_another_system_is_read_with_a_warning():
    text = "ipchains -F input \\\r\n  -v\r\n"
    assert warnings_of(text) == ["f:1: lines end with a carriage return; taken without"]
    assert len(requests_of(text)) == 1
    assert mistakes_of(text, tolerant=False)[0].startswith("f:1: ")
    with pytest.raises(ConfigurationError, match="f: has zero octets"):
        parse("ipchains\0 -F", "f", NAMES)


SECRETS = {
    "passwd": "secret:x:0:0:root:/root:/usr/sbin/nologin\n",
    "key": "-----secret KEY-----\nsecretAKCAQEA secret\n",
    "hash": "root:$secret$salt:19000:0:99999:7:::\n",
    "braces": "x ${secret/}\n",
    "keys": "10.0.0.2 secret\n",
}


@pytest.mark.parametrize("quoting", [True, False])
@pytest.mark.parametrize("name", SECRETS)
def test_a_secret_that_is_named_as_a_rule_file_is_not_quoted_to_others(name, quoting, monkeypatch):
    """Root sees what stands in a line of no program of ours; a log, and whoever has called sudo, only where."""
    monkeypatch.delenv("SUDO_UID", raising=False)
    said = said_of(SECRETS[name], quoting=quoting)
    assert ("secret" in said) == quoting
    assert "f:1: " in said
    monkeypatch.setenv("SUDO_UID", "1000")
    assert "secret" not in said_of(SECRETS[name], quoting=quoting)


def said_of(text, *, quoting):
    """Return the warnings about a text, or its mistakes."""
    try:
        return "\n".join(parse(text, "f", NAMES, quoting=quoting).warnings)
    except ConfigurationError as error:
        return str(error)


def test_all_mistakes_of_a_file_are_reported():
    assert [line.split(": ")[0] for line in mistakes_of("ipfwadm -q\nipfwadm -F -f\nipchains -q\nfi\n")] == [
        "f:1",
        "f:3",
        "f:4",
    ]


def test_commands_joined_by_and_are_run_when_both_are_ours():
    assert len(requests_of("ipfwadm -F -f && ipfwadm -I -f")) == 2


def test_a15_arguments_are_filled_in():
    text = "ipfwadm -I -a deny -W $1 -V ${4}"
    (request,) = requests_of(text, arguments=("ppp0", "ttyS0", "115200", "200.200.200.200"))
    match = request.changes[0].rule.match
    assert (match.interface, match.interface_address) == ("ppp0", 0xC8C8C8C8)


def test_a1_a31_repairs_are_warned_of_with_their_places():
    assert warnings_of("ipfwadm -0 -a accept\nipchains -A input -j deny") == [
        "f:1: -0 (the digit) is no option; taken as -O, the output rules",
        "f:2: target 'deny': built-in targets are in capitals; taken as DENY",
    ]
    assert mistakes_of("ipfwadm -0 -a accept", tolerant=False) == [
        "f:1: ipfwadm: invalid option -- 0; correct the line or remove it"
    ]


def test_a31_chains_made_before_are_no_misspelt_targets():
    assert warnings_of("ipchains -N deny\nipchains -A input -j deny") == []


def test_a_file_that_cannot_be_read():
    with pytest.raises(ConfigurationError, match="/nowhere/rc: cannot be read: No such file or directory"):
        load("/nowhere/rc", NAMES)


def test_what_is_not_there_is_cleared_away_without_harm_when_tolerant(tmp_path):
    lines = ("-X vpn", "-D input 1", "-F vpn", "-N vpn", "-N vpn", "-A vpn -j ACCEPT")
    text = "".join(f"ipchains {line}\n" for line in lines)
    result = prepared(tmp_path, text)
    assert [change.do for change in result.changes] == ["new_chain", "append"]
    assert [warning.removeprefix(f"{tmp_path}/rc.firewall:") for warning in result.warnings] == [
        "1: left out: no chain 'vpn'; there are input, forward, output",
        "2: left out: chain input has no rule 1",
        "3: left out: no chain 'vpn'; there are input, forward, output",
        "5: left out: there is a chain 'vpn' already",
    ]
    with pytest.raises(ConfigurationError) as caught:
        prepared(tmp_path, text, tolerant=False)
    assert [line.split(":")[1] for line in str(caught.value).splitlines()] == ["1", "2", "3", "5"]


@pytest.mark.parametrize("first", ["ipchains -X vpn", "ipportfw -D -t1.2.3.4/80"])
def test_what_a_shell_would_not_run_after_a_failure_is_not_run(tmp_path, first):
    """Tolerant reading leaves the failure out, and refuses what depends on it."""
    assert prepared(tmp_path, f"{first}; ipchains -P forward MASQ\n").changes
    with pytest.raises(
        ConfigurationError, match=r"rc\.firewall:1: is not run where the command before && fails; write"
    ):
        prepared(tmp_path, f"{first} && ipchains -P forward MASQ\n")
    assert prepared(tmp_path, "ipchains -F input && ipchains -N vpn && ipchains -X vpn && ipchains -F\n").changes


def test_changes_that_cannot_be_made_refuse_the_file(tmp_path):
    rules = RuleSet()
    with pytest.raises(ConfigurationError, match=r"rc.firewall:2: there is no target 'vpn'"):
        prepared(tmp_path, "ipchains -A input -j ACCEPT\nipchains -A input -j vpn\n", rules)
    assert rules.chain("input").rules == []


def test_files_build_on_each_other_and_on_what_is_there(tmp_path):
    first, second = tmp_path / "1", tmp_path / "2"
    first.write_text("ipchains -A input -j vpn\necho 5 > /proc/sys/net/ipv4/ip_dynaddr\n")
    second.write_text("ipchains -D input 1\nipfwadm -M -s 1 2 3\n")
    rules = chains_after("ipchains -N vpn")
    result = prepare([first, second], NAMES, rules)
    assert [change.do for change in result.changes] == ["append", "delete"]
    assert result.changes[0].rule == Rule(target="vpn")
    assert [item.request for item in result.others] == [SetDynaddr(5), SetTimeouts(1, 2, 3)]


class Wanted(Struct):
    """What a reader of one of the forwarding programs returns."""

    kind: str
    changes: tuple[dict, ...] = ()
    method: str = "forwards.change"


def read_forward(words: list[str]) -> Wanted:
    if words[0] == "-L":
        return Wanted("list")
    if words[0] not in ("-C", "-A"):
        raise ConfigurationError("ipportfw: unknown option")
    return Wanted("change", ({"action": "clear" if words[0] == "-C" else "set"},))


def test_a_program_of_forwards_is_read_once_it_is_registered(monkeypatch):
    text = "/sbin/ipportfw -A x\nipportfw -L\n"
    monkeypatch.setitem(READERS, "ipportfw", forwarding(read_forward))
    assert requests_of(text) == [Forwarding("forwards.change", ({"action": "set"},))]
    assert warnings_of(text) == ["f:2: ignored: ipportfw would only print something"]
    assert mistakes_of("ipportfw -X") == ["f:1: ipportfw: unknown option; correct the line or remove it"]


def test_a14_deleting_sets_nothing_up():
    assert warnings_of("ipportfw -D -t1.2.3.4/80\nipportfw -C\n") == []


def test_a14_clearing_what_the_file_has_set_up_is_warned_of(monkeypatch):
    monkeypatch.setitem(READERS, "ipportfw", forwarding(read_forward))
    assert warnings_of("ipportfw -C\nipportfw -A x\nipportfw -C\nipportfw -A y\n") == [
        "f:3: takes away again what was set up by f:2"
    ]
