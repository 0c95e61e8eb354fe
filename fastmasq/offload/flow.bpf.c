/* Carries packets of established flows at a link's ingress, by the path's own rows; what is not plain goes on to the tap.
 *
 * The same program is at every link, each with a `here` of its own. `rows.h` is made of the .pxd files when this is built
 * (setup.py). manual/offload.md says who writes what, and why a row may be read here while the path changes it.
 *
 * Whatever is asked of a packet here is what the path asks (path/parse.pxd, session.pxd, leave.pxd, table/tcp_state.pxd):
 * a packet that would have another fate there than to be translated and sent on, whole and at once, is not touched.
 */
#include <stdint.h>

#include "rows.h"

#define INLINE static inline __attribute__((always_inline))
#define READ(field) (*(volatile typeof(field) *)&(field))
#define WRITE(field, value) (*(volatile typeof(field) *)&(field) = (value))
#define KEEP_ORDER() __asm__ volatile("" ::: "memory")

#define GO_ON -1                /* TC_ACT_UNSPEC: to the next classifier, the guard, and then to the tap */
#define DROP 2                  /* TC_ACT_SHOT */
#define PSEUDO_HEADER 0x10      /* BPF_F_PSEUDO_HDR */
#define ZERO_IS_NONE 0x20       /* BPF_F_MARK_MANGLED_0 */
#define PACKET_HOST 0
#define ETH_P_IP 0x0800
#define PROBES 16               /* entries of the index that are looked at: it is at most half full */
#define DONT_FRAGMENT 0x4000
#define MORE_OR_OFFSET 0x3FFF   /* of a fragment: everything else but a reserved bit */
#define ENDS_KNOWN (SESSION_REPLIED | SESSION_SEEN_OUT | SESSION_SEEN_IN | SESSION_ACKED_OUT | SESSION_ACKED_IN)

struct __sk_buff {              /* linux/bpf.h: what is used of it */
    uint32_t len, pkt_type, mark, queue_mapping, protocol, vlan_present, others[13], data, data_end, more[23], gso_size;
};

struct Here {                   /* offload/program.py: HERE */
    uint32_t link;
};

/* The shared arrays; their kinds are in offload/program.py. */
extern Carrier carrier;
extern Identifications identifications;
extern struct Here here;
extern Session sessions;
extern IndexEntry index;
extern Carried carried;
extern Hop hops;

void *look_up(void *map, const void *key) __attribute__((kernel_helper(1)));
int replace_checksum(void *skb, uint32_t offset, uint64_t from, uint64_t to, uint64_t flags) __attribute__((kernel_helper(11)));
int redirect(uint32_t ifindex, uint64_t flags) __attribute__((kernel_helper(23)));
int update_sum(void *skb, uint64_t delta) __attribute__((kernel_helper(40)));
int change_head(void *skb, uint32_t octets, uint64_t flags) __attribute__((kernel_helper(43)));

typedef struct {
    uint8_t version, tos;
    uint16_t length, identification, fragment;
    uint8_t ttl, protocol;
    uint16_t checksum;
    uint32_t saddr, daddr;
} Ipv4;

typedef struct {
    uint16_t sport, dport;
    uint32_t seq, ack;
    uint8_t offset, flags;
    uint16_t window, checksum, urgent;
} Tcp;

typedef struct {
    uint16_t sport, dport, length, checksum;
} Udp;

#define IP_OCTETS 20
#define UDP_CHECKSUM 6
#define TCP_CHECKSUM 16

/* A builtin would be a call of a function that is not there. */
INLINE uint32_t load32(uint32_t value)
{
    uint64_t wide = value;
    __asm__("endbe %0, 32" : "+r"(wide));
    return wide;
}

#define load16 __builtin_bswap16

INLINE uint64_t rotate(uint64_t value, int count) { return value << count | value >> (64 - count); }

/* table/siphash.pxd */
INLINE uint64_t siphash(uint64_t word0, uint64_t word1)
{
    uint64_t v0 = carrier.secret.k0 ^ 0x736f6d6570736575ULL;
    uint64_t v1 = carrier.secret.k1 ^ 0x646f72616e646f6dULL;
    uint64_t v2 = carrier.secret.k0 ^ 0x6c7967656e657261ULL;
    uint64_t v3 = carrier.secret.k1 ^ 0x7465646279746573ULL;
    uint64_t words[6] = {word0, word1, 16ULL << 56, 0, 0, 0};
#pragma GCC unroll 6
    for (int i = 0; i < 6; i++) {
        if (i == 3)
            v2 ^= 0xff;
        v3 ^= words[i];
        v0 += v1; v1 = rotate(v1, 13); v1 ^= v0; v0 = rotate(v0, 32);
        v2 += v3; v3 = rotate(v3, 16); v3 ^= v2;
        v0 += v3; v3 = rotate(v3, 21); v3 ^= v0;
        v2 += v1; v1 = rotate(v1, 17); v1 ^= v2; v2 = rotate(v2, 32);
        v0 ^= words[i];
    }
    return v0 ^ v1 ^ v2 ^ v3;
}

