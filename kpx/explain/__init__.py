"""What is up with a Service: joins what the cluster says, what policy makes of it, and what rules do. Pure."""
