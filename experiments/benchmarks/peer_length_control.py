"""AlpacaEval's own length-controlled win rates: the other side of `length_control.py`, in its own environment.

    python peer_length_control.py FILE

FILE is JSON with `models` and `gamed` (by name: preferences `p` for the model, `length`, `baseline`) and `difficulty`.
Prints JSON. The package downloads the difficulties and the gamed baselines of its own 805 instructions: that one call
is replaced by a file with those of FILE, all else is as published.
"""

import json
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from alpaca_eval.metrics import glm_winrate


def annotations(own: dict[str, Any], name: str) -> pd.DataFrame:
    """Texts of the lengths given, and preferences between 1 and 2."""
    return pd.DataFrame(
        {
            "index": range(len(own["p"])),
            "annotator": "simulated",
            "generator_1": "baseline",
            "generator_2": name,
            "output_1": ["x" * int(length) for length in own["baseline"]],
            "output_2": ["x" * int(length) for length in own["length"]],
            "preference": np.array(own["p"]) + 1,
        }
    )


def gamed(data: dict[str, Any]) -> pd.DataFrame:
    """The file that the package expects, of our baselines."""
    frames = []
    for name, own in data["gamed"].items():
        difference = pd.Series(own["baseline"]) - pd.Series(own["length"])
        frames.append(
            pd.DataFrame(
                {
                    "model": name,
                    "index": range(len(own["p"])),
                    "preference": own["p"],
                    "std_delta_len": difference / difference.std(),
                    "instruction_difficulty": data["difficulty"],
                    "not_gamed_baseline": False,
                }
            )
        )
    return pd.concat(frames, ignore_index=True)


def main(file: str) -> None:
    data = json.loads(Path(file).read_text())
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "df_gamed.csv"
        gamed(data).to_csv(path, index=False)
        glm_winrate.hf_hub_download = lambda **options: str(path)
        rates = {
            name: {
                kind: float(
                    glm_winrate.get_length_controlled_winrate(
                        annotations(own, name), glm_name=f"length_controlled_{kind}", save_weights_dir=None
                    )["length_controlled_winrate"]
                )
                / 100
                for kind in ("minimal", "noreg", "v1")
            }
            for name, own in data["models"].items()
        }
    names = ("alpaca_eval", "scikit-learn", "patsy", "pandas", "numpy")
    print("RESULT " + json.dumps({"rates": rates, "versions": {name: version(name) for name in names}}))


if __name__ == "__main__":
    main(sys.argv[1])
