"""Methods measured: the table, robustness suites, measured phantoms."""
