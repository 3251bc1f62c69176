"""Cost of each method, here and in the peers that have it, in one run.

Every time is divided by the floor of one pass: a forward pass and a backward pass to the input with
frozen weights, taken in turn with the method in the same process. Peak memory is the resident size
above that before the call. Writes a table to Testing/Benchmarks/results.md (or --output). One torch
thread, so that times are CPU times.

    python Testing/Benchmarks/run.py [--size 96] [--repeats 3] [--only gradient ...]
"""

from __future__ import annotations

import argparse
import platform
import statistics
from pathlib import Path

import captum
import monai
import torch
from cases import cases
from measure import Row, compare, processor, timed

HERE = Path(__file__).parent


def main() -> None:
    """Run the benchmark and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=96, help="voxels along each axis")
    parser.add_argument("--repeats", type=int, default=2, help="timed pairs of each method")
    parser.add_argument("--only", nargs="*", default=[], help="methods to run; all when left out")
    parser.add_argument("--output", type=Path, default=HERE / "results.md")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows, units = [], []
    for setting, case in cases(arguments.size):
        if arguments.only and case.method.split(",")[0] not in arguments.only:
            continue
        # A long case says enough in one run.
        long = case.passes is None or case.passes > 15
        rows.append(compare(case, setting.one_pass, 1 if long else arguments.repeats))
        units.append(timed(setting.one_pass))
    arguments.output.write_text(_table(rows, arguments.size, units), encoding="utf-8")
    print(f"written: {arguments.output}")


def _table(rows: list[Row], size: int, unit: list[tuple[float, float]]) -> str:
    seconds, megabytes = (statistics.median(values) for values in zip(*unit, strict=True))
    lines = [
        "# Cost of the methods",
        "",
        f"MONAI UNet (16-32-64-128, two residual units, instance norm unless said), {size}^3 "
        "voxels, mean logit of one class inside a ball. Unit: one forward pass and one backward "
        f"pass to the input with frozen weights, {seconds:.2f} s of CPU and {megabytes:.0f} MB "
        "here. One torch thread; median (minimum - maximum) of pairs run in turn, the first run "
        'of each not counted; what takes more than 20 units is run once. "Units needed": passes '
        "of the whole network that the method asks for, a forward pass alone counted as 0.37.",
        "",
        f"Machine: {processor()}, {platform.system()}, Python {platform.python_version()}, torch "
        f"{torch.__version__}, MONAI {monai.__version__}, Captum {captum.__version__}. Made by "
        "`make bench`.",
    ]
    for group in dict.fromkeys(row.case.group for row in rows):
        lines += [
            "",
            f"## {group[0].upper()}{group[1:]}",
            "",
            "| method | library | units needed | time / unit | seconds | peak MB |",
            "| --- | --- | --- | --- | --- | --- |",
        ]
        for row in rows:
            if row.case.group == group:
                needed = "" if row.case.passes is None else f"{row.case.passes:.3g}"
                spread = "" if row.low == row.high else f" ({row.low:.2f} - {row.high:.2f})"
                lines.append(
                    f"| {row.case.method} | {row.case.library} | {needed} | {row.ratio:.2f}"
                    f"{spread} | {row.seconds:.1f} | {row.megabytes:.0f} |"
                )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
