"""Tables: rows over seeds, their ranks, and what differs from a protocol."""
