"""The decisions: synchronous objects that take events and `now`, and answer what is to be done. No I/O, no clock."""
