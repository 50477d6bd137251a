"""Pure: what a pool is and what is decided about it. No I/O, no clock."""
