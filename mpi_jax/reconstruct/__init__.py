"""Classical reconstruction: arrays in, arrays out; imports nothing else of mpi_jax."""
