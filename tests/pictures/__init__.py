"""The pictures in the READMEs: `make pictures` makes them anew. Each says in words what it shows.

So a test can tell without looking whether a picture is still true.
"""

from pathlib import Path

FOLDER = Path(__file__).parents[2] / ".github" / "pictures"