/* wire/checksum.pxd; the order of octets in words does not matter to a sum (RFC 1071 section 1.2, B) */
INLINE uint32_t fold(uint64_t sum)
{
    sum = (sum & 0xFFFFFFFF) + (sum >> 32);
    sum = (sum & 0xFFFFFFFF) + (sum >> 32);
    sum = (sum & 0xFFFF) + (sum >> 16);
    sum = (sum & 0xFFFF) + (sum >> 16);
    return sum;
}

INLINE int32_t order(uint32_t a, uint32_t b) { return (int32_t)(a - b); }

INLINE uint32_t later(uint32_t a, uint32_t b) { return order(a, b) > 0 ? a : b; }

/* table/tcp_state.pxd: window_shift */
INLINE uint32_t window_shift(uint32_t flags, uint32_t scales, uint32_t direction)
{
    uint32_t scale = direction == INBOUND ? scales & 0x0F : scales >> 4;
    if (flags & (SESSION_UNSCALED_OUT | SESSION_UNSCALED_IN))
        return 0;
    return scale == UNKNOWN_SCALE ? MAXIMUM_SCALE : scale;
}

/* Add to a counter and return what it was. This compiler has no name for the instruction, which Linux has since 5.12. */
INLINE uint32_t fetch_and_add(uint32_t *counter, uint32_t count)
{
    register uint64_t at __asm__("r1") = (uint64_t)(long)counter;
    register uint64_t value __asm__("r2") = count;
    __asm__ volatile(".8byte 0x00000001000021c3" : "+r"(value) : "r"(at) : "memory");
    return value;
}

/* path/identification.pxd: take and segments_of */
INLINE uint16_t take_identification(uint32_t key, uint32_t destination, uint32_t protocol, uint32_t count)
{
    uint32_t hash = (destination ^ protocol << 16) * key;
    return fetch_and_add(&identifications.counters[hash >> (32 - IDENTIFICATION_BITS)], count) + hash;
}

/* Find the session of a key and the direction of its flow; NULL without one that is seen. */
INLINE Session *find(uint64_t key0, uint64_t key1, uint32_t *row, uint32_t *direction)
{
    uint32_t hash = siphash(key0, key1);
    for (uint64_t i = 0; i < PROBES; i++) {
        __asm__("" : "+r"(i));  /* counted as it is written, or the verifier sees no end */
        uint32_t at = (hash + i) & carrier.index_mask;
        IndexEntry *entry = look_up(&index, &at);
        if (!entry)
            return 0;
        uint32_t ref = READ(entry->ref);
        if (ref == 0)
            return 0;
        if (READ(entry->hash) != hash)
            continue;
        *row = (ref - 1) >> 1;
        *direction = (ref - 1) & 1;
        Session *session = look_up(&sessions, row);
        if (!session)
            return 0;
        Flow *flow = *direction ? &session->flow[1] : &session->flow[0];
        if (READ(flow->key0) == key0 && READ(flow->key1) == key1)
            return session;
    }
    return 0;
}

