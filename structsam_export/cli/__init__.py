"""The command line, a thin face of all other rooms; nothing imports it."""
