"""Types of what the rows of trackers hold, as narrow as a row is believed that another process has left in a file."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

Address = Annotated[int, Meta(ge=1, le=0xFFFFFFFF)]  # in host order
CallId = Annotated[int, Meta(ge=0, le=0xFFFF)]
Spi = Annotated[int, Meta(ge=0, le=0xFFFFFFFF)]
SequenceNumber = Annotated[int, Meta(ge=0, le=0xFFFFFFFF)]
Octet = Annotated[int, Meta(ge=0, le=0xFF)]
Count = Annotated[int, Meta(ge=0, le=0xFFFFFFFF)]
Number = Annotated[int, Meta(ge=1, le=1 << 62)]  # of a row
Time = Annotated[int, Meta(ge=0, le=1 << 62)]  # ns
Cookie = Annotated[bytes, Meta(min_length=8, max_length=8)]
