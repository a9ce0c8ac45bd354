"""`python -m tests.demo`: a node, a small shop on it, and what real packets find there."""
