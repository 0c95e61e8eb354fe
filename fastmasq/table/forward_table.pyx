"""ForwardTable: puts port forwards into a MasqTable and takes them out again, without touching the sessions they have.

Called by the daemon, and by tests, under the path's lock. Addresses and ports are host-order integers.
"""

from libc.stdint cimport uint16_t, uint32_t

from fastmasq.table cimport forwards, holds, index, mappings, ports, rows
from fastmasq.table.masq cimport MasqTable
from fastmasq.table.order cimport keep_order
from fastmasq.table.rows cimport Mapping
from fastmasq.table.table cimport Table

from fastmasq.errors import CapacityError


class _Rows:
    """Row numbers of an array: those given back, and those never used."""

    def __init__(self, count):
        self.count = count
        self.fresh = 0
        self.returned = []

    def free(self):
        return self.count - self.fresh + len(self.returned)

    def take(self):
        if self.returned:
            return self.returned.pop()
        self.fresh += 1
        return self.fresh - 1


cdef class ForwardTable:
    """The forwards of a MasqTable.

    half_open_limit: sessions of one forward's port of which only one end has been heard (see forwards.pxd).
    """
    cdef MasqTable table
    cdef object _forwards, _targets, _remotes, _free_forwards, _free_targets, _free_remotes

    def __init__(self, MasqTable table, uint32_t half_open_limit=1024):
        self.table = table
        self._forwards, self._targets, self._remotes = table.memory.forwards, table.memory.targets, table.memory.remotes
        self._free_forwards, self._free_targets = _Rows(forwards.FORWARDS), _Rows(forwards.TARGETS)
        self._free_remotes = _Rows(forwards.REMOTES)
        table.table.forwards.half_open_limit = half_open_limit

    def place(self, uint32_t address, int port_class, uint16_t port, targets, remotes=()):
        """Forward an external endpoint to `targets`, (address, port, weight) each; return whether that is in force.

        remotes: (address, mask, port) of each network that it is for, port 0 being any; without, it is for everybody.

        It is not while another inside endpoint has that external endpoint: call again when its sessions have ended.
        A forward that is there already is changed: targets keep what is left of their turn if their weight stays, and
        the turn goes to the first new one. Raises CapacityError when there are too many; then nothing has changed.
        """
        cdef Table *t = &self.table.table
        cdef uint32_t row = self._row(address, port_class, port)
        cdef Mapping *mapping = &t.mappings[row]
        before = {}
        if mapping.in_use == rows.MAPPING_OPEN and (mapping.address, mapping.id) not in [target[:2] for target in targets]:
            return False
        self._check_room(len(targets), len(remotes), row)
        if mapping.in_use == rows.MAPPING_OPEN:
            mappings.forget_owner(t, row)
        elif mapping.in_use == rows.MAPPING_FORWARD:
            before = {target[:2]: target[2:] for target in self.targets(address, port_class, port)}
            self._clear(row)
        elif mapping.in_use == rows.MAPPING_HELD_DOWN:
            holds.end_hold(t, mappings.row_pool(row), port)
        elif mapping.in_use == rows.MAPPING_FREE and ports.is_free(&t.pools[mappings.row_pool(row)], port):
            ports.take_port(&t.pools[mappings.row_pool(row)], port)
        if mapping.in_use != rows.MAPPING_FORWARD:
            mapping.host = self._free_forwards.take()
            self._forwards[mapping.host] = (0, 0, 0, 0, 0)
        mapping.in_use = rows.MAPPING_FORWARD
        keep_order()
        mapping.address, mapping.id = 0, 0
        self._fill(row, targets, before)
        self._admit(row, remotes)
        return True

    def remove(self, uint32_t address, int port_class, uint16_t port):
        """Open no further sessions on an external endpoint; those that there are live on."""
        cdef Table *t = &self.table.table
        cdef uint32_t row = self._row(address, port_class, port)
        cdef Mapping *mapping = &t.mappings[row]
        if mapping.in_use != rows.MAPPING_FORWARD:
            return
        self._clear(row)
        self._free_forwards.returned.append(mapping.host)
        mapping.in_use = rows.MAPPING_ORPHAN
        if mapping.sessions == 0:
            mappings.give_back_mapping(t, row)

    def targets(self, uint32_t address, int port_class, uint16_t port):
        """Return (address, port, weight, left) of every target, beginning with the one whose turn it is."""
        cdef uint32_t row = self._row(address, port_class, port)
        if self.table.table.mappings[row].in_use != rows.MAPPING_FORWARD:
            return []
        forward = self._forwards[self.table.table.mappings[row].host]
        found, at = [], forward["turn"]
        for _ in range(forward["targets"]):
            target = self._targets[at]
            found.append(tuple(int(target[name]) for name in ("address", "port", "weight", "left")))
            at = target["next"]
        return found

    def half_open(self, uint32_t address, int port_class, uint16_t port):
        """Return how many sessions of a forward are half-open."""
        return int(self._forwards[self.table.table.mappings[self._row(address, port_class, port)].host]["half_open"])

    def opened(self, uint32_t address, int port_class, uint16_t port):
        """Return how many sessions strangers have opened by a forward since it was made; 0 where there is none."""
        cdef Mapping *mapping = &self.table.table.mappings[self._row(address, port_class, port)]
        return int(self._forwards[mapping.host]["opened"]) if mapping.in_use == rows.MAPPING_FORWARD else 0

    def _row(self, uint32_t address, int port_class, uint16_t port):
        cdef int external = mappings.external_of(&self.table.table, address)
        if external < 0:
            raise ValueError(f"address {address:#x} is not held: call set_external or hold_external first")
        return mappings.mapping_row(external, port_class, port)

    def _check_room(self, wanted, remotes, uint32_t row):
        present, known = 0, 0
        if self.table.table.mappings[row].in_use == rows.MAPPING_FORWARD:
            present = int(self._forwards[self.table.table.mappings[row].host]["targets"])
            known = len(self._remotes_of(row))
        elif not self._free_forwards.free():
            raise CapacityError(f"more than {forwards.FORWARDS} ports are forwarded: use smaller ranges")
        if wanted > present + self._free_targets.free():
            raise CapacityError(f"port forwards have more than {forwards.TARGETS} targets: use fewer")
        if remotes > known + self._free_remotes.free():
            raise CapacityError(f"port forwards are for more than {forwards.REMOTES} remote networks: name fewer")

    def _clear(self, uint32_t row):
        """Take the targets of a forward away, and whom it is for."""
        cdef Table *t = &self.table.table
        cdef int port_class = mappings.row_class(row)
        forward = self._forwards[t.mappings[row].host:][:1]
        at = int(forward["turn"][0])
        for _ in range(int(forward["targets"][0])):
            target = self._targets[at]
            index.remove_from_either(&t.mapping_index, &t.old_mapping_index,
                                     mappings.endpoint_hash(t, port_class, target["address"], target["port"]), row)
            self._free_targets.returned.append(at)
            at = int(target["next"])
        forward["targets"] = 0
        self._free_remotes.returned += self._remotes_of(row)
        forward["remotes"] = 0

    def _fill(self, uint32_t row, targets, before):
        """Make the ring of targets; `before` has (weight, left) by endpoint, beginning with the turn's."""
        cdef Table *t = &self.table.table
        cdef int port_class = mappings.row_class(row)
        ring = [self._free_targets.take() for _ in targets]
        for number, (at, (address, port, weight)) in enumerate(zip(ring, targets)):
            old_weight, left = before.get((address, port), (None, weight))
            self._targets[at] = (address, weight, left if weight == old_weight else weight,
                                 ring[(number + 1) % len(ring)], port, 0)
            index.insert(&t.mapping_index, mappings.endpoint_hash(t, port_class, address, port), row)
        endpoints = [target[:2] for target in targets]
        fresh = [endpoint for endpoint in endpoints if endpoint not in before]
        stayed = [endpoint for endpoint in before if endpoint in endpoints]
        forward = self._forwards[t.mappings[row].host:][:1]
        forward["targets"] = len(ring)
        forward["turn"] = ring[endpoints.index((fresh or stayed)[0])]

    def _admit(self, uint32_t row, remotes):
        """Have a forward, which has been for everybody, be for these remotes alone, if there are any."""
        forward = self._forwards[self.table.table.mappings[row].host:][:1]
        chain = [self._free_remotes.take() for _ in remotes]
        for at, following, (address, mask, port) in zip(chain, [*chain[1:], -1], remotes):
            self._remotes[at] = (address & mask, mask, following + 1, port, 0)
        forward["remotes"] = chain[0] + 1 if chain else 0

    def _remotes_of(self, uint32_t row):
        """Return the rows of those whom a forward is for."""
        found, at = [], int(self._forwards[self.table.table.mappings[row].host]["remotes"])
        while at:
            found.append(at - 1)
            at = int(self._remotes[at - 1]["next"])
        return found
