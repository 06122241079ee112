"""Faults on purpose: what a cluster is put through for minutes, beyond tests: `scripts/chaos`, `scripts/soak`."""
