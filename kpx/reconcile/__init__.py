"""Desired minus live: plans of the smallest change, and applying them."""
