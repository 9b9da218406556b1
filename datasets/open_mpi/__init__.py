"""Open MPI Data as a data set: builder.OpenMpi."""
