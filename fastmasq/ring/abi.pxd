# What the kernel lays down in shared memory and passes in messages: packet(7), linux/if_packet.h, linux/virtio_net.h.

from libc.stdint cimport int32_t, uint8_t, uint16_t, uint32_t

cdef extern from "<sys/socket.h>" nogil:
    cdef struct iovec:
        void *iov_base
        size_t iov_len
    cdef struct msghdr:
        void *msg_name
        uint32_t msg_namelen
        iovec *msg_iov
        size_t msg_iovlen
        void *msg_control
        size_t msg_controllen
        int msg_flags
    cdef struct mmsghdr:
        msghdr msg_hdr
        unsigned int msg_len
    cdef struct cmsghdr:
        size_t cmsg_len
        int cmsg_level
        int cmsg_type
    ssize_t recvmsg(int fd, msghdr *message, int flags)
    int sendmmsg(int fd, mmsghdr *messages, unsigned int count, int flags)
    int recvmmsg(int fd, mmsghdr *messages, unsigned int count, int flags, void *timeout)
    int getsockopt(int fd, int level, int name, void *value, uint32_t *length)
    int setsockopt(int fd, int level, int name, const void *value, uint32_t length)
    cmsghdr *CMSG_FIRSTHDR(msghdr *message)
    uint8_t *CMSG_DATA(cmsghdr *header)
    enum:
        MSG_DONTWAIT
        MSG_TRUNC
        SOL_SOCKET
        SO_ERROR

cdef extern from "<linux/if_packet.h>" nogil:
    cdef struct sockaddr_ll:
        uint16_t sll_family
        uint16_t sll_protocol
        int32_t sll_ifindex
        uint16_t sll_hatype
        uint8_t sll_pkttype
        uint8_t sll_halen
        uint8_t sll_addr[8]
    cdef struct tpacket2_hdr:
        uint32_t tp_status
        uint32_t tp_len
        uint32_t tp_snaplen
        uint16_t tp_mac
        uint16_t tp_net
        uint32_t tp_sec
        uint32_t tp_nsec
        uint16_t tp_vlan_tci
    cdef struct tpacket3_hdr:
        uint32_t tp_next_offset
        uint32_t tp_snaplen
        uint32_t tp_len
        uint32_t tp_status
        uint16_t tp_mac
        uint16_t tp_net
    cdef struct tpacket_hdr_v1:
        uint32_t block_status
        uint32_t num_pkts
        uint32_t offset_to_first_pkt
    cdef union tpacket_bd_header_u:
        tpacket_hdr_v1 bh1
    cdef struct tpacket_block_desc:
        uint32_t version
        uint32_t offset_to_priv
        tpacket_bd_header_u hdr
    cdef struct tpacket_auxdata:
        uint32_t tp_status
        uint32_t tp_len
        uint32_t tp_snaplen
        uint16_t tp_mac
        uint16_t tp_net
        uint16_t tp_vlan_tci
        uint16_t tp_vlan_tpid
    enum:
        SOL_PACKET "263"
        PACKET_AUXDATA
        PACKET_QDISC_BYPASS
        PACKET_HOST
        PACKET_BROADCAST
        PACKET_MULTICAST
        PACKET_OTHERHOST
        PACKET_OUTGOING
        TP_STATUS_KERNEL
        TP_STATUS_USER
        TP_STATUS_COPY
        TP_STATUS_CSUMNOTREADY
        TP_STATUS_VLAN_VALID

cdef enum:
    # bytes from the start of a ring frame to its sockaddr_ll: TPACKET_ALIGN(sizeof(struct tpacketN_hdr))
    V2_ADDRESS = 32
    V3_ADDRESS = 48

cdef packed struct VnetHeader:
    # linux/virtio_net.h, struct virtio_net_hdr: fields in the machine's byte order
    uint8_t flags
    uint8_t gso_type
    uint16_t hdr_len            # octets of headers, for the sender's linear part
    uint16_t gso_size           # payload octets a segment
    uint16_t csum_start         # from the start of the frame
    uint16_t csum_offset        # of the checksum field from csum_start

cdef enum:
    VNET_LENGTH = 10
    VNET_NEEDS_CSUM = 1         # flags
    VNET_DATA_VALID = 2
    GSO_NONE = 0                # gso_type
    GSO_TCPV4 = 1
    GSO_UDP = 3
    GSO_UDP_L4 = 5
    GSO_ECN = 0x80              # bit

cdef extern from * nogil:
    """
    static inline unsigned int load_acquire(const unsigned int *word) { return __atomic_load_n(word, __ATOMIC_ACQUIRE); }
    static inline void store_release(unsigned int *word, unsigned int value) { __atomic_store_n(word, value, __ATOMIC_RELEASE); }
    """
    # the only two ways a status word shared with the kernel is looked at and given back
    uint32_t load_acquire(const uint32_t *word)
    void store_release(uint32_t *word, uint32_t value)
