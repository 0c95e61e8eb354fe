"""Layer 4, trackers of protocols without ports: PPTP's calls, ISAKMP's cookies, ESP's SPIs; sans I/O, sans clock."""
