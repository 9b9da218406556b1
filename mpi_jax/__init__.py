"""Magnetic Particle Imaging in JAX (MPI here is not the message-passing interface).

One line of data runs through the package, and its modules stand in that order:

    phantom  ->  signal  ->  reconstruction  ->  metrics  ->  report
    c [P]        u [C, V]    c^ [P], mask [P]    numbers      table, figures, page
"""

__version__ = "0.1.0"
