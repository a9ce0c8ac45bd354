"""kpx on a real Kubernetes: `make cluster-test KUBE_BIN=DIR`. README.md tells what it does and what was seen."""
