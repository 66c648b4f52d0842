"""What the proofs of the guarantee are made of; docs/architecture.md describes the parts."""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]

# A script finds modules in its own folder only. Appended: a staged copy of the package may come first.
sys.path += [str(ROOT), str(ROOT / "tests" / "contract")]
