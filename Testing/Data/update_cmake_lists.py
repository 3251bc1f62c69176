"""Write the file lists of the extension's CMake files from what lies on disk.

Slicer packages only the files that are listed. Run `python Testing/Data/update_cmake_lists.py`
after adding, renaming or removing a file of `SaliencyExplain/` or `SaliencyExplainLib/`; with
`--check` it only says whether the lists are up to date.
"""

import argparse
import re
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("SaliencyExplain", "SaliencyExplainLib")
LISTS = {
    "MODULE_PYTHON_SCRIPTS": lambda name: name.endswith(".py"),
    "MODULE_PYTHON_RESOURCES": lambda name: not name.endswith(".py"),
}


def packaged_files(folder: Path) -> list[str]:
    """Paths of the files to package, relative to `folder`, sorted.

    Git says which files belong to the project, tracked or new; without git, all do but caches.
    """
    try:
        git = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        listing = subprocess.run(git, cwd=folder, check=True, capture_output=True, text=True)
        names: Iterable[str] = listing.stdout.split("\0")
    except (OSError, subprocess.CalledProcessError):
        names = (path.relative_to(folder).as_posix() for path in folder.rglob("*"))
    return sorted(
        name
        for name in set(names)
        if (folder / name).is_file()
        and name != "CMakeLists.txt"
        and not any(part == "__pycache__" or part.startswith(".") for part in Path(name).parts)
    )


def with_lists(cmake: str, names: Sequence[str]) -> str:
    """The text of a CMake file with `names` between the markers of its lists."""
    for variable, belongs in LISTS.items():
        marked = re.findall(rf"set\({variable}\n  # begin list\n[^#]*  # end list\n", cmake)
        if len(marked) != 1:
            raise SystemExit(
                f"Expected one set({variable} with the lines '# begin list' and '# end list', "
                f"found {len(marked)}."
            )
        lines = [f"set({variable}", "  # begin list"]
        lines += [f"  {name}" for name in names if belongs(name)]
        lines += ["  # end list"]
        cmake = cmake.replace(marked[0], "\n".join(lines) + "\n")
    return cmake


def main() -> int:
    """Write or check the lists; 0 when nothing is left to do."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing; 1 if out of date")
    check = parser.parse_args().check
    stale = []
    for folder in FOLDERS:
        cmake_file = ROOT / folder / "CMakeLists.txt"
        before = cmake_file.read_text(encoding="utf-8")
        after = with_lists(before, packaged_files(ROOT / folder))
        if after != before:
            stale.append(f"{folder}/CMakeLists.txt")
            if not check:
                cmake_file.write_text(after, encoding="utf-8", newline="\n")
    if stale and check:
        print(f"Out of date: {', '.join(stale)}. Run python Testing/Data/update_cmake_lists.py")
    elif stale:
        print(f"Updated: {', '.join(stale)}")
    return int(bool(stale) and check)


if __name__ == "__main__":
    sys.exit(main())
