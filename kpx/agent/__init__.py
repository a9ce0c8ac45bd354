"""The long-running proxy of a node: watches the cluster, keeps the kernel right, tells how it fares."""
