"""Write the shape world's splits again; the committed ones are these, to the byte.

python scripts/make_data.py FOLDER
"""

import sys
from pathlib import Path

from cppo_ref.worlds.splits import write_splits

if __name__ == "__main__":
    if len(sys.argv) != 2 or Path(sys.argv[1]).exists():
        sys.exit("give the name of a new folder: python scripts/make_data.py FOLDER")
    write_splits(Path(sys.argv[1]))
