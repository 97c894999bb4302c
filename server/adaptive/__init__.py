"""Keep or eject: what to do with a read whose beginning is called and mapped. Pure: no I/O, no clock."""
