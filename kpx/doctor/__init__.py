"""Can kpx work on this node? Facts about the host, gathered at the rim, and checks, which are pure."""
