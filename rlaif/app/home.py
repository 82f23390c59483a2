"""Where the configuration is: the folder that holds conf/, experiments/ and sweeps/.

In a checkout they are at the top level; a wheel carries them inside the package.
"""

from __future__ import annotations

import os
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]

CODE = _PACKAGE if (_PACKAGE / "conf").is_dir() else _PACKAGE.parent
CONF = CODE / "conf"
OPTIONAL = ("experiments", "sweeps")  # groups beside conf/, of which a job may have none

# conf/config.yaml reads it: Hydra resolves its search path before anything of ours could pass it a value.
os.environ["RLAIF_CODE"] = str(CODE)
