"""Rulesets, their text, and the tools that carry it to the kernel."""
