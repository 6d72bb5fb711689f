"""Running a few lines in a new Python process, as a user does who reloads a model."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np


def run(code: str, folder: Path) -> np.ndarray:
    """The array that the code leaves in `result`; it runs with `folder` at hand."""
    script = folder / "script.py"
    script.write_text(
        f"import pathlib, numpy as np\nfolder = pathlib.Path({str(folder)!r})\n{code}\n"
        "np.save(folder / 'result.npy', np.asarray(result))\n"
    )
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, str(script)], env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return np.load(folder / "result.npy")
