"""How good: runs, record, report, pictures; may import `predict`, `runtimes`, `bundle`."""
