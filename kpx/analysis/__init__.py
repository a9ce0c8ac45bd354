"""Questions about a ruleset, answered from its rules alone: knows packets and netfilter, nothing of clusters. Pure."""
