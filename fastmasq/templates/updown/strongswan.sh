#!/bin/sh
# Updown script of strongSwan: has fastmasq-spi tell the gateway about SAs that come and go.
#
# Put it at /usr/local/libexec/fastmasq-updown, chmod 755 it, and name it
#   in swanctl.conf, connections.<conn>.children.<child>:   updown = /usr/local/libexec/fastmasq-updown
#   in ipsec.conf, the conn:                                 leftupdown=/usr/local/libexec/fastmasq-updown
# Instead of leftfirewall=yes, which is an updown script as well, name what it ran here:
THEN="" # for example "ipsec _updown iptables"
#
# The plugin updown calls it when a CHILD_SA comes up and goes down, not when it is rekeyed, and tells no SPIs. So the
# first call starts `fastmasq-spi watch`, which reads them from the kernel and stays, and announces rekeyed SAs as well.

FASTMASQ_SPI=${FASTMASQ_SPI:-/usr/local/sbin/fastmasq-spi}

status=0
if [ -n "$THEN" ]; then
    $THEN "$@"
    status=$?
fi

# Nothing here may keep the tunnel from working: a failure is one line in the log of strongSwan. With ESP in UDP
# (PLUTO_UDP_ENC) and with AH there are no SPIs that a gateway must know.
if [ "$PLUTO_PROTO" = esp ] && [ -z "$PLUTO_UDP_ENC" ]; then
    case $PLUTO_VERB in
        up-host | up-client)
            "$FASTMASQ_SPI" sync
            "$FASTMASQ_SPI" watch --background
            ;;
        down-host | down-client)
            "$FASTMASQ_SPI" sync
            ;;
    esac
fi
exit $status
