"""Faults on purpose: what a cluster is put through for minutes, beyond what tests do: `scripts/chaos`, `scripts/soak`."""
