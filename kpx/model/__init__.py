"""What a proxy knows: service ports, endpoints, this node, and which endpoints it may use. Pure."""
