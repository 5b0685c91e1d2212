"""A test bench of faults: `make chaos` breaks a run in every way it knows, runs it again, and counts what was lost."""
