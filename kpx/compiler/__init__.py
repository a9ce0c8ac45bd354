"""Model to ruleset: each service port compiles alone, a layout joins them. Pure."""
