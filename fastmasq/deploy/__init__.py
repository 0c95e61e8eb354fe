"""What `fastmasq install` puts on a host and takes away again: service, names, manual pages, completion, sample."""
