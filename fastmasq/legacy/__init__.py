"""The command lines of 1999 (ipfwadm, ipchains, rule files) turned into changes of chains and questions about them."""
