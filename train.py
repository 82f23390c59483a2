"""`python train.py stage=rm labeler=cot`: the `rlaif` command of a checkout, which writes below the checkout.

See README.md; every option is in conf/.
"""

import os
from pathlib import Path

os.environ.setdefault("RLAIF_ROOT", str(Path(__file__).resolve().parent))

from rlaif.app.command.start import main

if __name__ == "__main__":
    main()
