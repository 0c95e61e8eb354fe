"""`fastmasq esp`: what it asks the forwarder for, and how it says what is wrong."""

from __future__ import annotations

import ast
import json
import subprocess

import pytest

SA = ("--inside", "10.0.0.2", "--remote", "199.0.0.1", "--inbound", "0x5000")


@pytest.fixture
def esp(run, forwarder):
    return lambda *arguments: run("esp", *arguments, "--socket", forwarder.path)


@pytest.mark.parametrize(
    ("arguments", "asked"),
    [
        (("add", *SA), {"do": "add", "inside": "10.0.0.2", "remote": "199.0.0.1", "inbound_spi": 0x5000}),
        (
            ("replace", *SA, "--outbound", "4096", "--masq", "200.200.200.200", "--lifetime", "1h"),
            {
                "do": "replace",
                "inside": "10.0.0.2",
                "remote": "199.0.0.1",
                "inbound_spi": 0x5000,
                "outbound_spi": 4096,
                "masq": "200.200.200.200",
                "lifetime_s": 3600,
            },
        ),
        (
            ("add", *SA, "--lifetime", "until-deleted"),
            {
                "do": "add",
                "inside": "10.0.0.2",
                "remote": "199.0.0.1",
                "inbound_spi": 0x5000,
                "lifetime_s": "until-deleted",
            },
        ),
        (
            ("delete", "--remote", "199.0.0.1", "--inbound", "0XFFFFFFFF"),
            {"do": "delete", "remote": "199.0.0.1", "inbound_spi": 0xFFFFFFFF},
        ),
        (("flush",), {"do": "flush"}),
        (("flush", "--inside", "10.0.0.2"), {"do": "flush", "inside": "10.0.0.2"}),
    ],
)
def test_changes(esp, forwarder, arguments, asked):
    result = esp(*arguments)
    assert (result.exit_code, result.output) == (0, "")
    assert forwarder.asked == [asked]


@pytest.mark.parametrize(
    ("arguments", "wrong"),
    [
        (("add", *SA[:-1], "255"), "255 cannot be an SPI; they are 256 to 0xffffffff"),
        (("add", *SA[:-1], "spi"), "'spi' is not an SPI; write for example 0xc1a2b3c4"),
        (("add", *SA, "--outbound", "0x100000000"), "cannot be an SPI"),
        (("add", *SA, "--lifetime", "soon"), "'soon' is not a lifetime"),
        (("add", *SA, "--lifetime", "0"), "0 is too short"),
        (("add", *SA, "--inside", "x"), "'x' is not an IPv4 address"),
        (("add", *SA[2:]), "Missing option '--inside'"),
    ],
)
def test_wrong_usage(esp, forwarder, arguments, wrong):
    result = esp(*arguments)
    assert result.exit_code == 2 and wrong in result.stderr
    assert forwarder.asked == []


def test_refusals_are_one_line_and_status_1(esp, forwarder):
    forwarder.refusal = ("EEXIST", "SPI 5000 from 199.0.0.1 belongs to 10.0.0.3 already")
    result = esp("add", *SA)
    assert (result.exit_code, result.stderr) == (1, "fastmasq: SPI 5000 from 199.0.0.1 belongs to 10.0.0.3 already\n")
    forwarder.refusal = ("EINVAL", "masq: 1.2.3.4 is no external address of this gateway")
    assert esp("add", *SA).exit_code == 2


def test_list(esp, forwarder):
    assert esp("list").output == "no SAs were told\n"
    ends = {"inside": "10.0.0.2", "masq": "200.200.200.200", "remote": "199.0.0.1"}
    forwarder.sas = [
        {**ends, "inbound_spi": 0x5000, "outbound_spi": None, "lifetime_s": None, "age_s": 1.0, "left_s": 1799.0},
        {
            **ends,
            "inbound_spi": 1 << 31,
            "outbound_spi": 0x1000,
            "lifetime_s": "until-deleted",
            "age_s": 5.0,
            "left_s": None,
        },
    ]
    lines = esp("list", "--inside", "10.0.0.2").stdout.splitlines()
    assert forwarder.asked[-1] == {"inside": "10.0.0.2"}
    assert lines[0].split() == ["Inside", "External", "Remote", "SPI", "out", "SPI", "in", "Age", "Left"]
    assert lines[1].split()[3:5] == ["-", "00005000"]
    assert lines[2].split()[3:5] == ["00001000", "80000000"] and lines[2].endswith("until-deleted")
    assert json.loads(esp("list", "--json").stdout) == forwarder.sas


@pytest.mark.parametrize("name", ["strongswan", "libreswan"])
def test_updown_scripts_are_printed_and_are_shell(run, name):
    text = run("esp", "script", name).stdout
    assert text.startswith("#!/bin/sh\n") and "fastmasq-spi" in text
    assert subprocess.run(["sh", "-n"], input=text, text=True).returncode == 0


def test_the_client_is_printed_and_is_python_3_6(run):
    text = run("esp", "script", "client").stdout
    assert text.startswith("#!/usr/bin/env python3\n")
    ast.parse(text, feature_version=(3, 6))
    assert "import fastmasq" not in text and "from fastmasq" not in text
