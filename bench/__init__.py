"""Benchmarks of recollect: `python -m bench.run`. See README.md beside this file."""
