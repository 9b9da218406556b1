"""Phantoms as a data set: builder.MpiPhantoms."""
