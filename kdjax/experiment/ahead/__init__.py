"""A step compiled ahead of time, for devices that are not here, and read.

    slices.py     names of slices ("v5e:16x16"), and the devices their compiler describes
    hlo.py        the text of a compiled program, as instructions
    parts.py      the parts of a step, by scopes
    products.py   its convolutions and matrix products
    traffic.py    what it reads from and writes to the main memory
    reading.py    what else it says: cycles, collectives, copies, aliasing
    compiling.py  a phase's step compiled for a slice: memory, times by the compiler's estimate, faults
    showing.py    the same as text

Nothing of it was run: cycles rank alternatives of one program, they are no measurement.
"""
