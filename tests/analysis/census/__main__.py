"""Write the dumps to a folder."""

import sys
from pathlib import Path

from tests.analysis.census.dumps import DUMPS

for one in DUMPS:
    (Path(sys.argv[1]) / f"{one.name}.save").write_text(one.text)
