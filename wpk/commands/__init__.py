"""What the commands of the command line do: files in, tables out. Options are parsed in :mod:`wpk.cli`."""
