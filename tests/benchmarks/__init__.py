"""What the cluster does a second, beside Ray, in one run: see `scripts/bench --help`."""
