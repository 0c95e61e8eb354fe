"""Forwarder: the packet path as Python sees it - told what to do, asked what it did - and its compile unit.

A packet's way, a file a stage: `batch` takes frames off a ring and `parse` checks them; `fragments` and `dispatch` find out
whose a packet is: of a flow (`session`, `hairpin`, `tunnelled`), or new (`proxy`, `errors`, `outbound`, `inbound`, which open
sessions by `masquerade`, `portless` and `followed`). On the way it meets `route`, `leave` and `filter`; `egress` sends it,
and `finish` counts what became of it. `observation` and `answered` are of a path that only observes. A stage knows those that
come after it on a packet's way, and what they share: tests/source/test_cimports.py has the order of all files.

Nothing there allocates, raises, logs, reads a clock or touches a Python object.
"""

import contextlib
import os

import numpy as np

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy

from fastmasq.path cimport carrying, datagrams, finish, hops, liveness, mss, observation, punts, tunnels, untranslated, verdict
from fastmasq.path.batch cimport handle, process, take_again
from fastmasq.path.carrier cimport Carrier, IDENTIFICATIONS, Identifications
from fastmasq.path.datagrams cimport Datagram, Datagrams, Piece
from fastmasq.path.held cimport HELD
from fastmasq.path.packet cimport PACKET_OCTETS, Packet
from fastmasq.path.liveness cimport Live
from fastmasq.path.punts cimport Answer, Punt
from fastmasq.path.links cimport HOPS, Hop, LINKS, Link, LinkCounters, Route, Want
from fastmasq.path.observation cimport Asked, DroppedFlow, Observation
from fastmasq.path.original_destination cimport tell_original_destinations
from fastmasq.path.redirects cimport PROTOCOLS, REDIRECTS, Redirect
from fastmasq.path.rewrite cimport edit_payload
from fastmasq.path.rules cimport RuleTable
from fastmasq.path.state cimport Path, begin_generation
from fastmasq.path.triggers_and_marks cimport TriggerTable
from fastmasq.path.tunnels cimport TUNNELS, Translation, Tunnel
from fastmasq.path.untranslated cimport Untranslated
from fastmasq.ring.ring cimport BIG_FRAME, Frame, HEADROOM, NO_FRAME, RxRing, TxBatch, ring_pending
from fastmasq.table.index cimport IndexEntry
from fastmasq.table.masq cimport MasqTable
from fastmasq.table.pattern cimport lay_pattern
from fastmasq.table.rows cimport INBOUND, OUTBOUND
from fastmasq.table.streams cimport EDITS, TEXT
from fastmasq.wire cimport ethernet, ipv4
from fastmasq.wire.octets cimport load16

from fastmasq.path import rows
from fastmasq.path.verdict import DROP_REASONS, NOTES
from fastmasq.table.rows import compare, pattern

cdef extern from "<sched.h>" nogil:
    int sched_yield()

cdef extern from * nogil:
    """
    #define ATOMIC_ADD(word, value) __atomic_add_fetch(word, value, __ATOMIC_SEQ_CST)
    #define ATOMIC_LOAD(word) __atomic_load_n(word, __ATOMIC_ACQUIRE)
    """
    int ATOMIC_ADD(int *word, int value)
    int ATOMIC_LOAD(const int *word)

cdef enum:
    IMAGE = 65536 + EDITS * TEXT    # octets: those of a segment, with all edits that it may have

cdef union Row:
    Carrier carrier
    Link link
    Route route
    Hop hop
    Redirect redirect
    Tunnel tunnel
    DroppedFlow dropped
    Untranslated untranslated

ctypedef fused AnyRow:
    Carrier
    Link
    Route
    Hop
    Redirect
    Tunnel
    DroppedFlow
    Untranslated


cdef check_mirror(name, AnyRow *row):
    """Raise ImportError where rows.py has a row otherwise than its struct has it."""
    lay_pattern(row, pattern(sizeof(AnyRow)))
    compare(rows, name, sizeof(AnyRow), row[0])


def check_mirrors():
    """Raise ImportError where rows.py has a row otherwise than the structs of this folder."""
    cdef Row row
    check_mirror("CARRIER", &row.carrier)
    check_mirror("LINK", &row.link)
    check_mirror("ROUTE", &row.route)
    check_mirror("HOP", &row.hop)
    check_mirror("REDIRECT", &row.redirect)
    check_mirror("TUNNEL", &row.tunnel)
    check_mirror("DROPPED_FLOW", &row.dropped)
    check_mirror("UNTRANSLATED", &row.untranslated)


