"""Everything that happens on a lent machine. Never imports `coordinator`."""
