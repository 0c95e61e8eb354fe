"""Starts of ESP that take turns: a host that takes a new SPI for each packet keeps nobody from a remote for long."""

from __future__ import annotations

from fastmasq.trackers.vpn.esp import WAITERS_OF_HOST, EspTable
from fastmasq.trackers.vpn.isakmp import ExchangeTable, IpsecSettings

SECOND = 1_000_000_000
GREEDY, MASQ, REMOTE = 0x0A000063, 0xC8C8C8C8, 0xC7000001


def esp_table() -> EspTable:
    settings = IpsecSettings()
    return EspTable(settings, ExchangeTable(settings))


def test_eight_hosts_start_beside_one_that_takes_a_new_spi_for_each_packet() -> None:
    """Two packets a second of its; the others ask once a second, and are answered at once when they are let out."""
    esp = esp_table()
    spi, answered = 1000, set()
    for tick in range(2 * 60):
        now = (100 + tick // 2) * SECOND + tick % 2 * SECOND // 2
        spi += 1
        esp.outbound(GREEDY, MASQ, REMOTE, spi, 1, now)
        if tick % 2:
            continue
        for host in range(8):
            decision = esp.outbound(0x0A000002 + host, MASQ, REMOTE, 50 + host, 1, now + host)
            if decision.to and host not in answered:
                assert esp.inbound(REMOTE, MASQ, 0x9000 + host, 1, now + host + 1).to == (0x0A000002 + host,)
                answered.add(host)
    assert answered == set(range(8))


def test_where_nobody_else_waits_a_new_spi_is_a_new_turn() -> None:
    esp = esp_table()
    sent = [bool(esp.outbound(GREEDY, MASQ, REMOTE, 1000 + number, 1, number * SECOND).to) for number in range(1, 20)]
    assert sum(sent) == 3  # each row is squelched by the seventh packet of others


def test_one_host_does_not_have_all_the_places_of_those_who_wait() -> None:
    esp = esp_table()
    esp.outbound(0x0A000002, MASQ, REMOTE, 7, 1, SECOND)
    for number in range(100):
        esp.outbound(GREEDY, MASQ, REMOTE, 1000 + number, 1, SECOND)
    assert len(esp.waiting) == WAITERS_OF_HOST
    esp.outbound(0x0A000003, MASQ, REMOTE, 8, 1, SECOND)
    assert (0x0A000003, REMOTE, 8) in esp.waiting
    esp.expire(10_000 * SECOND)
    assert not esp.waiting
