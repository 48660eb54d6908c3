"""What works on this machine, told on one page for bug reports."""