check_mirrors()
if (rows.LINKS, rows.HOPS, rows.IDENTIFICATIONS.itemsize) != (LINKS, HOPS, 4 * IDENTIFICATIONS):
    raise ImportError("path/rows.py and path/links.pxd disagree about how many rows there are")
if sizeof(Packet) != PACKET_OCTETS:
    raise ImportError(f"a packet has {sizeof(Packet)} octets, not the {PACKET_OCTETS} that path/packet.pxd speaks of")


PUNT_KINDS = {punts.PUNT_CONTROL: "control", punts.PUNT_TUNNEL: "tunnel", punts.PUNT_ISAKMP: "isakmp", punts.PUNT_QUOTE: "quote"}
"""What `Forwarder.next_punt` calls the kinds of packets that wait for a tracker."""


cdef class Forwarder:
    """The packet path over a table, with up to LINKS links attached.

    The worker calls `turn`; everybody else takes the lock first: `with forwarder.locked():`. All integers are in host
    order, times in nanoseconds of the monotonic clock. One that only `observes` judges packets as any other, but its links'
    senders are silent; answers to the host's own NAT are counted as delivered, and what it would drop is remembered.

    apart: where what is shared with the kernel is to live, as buffers by the names of `shared`; the table has its part.
    """

    def __init__(self, MasqTable table, *, bint hairpin=True, bint limit_errors=True, error_rate=100, error_burst=50,
                 error_rate_source=10, bint observes=False, apart=None):
        cdef Path *p = &self.path
        pthread_mutex_init(&self.mutex, NULL)
        self.table = table
        self.rings = [None] * LINKS
        self.senders = [None] * LINKS
        self._hops = np.zeros(HOPS, rows.HOP) if apart is None else np.frombuffer(apart["hops"], rows.HOP, HOPS)
        self._hop_index = np.zeros(2 * HOPS, "u8")
        self._held = np.zeros((HELD, HEADROOM + BIG_FRAME), "u1")
        p.table = &table.table
        p.hops = <Hop *><size_t>self._hops.ctypes.data
        p.hop_index.entries = <IndexEntry *><size_t>self._hop_index.ctypes.data
        p.hop_index.mask = 2 * HOPS - 1
        self._wants = np.zeros((HOPS, sizeof(Want)), "u1")
        p.wants = <Want *><size_t>self._wants.ctypes.data
        p.held.memory = <uint8_t *><size_t>self._held.ctypes.data
        self._make_datagrams()
        self._untranslated = np.zeros(untranslated.UNTRANSLATED, rows.UNTRANSLATED)
        p.untranslated = <Untranslated *><size_t>self._untranslated.ctypes.data
        self._identifications = (np.zeros(1, rows.IDENTIFICATIONS) if apart is None else
                                 np.frombuffer(apart["identifications"], rows.IDENTIFICATIONS, 1))
        self._identifications["counters"] = np.frombuffer(os.urandom(sizeof(Identifications)), "u4")
        p.identifications = <Identifications *><size_t>self._identifications.ctypes.data
        p.identification_key = int.from_bytes(os.urandom(4)) | 1
        self._carrier = None
        if apart is not None:
            self._carrier = np.frombuffer(apart["carrier"], rows.CARRIER, 1)
            p.carrier = <Carrier *><size_t>self._carrier.ctypes.data
            carrying.begin_rules(p)
        p.hairpin = hairpin
        p.mss = mss.AUTOMATIC
        p.limit_errors = limit_errors
        p.error_rate = error_rate
        p.error_burst = error_burst
        p.error_rate_source = error_rate_source
        hops.begin(p)
        p.destination_map = -1
        self.observes = observes
        if observes:
            self._make_observation()
        self.set_routes(np.zeros(1, "u4"), np.zeros(1, rows.ROUTE))

    def _make_observation(self):
        cdef Observation *o
        memory = np.zeros(sizeof(Observation), "u1")
        asked = np.zeros((observation.ASKED, sizeof(Asked)), "u1")
        self._dropped = np.zeros(observation.DROPPED_FLOWS, rows.DROPPED_FLOW)
        self._observation = [memory, asked]
        o = <Observation *><size_t>memory.ctypes.data
        o.asked = <Asked *><size_t>asked.ctypes.data
        o.dropped = <DroppedFlow *><size_t>self._dropped.ctypes.data
        o.until_ns = NO_FRAME - 1
        self.path.observation = o

    def _make_datagrams(self):
        cdef Datagrams *d = &self.path.datagrams
        table = np.zeros((datagrams.DATAGRAMS, sizeof(Datagram)), "u1")
        pieces = np.zeros((datagrams.PIECES, sizeof(Piece)), "u1")
        memory = np.zeros((datagrams.PIECES, datagrams.PIECE_ROOM), "u1")
        index = np.zeros(2 * datagrams.DATAGRAMS, "u8")
        self._datagrams = [table, pieces, memory, index]
        d.rows = <Datagram *><size_t>table.ctypes.data
        d.pieces = <Piece *><size_t>pieces.ctypes.data
        d.memory = <uint8_t *><size_t>memory.ctypes.data
        d.index.entries = <IndexEntry *><size_t>index.ctypes.data
        d.index.mask = 2 * datagrams.DATAGRAMS - 1
        datagrams.make_empty(d)

    # -- the worker's side ---------------------------------------------------------------------------------------

    cdef int turn(self, uint64_t now_ns) noexcept nogil:
        """Process one batch of every link under the lock, and let others have the lock if they wait for it."""
        cdef int count
        cdef int patience = 1000
        pthread_mutex_lock(&self.mutex)
        count = process(&self.path, now_ns)
        pthread_mutex_unlock(&self.mutex)
        while ATOMIC_LOAD(&self.waiting) and patience:
            sched_yield()
            patience -= 1
        return count

    cdef bint pending(self) noexcept nogil:
        """Whether a ring has frames, without a system call."""
        cdef int link
        for link in range(self.path.link_count):
            if self.path.rings[link] != NULL and ring_pending(self.path.rings[link]):
                return True
        return False

    cdef void lock(self) noexcept nogil:
        ATOMIC_ADD(&self.waiting, 1)
        pthread_mutex_lock(&self.mutex)
        ATOMIC_ADD(&self.waiting, -1)

    cdef void unlock(self) noexcept nogil:
        pthread_mutex_unlock(&self.mutex)

    @contextlib.contextmanager
    def locked(self):
        """Hold the path still. Keep what is done inside short: packets wait."""
        with nogil:
            self.lock()
        try:
            yield
        finally:
            self.unlock()

    def step(self, now_ns):
        """Process one turn; return the number of frames. For tests and benchmarks: the worker has its own loop."""
        cdef uint64_t now = now_ns
        cdef int count
        with nogil:
            count = self.turn(now)
        return count

    # -- what the daemon tells the path --------------------------------------------------------------------------

    def attach(self, int link, RxRing ring, TxBatch sender):
        """Connect ring and sender (or None, None) as link number `link`; returns the pair that was there."""
        before = self.rings[link], self.senders[link]
        self.path.rings[link] = &ring.ring if ring is not None else NULL
        self.path.senders[link] = &sender.sender if sender is not None else NULL
        self.rings[link] = ring
        self.senders[link] = sender
        self.carry_by(link, 0)
        self.path.link_count = max(self.path.link_count, link + 1)
        self.forget_hops(link)
        self._drop_punts()
        return before

    def set_link(self, int link, description):
        """Describe a link by a row of rows.LINK; if that is news, its next hops are looked up again.

        An MTU that no IPv4 link may have (RFC 791 section 3.2), a missing link's included, is taken for the least.
        """
        row = np.array(description, rows.LINK)
        row["mtu"] = max(int(row["mtu"]), ipv4.LEAST_MTU)
        if memcmp(&self.path.links[link], <const uint8_t *><size_t>row.ctypes.data, sizeof(Link)):
            memcpy(&self.path.links[link], <const uint8_t *><size_t>row.ctypes.data, sizeof(Link))
            self.forget_hops(link)
            self._drop_punts()
        if self.path.carrier != NULL:
            self.path.carrier.links[link].side = self.path.links[link].side
            self.path.carrier.links[link].header_length = self.path.links[link].header_length
        self.path.link_count = max(self.path.link_count, link + 1)

    def carry_by(self, int link, uint32_t ifindex):
        """Let the kernel, if it carries sessions, send their packets on a link by this interface; 0: on none."""
        if self.path.carrier != NULL:
            self.path.carrier.links[link].ifindex = ifindex

    def carry(self, bint on):
        """Let the kernel carry sessions from now on, whenever policy lets it, or none; those it has go on here."""
        self.carries = on
        self._open_carrier()

    cdef _open_carrier(self):
        """Have the kernel carry what it may by the policy as it is now."""
        cdef Path *p = &self.path
        if p.carrier != NULL:
            p.carrier.is_open = self.carries and p.triggers_and_marks == NULL and p.observation == NULL

    def charge_carried(self, *, bint for_good=False):
        """Tell the chains of what the kernel has carried under them; for_good: and have it carry nothing more by them."""
        cdef Path *p = &self.path
        if p.carrier == NULL:
            return
        if for_good:
            carrying.begin_rules(p)
        if p.chains != NULL:
            carrying.charge_all(p)

    @property
    def is_carrying(self):
        """Whether the kernel carries what it may."""
        return self.path.carrier != NULL and bool(self.path.carrier.is_open)

    def set_routes(self, first, routes):
        """Route by intervals: `first` (uint32, sorted, starting at 0) and one rows.ROUTE row for each.

        Every flow asks for its route again; what is known about next hops stays known. A route's MTU may be any number
        in the kernel's tables: under that which every link must carry it is taken for the least.
        """
        if len(first) != len(routes) or first[0] != 0:
            raise ValueError("routes must cover all addresses: the first interval starts at 0")
        self._route_first = np.ascontiguousarray(first, "u4")
        self._routes = np.array(routes, rows.ROUTE)
        self._routes["mtu"][(self._routes["mtu"] > 0) & (self._routes["mtu"] < ipv4.LEAST_MTU)] = ipv4.LEAST_MTU
        self.path.route_first = <const uint32_t *><size_t>self._route_first.ctypes.data
        self.path.routes = <const Route *><size_t>self._routes.ctypes.data
        self.path.route_count = len(first)
        begin_generation(&self.path)

    def set_proxies(self, uint32_t first, int count):
        """Lead what rules redirect to proxies to `count` addresses from `first` on, over the link on side LOCAL."""
        self.path.proxies_first = first
        self.path.proxies = count

    def tell_original_destinations(self, int destination_map, uint64_t cookie, long bpf_call):
        """Note original destinations in a map, see kernel/bpf/original_destination.py; -1: nowhere.

        It is new: what was asked for in sessions that were adopted is noted at once.
        """
        self.path.destination_map = destination_map
        self.path.namespace_cookie = cookie
        self.path.bpf_call = bpf_call
        if self.path.table.adopted_proxied:
            with nogil:
                tell_original_destinations(&self.path)

    def set_hairpin(self, bint on):
        """Let inside hosts reach external endpoints of ours, or not; sessions that do so already go on."""
        self.path.hairpin = on

    def set_renumbering(self, bint on):
        """Give packets without DF that leave with another source an identification of their own (RFC 6864 section 5.3)."""
        self.path.renumbers = on

    def set_mss(self, limit):
        """Lower what SYNs offer as their MSS to `limit` octets, if not 0; None: to what links and routes can carry."""
        self.path.mss = mss.AUTOMATIC if limit is None else limit

    def set_chains(self, RuleTable chains):
        """Put packets to these chains; None: to none, and all that leaves outside is masqueraded."""
        self.charge_carried(for_good=True)
        self.chains = chains
        self.path.chains = &chains.chains if chains is not None else NULL
        if self.path.observation != NULL:
            observation.forget_rules(self.path.observation)

    def set_triggers(self, TriggerTable triggers):
        """Open sessions by these triggers and marks as well, and keep ports by its direct rows; None: by none."""
        self.triggers = triggers
        self.path.triggers_and_marks = &triggers.rows if triggers is not None else NULL
        self._open_carrier()

    def set_redirects(self, redirects):
        """Use these rows.REDIRECT rows, at most REDIRECTS, in order; sessions that are open stay."""
        if len(redirects) > REDIRECTS:
            raise ValueError(f"{len(redirects)} redirects: at most {REDIRECTS}")
        table = np.ascontiguousarray(redirects, rows.REDIRECT)
        memcpy(self.path.redirects.rows, <const uint8_t *><size_t>table.ctypes.data, len(table) * sizeof(Redirect))
        self.path.redirects.count = len(table)

    def carry_by_address(self, protocols):
        """Let any inside host begin these protocols without ports, one host for each remote; sessions that are open stay."""
        cdef int protocol
        for protocol in range(PROTOCOLS):
            self.path.redirects.by_address[protocol] = protocol in protocols

    # -- what trackers tell the path, and are asked by it ----------------------------------------------------------

    def follow(self, *, bint pptp, bint ipsec):
        """Ask trackers from now on about what these protocols send: see `next_punt`. Before any packet has come."""
        cdef Path *p = &self.path
        self.tunnels = np.zeros(TUNNELS, rows.TUNNEL)
        self._tunnel_index = np.zeros(tunnels.TUNNEL_INDEX, "u8")
        self._punts = np.zeros((punts.PUNTS + 1, HEADROOM + BIG_FRAME), "u1")
        p.tunnels.rows = <Tunnel *><size_t>self.tunnels.ctypes.data
        p.tunnels.index.entries = <IndexEntry *><size_t>self._tunnel_index.ctypes.data
        p.tunnels.index.mask = tunnels.TUNNEL_INDEX - 1
        p.punts.memory = <uint8_t *><size_t>self._punts.ctypes.data
        self._live = np.zeros((liveness.LIVE, sizeof(Live)), "u1")
        p.live = <Live *><size_t>self._live.ctypes.data
        self._image = np.zeros(IMAGE, "u1")
        p.image = <uint8_t *><size_t>self._image.ctypes.data
        p.follows_pptp = pptp
        p.follows_ipsec = ipsec

    def set_way(self, uint32_t row, int direction, uint8_t protocol, arrives, leaves, call_id=None):
        """Let the path move one way of a tunnel; its counters go on.

        arrives: (source, destination, Call ID or SPI; None takes any Call ID); leaves: (source, destination).
        call_id is written into GRE if given.
        """
        cdef Translation wanted
        if row >= TUNNELS or direction not in (OUTBOUND, INBOUND):
            raise ValueError(f"way {direction} of row {row}: there are {TUNNELS} rows of two")
        wanted.protocol = protocol
        wanted.arrives_from, wanted.arrives_to, call = arrives
        wanted.leaves_from, wanted.leaves_to = leaves
        wanted.id = tunnels.ANY_CALL_ID if call is None else call
        wanted.renumbered = call_id is not None and call_id != call
        wanted.call_id = call_id if wanted.renumbered else 0
        tunnels.set_way(&self.path.tunnels, &self.path.table.secret, row, direction, &wanted)

    def remove_way(self, uint32_t row, int direction):
        """Stop moving one way of a tunnel, if the path does."""
        tunnels.forget_way(&self.path.tunnels, &self.path.table.secret, row, direction)

    def next_punt(self):
        """Return the packet that has waited longest for an answer, or None.

        It is (kind, side, ref, packet): kind is one of PUNT_KINDS, side 0 inside, 1 outside, where it came from; ref the
        flow (rows.ref_of in table) of a control segment; packet the octets from the IPv4 header on.
        """
        cdef Punt *punt = &self.path.punts.waiting[self.path.punts.first]
        cdef Link *link = &self.path.links[punt.link]
        cdef uint8_t *ip = punt.frame.data + link.header_length
        if self.path.punts.count == 0:
            return None
        return PUNT_KINDS[punt.kind], link.side, punt.ref, ip[:load16(ip + ipv4.TOTAL_LENGTH)]

    def answer_punt(self, addresses, int reason, call_id=None, edits=()):
        """Decide about the packet that `next_punt` has returned.

        addresses: what a tunnel's or ISAKMP's packet gets for its own address, outbound as source, inbound as destination,
        a copy for each; (0,) for a control segment. Without any it is dropped for `reason`, a code of verdict.DROP_CODE.
        call_id is written into GRE; edits are (offset in TCP payload, octets) to write.
        """
        cdef Path *p = &self.path
        cdef Punt *punt = &p.punts.waiting[p.punts.first]
        cdef Frame frame
        cdef Packet *packet
        cdef Answer answer
        if p.punts.count == 0:
            raise ValueError("no packet waits for an answer")
        punts.take_first(&p.punts)
        answer.outcome = verdict.GOES_ON if addresses else reason
        answer.renumbered = call_id is not None
        answer.call_id = call_id if call_id is not None else 0
        packet = take_again(p, &punt.frame, punt.link, &answer)
        for offset, octets in edits:
            for number, octet in enumerate(octets):
                edit_payload(packet, offset + number, octet)
        if packet.is_fragment:
            addresses = addresses[:1]   # the other pieces follow the first one's addresses, which are of one host
        *copies, last = addresses or (0,)
        for answer.address in copies:
            frame = punt.frame
            frame.data = punts.punt_memory(&p.punts, punts.PUNTS)
            memcpy(frame.data, punt.frame.data, frame.length)
            handle(p, take_again(p, &frame, punt.link, &answer))
            finish.flush_all(p)         # while the frame's memory is still its own
        answer.address = last
        handle(p, take_again(p, &punt.frame, punt.link, &answer) if copies else packet)
        finish.flush_all(p)

    def _drop_punts(self):
        """Drop what waits for a tracker: a link has changed, and what came over it can no longer be read as it did."""
        finish.lose(&self.path, verdict.LINK_DOWN, self.path.punts.count)
        punts.take_all(&self.path.punts)

    # -- next hops ---------------------------------------------------------------------------------------------------

    def forget_hops(self, int link):
        """Have every next hop on a link looked up again, also those that packets wait for."""
        hops.forget_link(&self.path, link)

    def wanted_hops(self):
        """Return the (link, address) of next hops that packets want and whose link address is not known; asks once."""
        if not self.path.hops_wanted:
            return []
        wanted = np.flatnonzero(self._hops["wanted"][:self.path.hop_count])
        result = [(int(self._hops["link"][row]), int(self._hops["address"][row])) for row in wanted]
        hops.stop_wanting(&self.path)
        return result

    def may_ask(self, int link, uint32_t address):
        """Whether the kernel may be asked for a next hop now; each time that it may is counted for who wants it.

        A hop that is known, and that the kernel has forgotten, may be asked for while packets use it.
        """
        return bool(hops.may_ask(&self.path, link, address))

    @property
    def hops_wanted(self):
        return bool(self.path.hops_wanted)

    def used_hops(self):
        """Return {(link, address): packets} of the valid next hops used since the last call.

        Where more than half of all rows are in use, those go that were not used for IDLE_LOOKS calls.
        """
        cdef Path *p = &self.path
        cdef uint32_t row, packets
        used = {}
        for row in range(p.hop_count):
            packets = hops.take_use(p, <uint16_t>row)
            if packets:
                used[p.hops[row].link, p.hops[row].address] = packets
        return used

    def expect_neighbour(self, int link, uint32_t address, bytes mac not None):
        """Have a next hop with this link address be known before a packet wants it, if there is room."""
        if len(mac) == ethernet.MAC:
            hops.expect(&self.path, link, address, <const uint8_t *>mac)

    def set_neighbour(self, int link, uint32_t address, mac):
        """Tell the link address of a next hop, or None when it does not answer. Returns whether it is in use.

        One that has not the octets of an Ethernet address is as good as none.
        """
        cdef const uint8_t *octets = NULL
        if mac is not None and len(mac) == ethernet.MAC:
            octets = <bytes>mac
        return bool(hops.settle(&self.path, link, address, octets))

    # -- what the path tells the daemon ----------------------------------------------------------------------------

    def drops(self):
        """Return {reason: packets} of the reasons that have counted anything."""
        return {name: self.path.drops[code] for code, (name, _) in enumerate(DROP_REASONS) if self.path.drops[code]}

    def verdicts(self):
        """Return {verdict: packets}; "punt" are those that wait just now. What the kernel has carried is forwarded, too."""
        cdef Path *p = &self.path
        return {
            "forward": p.forwarded + self.table.carried()[0],
            "deliver": p.delivered,
            "reply": p.replied,
            "punt": p.held.count + p.punts.count + p.datagrams.kept,
            "drop": sum(self.drops().values()),
        }

    def dropped_flows(self):
        """Return rows.DROPPED_FLOW of what would have been dropped, and how many packets more of flows not in it.

        Only where the path observes.
        """
        return self._dropped[self._dropped["packets"] > 0].copy(), self.path.observation.forgotten

    def take_untranslated(self):
        """Return rows.UNTRANSLATED of the hosts whose packets have left outside with a private source since the last call.

        At most some hosts with one hash are told apart; the note `private_untranslated` counts all packets.
        """
        found = self._untranslated[self._untranslated["packets"] > 0]
        self._untranslated["packets"] = 0
        return found

    def notes(self):
        return {name: self.path.notes[code] for code, name in enumerate(NOTES)}

    def traffic(self, int link):
        """Return packets and octets received and sent on a link."""
        cdef LinkCounters *counters = &self.path.traffic[link]
        return {"rx_packets": counters.rx_packets, "rx_bytes": counters.rx_bytes,
                "tx_packets": counters.tx_packets, "tx_bytes": counters.tx_bytes}
