"""TCP (RFC 9293), the network's side of each connection of a guest.

With window scaling (RFC 7323), selective acknowledgements both ways (RFC 2018,
6675), NewReno's congestion control (RFC 5681, 6582), the retransmission timer
of RFC 6298, keep-alive, and the care of RFC 5961 about forged resets. Segments
go out as large as 64 KiB: the guest's driver takes them uncut. There are no
timestamps; they would make every header longer and change nothing on a link
that is memory.

`table` has all connections, `connection` one of them: its state and its timers.
What it sends is `sender`'s, what it receives `receiver`'s; `segment` is the wire format.
"""
