#!/bin/sh
# Updown script of libreswan: has fastmasq-spi tell the gateway about SAs that come and go.
#
# Put it at /usr/local/libexec/fastmasq-updown, chmod 755 it, and name it in ipsec.conf, in the conn:
#   leftupdown=/usr/local/libexec/fastmasq-updown
# libreswan's own script makes the routes, so it runs first, and its status is the one that counts:
THEN="ipsec _updown"
#
# Pluto does not call it when it rekeys, and what it calls SPI_IN is the SPI of what goes out. So the first call
# starts `fastmasq-spi watch`, which reads SPIs from the kernel and stays, and announces rekeyed SAs as well.

FASTMASQ_SPI=${FASTMASQ_SPI:-/usr/local/sbin/fastmasq-spi}

status=0
if [ -n "$THEN" ]; then
    $THEN "$@"
    status=$?
fi

# Nothing here may keep the tunnel from working: a failure is one line in the log of pluto. With AH there are no SPIs
# that a gateway must know; SAs with ESP in UDP are left out by fastmasq-spi.
if [ "$PLUTO_SA_TYPE" = ESP ]; then
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
