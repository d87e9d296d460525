"""Benchmarks against other libraries; all candidates are measured in the same run."""
