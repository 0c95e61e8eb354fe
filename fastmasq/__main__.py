"""`python -m fastmasq` is the command `fastmasq`."""

from fastmasq.cli.main import main

main()
