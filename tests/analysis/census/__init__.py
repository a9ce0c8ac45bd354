"""Dumps of forty nodes: shapes that public reports show, written anew with addresses for documentation.

`python -m tests.analysis.census FOLDER` writes them as files. `DUMPS` in `dumps` holds them with what is known of each.
"""
