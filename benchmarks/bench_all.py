"""Run every benchmark with small sizes, to check that all of them work: `make bench`. The figures mean nothing.

    python benchmarks/bench_all.py

README.md in this folder says how to run each at full size.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from alphafuse.data.sources.demo import write_demo_clips

HERE = Path(__file__).parent


def main() -> None:
    """Run all benchmarks; exit with the code of the first that fails."""
    with tempfile.TemporaryDirectory(prefix="alphafuse-bench-") as name:
        folder = Path(name)
        write_demo_clips(folder, clips_per_class=1)
        commands = (
            ("bench_extract.py", "--clips", folder / "clips", "--quick", "--repeats", 1),
            ("bench_heads.py", "--quick", "--repeats", 1),
            ("bench_weigh.py", "--quick"),
            ("simulate_weigh.py", "--dims", "8,8", "--signal", "0.8,0.4", "--clips", 100, "--draws", 2, "--truths", 2),
            ("simulate_statistics.py", "--videos", 50, "--draws", 10),
            ("bench_scale.py", "--clips", 1_000_000, "--nodes", 100, "--roots", 4),
            ("train_compact.py", "--out", folder / "compact", "--clips", 16, "--epochs", 1),
        )
        for script, *options in commands:
            words = [sys.executable, str(HERE / script), *map(str, options)]
            print(f"$ python benchmarks/{script} {' '.join(map(str, options))}", flush=True)
            start = time.monotonic()
            code = subprocess.run(words, check=False).returncode
            print(f"  {time.monotonic() - start:.0f} s\n", flush=True)
            if code:
                sys.exit(code)


if __name__ == "__main__":
    main()
