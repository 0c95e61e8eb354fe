#!/bin/sh
# A hook of fastmasq for a name that follows the outside address: tells a dynamic DNS service about a new one.
#
# Put it at /usr/local/libexec/fastmasq-dyndns, chmod 755 it, write down below what your service wants, and name it in
# fastmasq.toml. An ordinary user is enough for it:
#   [hooks]
#   address_changed = "/usr/local/libexec/fastmasq-dyndns"
#   user = "nobody"
# What this prints is in the log of fastmasq, and so is a status other than 0. It has 10 seconds ([hooks] timeout).

HOST=gateway.example.org
# The protocol of dyndns2, which most services speak; user and password in a file that only the hook's user may read.
URL="https://dyndns.example.org/nic/update?hostname=$HOST&myip=$FASTMASQ_ADDRESS"
CREDENTIALS=${CREDENTIALS:-/usr/local/etc/dyndns.curl} # a line: user = "name:password"

# With a name server of your own, in place of curl, nsupdate(1) does it:
#   printf 'update delete %s A\nupdate add %s 300 A %s\nsend\n' "$HOST." "$HOST." "$FASTMASQ_ADDRESS" | nsupdate -k KEY

[ "$FASTMASQ_EVENT" = address_changed ] || exit 0
echo "$HOST: ${FASTMASQ_OLD_ADDRESS:-no address} -> $FASTMASQ_ADDRESS"
answer=$(curl --silent --show-error --fail --max-time 8 --config "$CREDENTIALS" "$URL") || exit 1
case $answer in
    good* | nochg*) echo "$HOST: $answer" ;;
    *)
        echo "$HOST: the service says: $answer"
        exit 1
        ;;
esac
