import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize("module", ["training.pretrain", "training.extract", "training.data.extraction"])
def test_processes_that_extract_import_no_torch(module):
    """There is one for each processor, and each imports the command and what extracts: torch takes seconds."""
    code = f"import sys, {module}, training.data.frame_store, video_distilled_encoder.sources as sources\n"
    code += "sources._readers(); sys.exit(' '.join({'torch', 'timm', 'matplotlib'} & sys.modules.keys()) or 0)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parents[3], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
