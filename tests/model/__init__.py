"""What is known of a cluster, held against what kube-proxy makes of the same."""
