"""The command line: verbs to library calls. The only place that parses and prints."""
