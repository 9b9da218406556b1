"""Networks as Flax Linen modules; import nothing else of mpi_jax."""
