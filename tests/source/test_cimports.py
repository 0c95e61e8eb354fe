"""What Cython files cimport: names that they use, and of their own folder no file that comes later."""

from __future__ import annotations

import re

import pytest

from tests.source.cimports import cimported, complaints, unused
from tests.source.test_layers import PACKAGE

ORDER = {  # of the files of a folder: each knows only those before it
    "table": """
        keys bucket index order pattern permits ports siphash
        rows forwards streams wheel tcp_state
        table carried growth filtering holds hosts mappings sessions shortage opening
        masq adoption forward_table
    """,
    "path": """
        verdict links carrier redirects marks match triggers datagrams tunnels punts remembered triggers_and_marks held
        rules packet parse observation untranslated refusal gathering liveness
        state identification rewrite route mss carrying trackers original_destination queue gather cut reply finish
        filter ownership hops hold leave egress
        quote plain followed edited session tunnelled portless proxy hairpin masquerade
        outbound inbound errors answered
        dispatch fragments batch
        forwarder
    """,
}
ARRAY_SIZE = re.compile(
    r"^ +(?!if |elif |while |return )(?:const )?[\w.]+ \**(?!reserved)\w+(?:\[[^\]]*\])*\[\d+\]", re.MULTILINE
)


def test_every_cimported_name_is_used() -> None:
    assert complaints() == []


@pytest.mark.parametrize("folder", ORDER)
def test_no_file_knows_a_later_one(folder: str) -> None:
    order = ORDER[folder].split()
    files = sorted((PACKAGE / folder).glob("*.p[yx][dx]"))
    assert sorted(order) == sorted({path.stem for path in files}), "the order names every file once"
    for path in files:
        known = cimported(path.read_text(), f"fastmasq.{folder}") - {path.stem}
        assert known <= set(order[: order.index(path.stem)]), path.name


@pytest.mark.parametrize("folder", ORDER)
def test_arrays_have_their_sizes_by_name(folder: str) -> None:
    files = (PACKAGE / folder).glob("*.pxd")
    assert [(path.name, match[0]) for path in files for match in ARRAY_SIZE.finditer(path.read_text())] == []


# --- the reader itself -------------------------------------------------------------------------------------------


def test_unused_names_are_found() -> None:
    text = (
        "from libc.stdint cimport uint8_t\n"
        "from fastmasq.wire cimport ipv4, tcp  # and udp\n"
        "from fastmasq.wire.octets cimport (\n    load16, load32 as load,\n)\n\n\n"
        'cdef uint8_t octet = load16(ipv4.TTL)  # load\n"""Not tcp."""\n'
    )
    assert unused(text) == ["tcp", "load"]


def test_cimported_modules_are_found() -> None:
    text = (
        "from fastmasq.path cimport links, verdict as v\n"
        "from fastmasq.path.state cimport Path\n"
        "from fastmasq.table cimport keys\n"
    )
    assert cimported(text, "fastmasq.path") == {"links", "verdict", "state"}


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        ("    Link links[16]\n", True),
        ("    uint64_t ours[CLASSES][1024]\n", True),
        ("    const uint8_t *rows[4]\n", True),
        ("    Link links[LINKS]\n", False),
        ("    link = links[16]\n", False),
        ("    if links[16].up:\n", False),
        ("    uint8_t reserved[3]\n", False),
    ],
)
def test_sizes_in_figures_are_found(line: str, wrong: bool) -> None:
    assert (ARRAY_SIZE.search(line) is not None) == wrong
