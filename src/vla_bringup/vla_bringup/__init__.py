"""Starts the suite: the list of its nodes, the launch files, the process runner, the command line, configuration."""