__attribute__((section("classifier"), used)) int carry(struct __sk_buff *skb)
{
    uint8_t *data = (uint8_t *)(long)skb->data;
    uint8_t *end = (uint8_t *)(long)skb->data_end;
    if (!READ(carrier.is_open) || skb->protocol != load16(ETH_P_IP) || skb->pkt_type != PACKET_HOST || skb->vlan_present)
        return GO_ON;

    /* the packet alone */
    uint32_t link = here.link & (LINKS - 1);
    uint32_t header = carrier.links[link].header_length;
    uint32_t side = carrier.links[link].side;
    uint8_t *network = data;
    if (header)
        network += ETHERNET_LENGTH;
    Ipv4 *ip = (Ipv4 *)network;
    if (network + IP_OCTETS + sizeof(Udp) > end || ip->version != 0x45)
        return GO_ON;
    uint32_t length = load16(ip->length);
    uint32_t *words = (uint32_t *)ip;
    if (length < IP_OCTETS + sizeof(Udp) || length + header > skb->len || ip->fragment & load16(MORE_OR_OFFSET) || ip->ttl <= 1)
        return GO_ON;
    if (fold((uint64_t)words[0] + words[1] + words[2] + words[3] + words[4]) != 0xFFFF)
        return GO_ON;
    uint32_t protocol = ip->protocol;
    uint32_t headers = IP_OCTETS + sizeof(Udp);
    Tcp *tcp = (Tcp *)(network + IP_OCTETS);
    Udp *udp = (Udp *)tcp;
    if (protocol == TCP) {
        if (network + IP_OCTETS + sizeof(Tcp) > end || (tcp->flags & (FIN | SYN | RST | ACK)) != ACK)
            return GO_ON;
        headers = IP_OCTETS + (tcp->offset >> 4) * 4;
        if (headers < IP_OCTETS + sizeof(Tcp) || headers > length)
            return GO_ON;
    } else if (protocol == UDP) {
        if (load16(udp->length) < sizeof(Udp) || load16(udp->length) > length - IP_OCTETS)
            return GO_ON;
    } else {
        return GO_ON;
    }

    /* its session: the ticket first */
    uint32_t saddr = load32(ip->saddr), daddr = load32(ip->daddr);
    uint32_t sport = load16(udp->sport), dport = load16(udp->dport);
    uint32_t row, direction;
    Session *session = find((uint64_t)saddr << 32 | daddr,
                            (uint64_t)protocol << 56 | (uint64_t)side << 48 | (uint64_t)sport << 32 | dport, &row, &direction);
    if (!session)
        return GO_ON;
    Carried *of_session = look_up(&carried, &row);
    if (!of_session)
        return GO_ON;
    uint32_t ticket = READ(of_session->ticket);
    if (!ticket)
        return GO_ON;
    KEEP_ORDER();
    Flow *flow = direction ? &session->flow[1] : &session->flow[0];
    if (READ(flow->key0) != ((uint64_t)saddr << 32 | daddr)
        || READ(flow->key1) != ((uint64_t)protocol << 56 | (uint64_t)side << 48 | (uint64_t)sport << 32 | dport))
        return GO_ON;
    if (READ(carrier.rules) != (direction ? READ(of_session->rules[1]) : READ(of_session->rules[0])))
        return GO_ON;
    uint32_t generation = READ(carrier.generation);
    KEEP_ORDER();
    uint32_t known = READ(session->known);
    if (known >> 8 != generation || (known >> (4 * direction) & 0x0F) != link)
        return GO_ON;
    KEEP_ORDER();
    uint32_t flags = READ(session->flags);
    uint32_t state = READ(session->state);
    uint32_t new_saddr = READ(flow->saddr), new_daddr = READ(flow->daddr);
    uint32_t new_sport = READ(flow->sid), new_dport = READ(flow->did);
    uint32_t address_delta = READ(flow->address_delta);
    if (direction == INBOUND && !(flags & SESSION_REPLIED))
        return GO_ON;

    /* its way */
    uint32_t number = READ(flow->hop);
    Hop *hop = look_up(&hops, &number);
    if (!hop || READ(hop->state) != HOP_VALID)
        return GO_ON;
    uint32_t mtu = READ(hop->mtu);
    if (length > mtu && (skb->gso_size == 0 || headers + skb->gso_size > mtu))
        return GO_ON;
    CarrierLink *to = &carrier.links[READ(hop->link) & (LINKS - 1)];
    uint32_t ifindex = READ(to->ifindex);
    uint32_t new_header = READ(hop->header_length);
    if (!ifindex)
        return GO_ON;
    uint16_t ethernet[ETHERNET_LENGTH / 2];
#pragma GCC unroll 7
    for (int i = 0; i < ETHERNET_LENGTH / 2; i++)
        ethernet[i] = ((volatile uint16_t *)hop->header)[i];

    /* what its ends say, table/tcp_state.pxd: is_plausible and tcp_track, all being known */
    uint32_t timeout;
    TcpEnd *own = direction ? &session->tcp[1] : &session->tcp[0];
    TcpEnd *other = direction ? &session->tcp[0] : &session->tcp[1];
    TcpEnd said = {0};
    if (protocol == TCP) {
        if (state != TCP_ESTABLISHED || (flags & ENDS_KNOWN) != ENDS_KNOWN)
            return GO_ON;
        uint32_t scales = READ(session->scale);
        uint32_t shift = window_shift(flags, scales, direction);
        uint32_t seq = load32(tcp->seq), ack = load32(tcp->ack);
        uint32_t last = seq + length - headers;
        int32_t slack = (uint32_t)WINDOW_SLACK << window_shift(flags, scales, 1 - direction);
        int32_t ahead = order(ack, READ(other->end));
        if (order(seq, READ(other->edge)) > 0 || order(last, READ(other->ack)) < -slack)
            return GO_ON;
        slack = (uint32_t)WINDOW_SLACK << shift;
        if (ahead < -slack || ahead > WINDOW_SLACK)
            return GO_ON;
        said.end = later(last, READ(own->end));
        said.ack = later(ack, READ(own->ack));
        said.edge = later(ack + ((uint32_t)load16(tcp->window) << shift), READ(own->edge));
        timeout = READ(carrier.tcp_established);
    } else {
        if (state != UDP_ACTIVE)
            return GO_ON;
        timeout = READ(carrier.udp_active);
    }

    /* what has been read is of one session, and its hop is the one that it means */
    KEEP_ORDER();
    if (READ(of_session->ticket) != ticket || READ(carrier.generation) != generation)
        return GO_ON;

    if (protocol == TCP) {
        if (said.end != READ(own->end))
            WRITE(own->end, said.end);
        if (said.ack != READ(own->ack))
            WRITE(own->ack, said.ack);
        if (said.edge != READ(own->edge))
            WRITE(own->edge, said.edge);
    }
    if (protocol == TCP || direction == OUTBOUND) {
        uint32_t expires = READ(carrier.tick) + timeout;
        if (expires != READ(session->expires))
            WRITE(session->expires, expires);
    }
    if (direction) {
        __sync_fetch_and_add(&of_session->packets[1], 1);
        __sync_fetch_and_add(&of_session->octets[1], length);
    } else {
        __sync_fetch_and_add(&of_session->packets[0], 1);
        __sync_fetch_and_add(&of_session->octets[0], length);
    }
    if (!READ(hop->used))
        WRITE(hop->used, 1);

    /* path/rewrite.pxd and identification.pxd */
    ip->saddr = load32(new_saddr);
    ip->daddr = load32(new_daddr);
    uint32_t before = (uint32_t)ip->ttl << 8 | protocol;
    ip->ttl -= 1;
    uint32_t sum = (uint16_t)~load16(ip->checksum) + (0xFFFF - before) + (before - 0x100) + address_delta;
    uint32_t key = READ(carrier.identification_key);
    if (key && !(ip->fragment & load16(DONT_FRAGMENT)) && new_saddr != saddr) {
        uint32_t size = skb->gso_size;
        uint16_t identification = take_identification(key, new_daddr, protocol, size ? length / size + 1 : 1);
        sum += (uint16_t)~load16(ip->identification) + identification;
        ip->identification = load16(identification);
    }
    ip->checksum = load16((uint16_t)~fold(sum));
    uint32_t is_unsummed = protocol == UDP && udp->checksum == 0;
    udp->sport = load16(new_sport);
    udp->dport = load16(new_dport);
    if (header && new_header) {
        uint16_t *at = (uint16_t *)data;
#pragma GCC unroll 7
        for (int i = 0; i < ETHERNET_LENGTH / 2; i++)
            at[i] = ethernet[i];
    }

    /* The kernel knows whether the checksum of TCP or UDP is there, partial (then ports do not count), or absent. That the
       headers can be written has been seen above, so that neither call can fail. */
    uint32_t at = (header ? ETHERNET_LENGTH : 0) + IP_OCTETS + (protocol == TCP ? TCP_CHECKSUM : UDP_CHECKSUM);
    uint64_t zero = protocol == UDP ? ZERO_IS_NONE : 0;
    uint32_t port_delta = fold((sport ^ 0xFFFF) + new_sport + (dport ^ 0xFFFF) + new_dport);
    if (is_unsummed)            /* nothing makes up for other ports where a device has summed up all octets */
        update_sum(skb, load16(port_delta));
    if (replace_checksum(skb, at, 0, load16(address_delta), PSEUDO_HEADER | zero))
        return DROP;
    if (port_delta != 0xFFFF && replace_checksum(skb, at, 0, load16(port_delta), zero))
        return DROP;
    if (!header && new_header) {
        if (change_head(skb, ETHERNET_LENGTH, 0))
            return DROP;
        data = (uint8_t *)(long)skb->data;
        end = (uint8_t *)(long)skb->data_end;
        if (data + ETHERNET_LENGTH > end)
            return DROP;
        uint16_t *to_header = (uint16_t *)data;
#pragma GCC unroll 7
        for (int i = 0; i < ETHERNET_LENGTH / 2; i++)
            to_header[i] = ethernet[i];
    }
    return redirect(ifindex, 0);
}

