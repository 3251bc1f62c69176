"""What the Slicer build, the Extensions Index and pip read: their lists, names and pictures.

The rules are those of Slicer's CMake macros (a file that is not listed is not packaged) and of the
checks and the schema (version 1.0.1) of the Extensions Index.
"""

import ast
import json
import re
import struct
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest

ROOT = Path(__file__).resolve().parents[2]
INDEX_ENTRY = ROOT / "Testing" / "Data" / "SaliencyExplain.json"
UPDATE_LISTS = ROOT / "Testing" / "Data" / "update_cmake_lists.py"
PACKAGED_FOLDERS = ("SaliencyExplain", "SaliencyExplainLib")

REQUIRED_KEYS = {"$schema", "category", "scm_url"}
OPTIONAL_KEYS = {
    "build_dependencies",
    "build_subdirectory",
    "enabled",
    "scm_revision",
    "scm_type",
    "tier",
}
#: Type of each key's value in the schema.
TYPES = {"build_dependencies": list, "enabled": bool, "tier": int}
#: Of the categories that the Index accepts, those that could be this extension's.
ACCEPTED_CATEGORIES = {"Analysis", "Developer Tools", "Quantification", "Segmentation"}
#: Largest checkout that the Index accepts.
MOST_BYTES = 100_000_000
NEEDED_BY_THE_CATALOGUE = (
    "EXTENSION_HOMEPAGE",
    "EXTENSION_CATEGORY",
    "EXTENSION_CONTRIBUTORS",
    "EXTENSION_DESCRIPTION",
    "EXTENSION_ICONURL",
    "EXTENSION_SCREENSHOTURLS",
    "EXTENSION_DEPENDS",
)


def cmake_lists(cmake_file: Path) -> dict[str, list[str]]:
    """Variables that a CMake file sets, with their words; quotes and comments are gone."""
    text = re.sub(r"(?m)^\s*#.*", "", cmake_file.read_text(encoding="utf-8"))
    assignments = re.findall(r'\bset\s*\(\s*(\w+)((?:\s+(?:"[^"]*"|[^\s()"]+))*)\s*\)', text)
    return {
        name: [quoted or bare for quoted, bare in re.findall(r'"([^"]*)"|([^\s"]+)', words)]
        for name, words in assignments
    }


def files_below(folder: Path) -> set[str]:
    """Files to package; what starts with a dot and Python's caches are not."""
    paths = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return {
        path.as_posix()
        for path in paths
        if path.name != "CMakeLists.txt"
        and not any(part == "__pycache__" or part.startswith(".") for part in path.parts)
    }


@pytest.fixture(scope="module")
def root_cmake() -> str:
    return (ROOT / "CMakeLists.txt").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def extension(root_cmake: str) -> dict[str, list[str]]:
    return cmake_lists(ROOT / "CMakeLists.txt")


@pytest.fixture(scope="module")
def index_entry() -> dict[str, object]:
    return json.loads(INDEX_ENTRY.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def pyproject() -> str:
    return (ROOT / "pyproject.toml").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def version(pyproject: str) -> str:
    return re.search(r'(?m)^version = "(.+)"$', pyproject)[1]


# What Slicer packages


@pytest.mark.parametrize("folder", PACKAGED_FOLDERS)
def test_every_file_on_disk_is_listed_in_cmake_and_every_listed_file_exists(folder: str) -> None:
    lists = cmake_lists(ROOT / folder / "CMakeLists.txt")
    listed = {*lists["MODULE_PYTHON_SCRIPTS"], *lists["MODULE_PYTHON_RESOURCES"]}
    on_disk = files_below(ROOT / folder)
    unlisted, gone = sorted(on_disk - listed), sorted(listed - on_disk)
    advice = f"run: python {UPDATE_LISTS.relative_to(ROOT).as_posix()}"
    assert not unlisted, f"would not be packaged: {', '.join(unlisted)}; {advice}"
    assert not gone, f"listed, but not there: {', '.join(gone)}; {advice}"


@pytest.mark.parametrize("folder", PACKAGED_FOLDERS)
def test_python_files_are_listed_as_scripts_and_all_others_as_resources(folder: str) -> None:
    lists = cmake_lists(ROOT / folder / "CMakeLists.txt")
    assert all(name.endswith(".py") for name in lists["MODULE_PYTHON_SCRIPTS"])
    assert not any(name.endswith(".py") for name in lists["MODULE_PYTHON_RESOURCES"])


@pytest.mark.parametrize("folder", PACKAGED_FOLDERS)
def test_lists_name_each_file_once_in_alphabetical_order(folder: str) -> None:
    lists = cmake_lists(ROOT / folder / "CMakeLists.txt")
    for variable in ("MODULE_PYTHON_SCRIPTS", "MODULE_PYTHON_RESOURCES"):
        assert lists[variable] == sorted(set(lists[variable]))


def test_the_script_that_writes_the_lists_agrees_with_them() -> None:
    check = [sys.executable, str(UPDATE_LISTS), "--check"]
    outcome = subprocess.run(check, capture_output=True, text=True)
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr


@pytest.mark.parametrize("package", ["SaliencyExplainLib", "SaliencyExplain/SaliencyExplainPanel"])
def test_every_folder_with_python_files_of_a_package_is_one(package: str) -> None:
    folders = {path.parent for path in (ROOT / package).rglob("*.py")}
    assert folders
    without = [folder.name for folder in folders if not (folder / "__init__.py").is_file()]
    assert not without


def test_the_module_folder_holds_no_python_file_but_the_module() -> None:
    """Slicer takes every Python file directly in it for a module."""
    names = {path.name for path in (ROOT / "SaliencyExplain").glob("*.py")}
    assert names <= {"SaliencyExplain.py"}


def test_slicers_drop_of_a_folder_finds_the_module_and_not_its_packages() -> None:
    """It reads the bare name of the base class and skips folders that are packages."""
    text = (ROOT / "SaliencyExplain" / "SaliencyExplain.py").read_text(encoding="utf-8")
    bases = {
        one.name: [ast.unparse(base) for base in one.bases]
        for one in ast.parse(text).body
        if isinstance(one, ast.ClassDef)
    }
    assert bases["SaliencyExplain"] == ["ScriptedLoadableModule"]
    inner = [path.parent for path in (ROOT / "SaliencyExplain").glob("*/*.py")]
    assert all((folder / "__init__.py").is_file() for folder in inner)


def test_the_sample_data_come_with_the_licence_of_their_source() -> None:
    licence = ROOT / "SaliencyExplain" / "Resources" / "SampleData" / "LICENSE"
    assert "McConnell Brain Imaging Centre" in licence.read_text(encoding="utf-8")


def test_the_library_is_installed_into_a_folder_of_its_own_beside_the_module() -> None:
    library = (ROOT / "SaliencyExplainLib" / "CMakeLists.txt").read_text(encoding="utf-8")
    module = (ROOT / "SaliencyExplain" / "CMakeLists.txt").read_text(encoding="utf-8")
    assert re.search(r"(?m)^  WITH_SUBDIR$", library)
    assert not re.search(r"(?m)^  WITH_SUBDIR$", module)


def test_requirements_leave_out_what_slicer_or_the_pytorch_extension_brings() -> None:
    requirements = ROOT / "SaliencyExplain" / "Resources" / "requirements.txt"
    lines = requirements.read_text(encoding="utf-8").splitlines()
    wanted = [line for line in lines if line and not line.startswith("#")]
    names = {re.match(r"[\w.-]+", line)[0].lower() for line in wanted}
    assert not names & {"torch", "torchvision", "numpy", "scipy", "simpleitk", "vtk", "itk"}
    assert not any("[" in line or "==" in line for line in wanted), "extras and pins replace others"


# What the Extensions Index checks


def test_the_project_is_named_as_its_entry_in_the_extensions_index(root_cmake: str) -> None:
    assert re.search(r"project\s*\(\s*([^\s)]+)", root_cmake)[1] == INDEX_ENTRY.stem
    assert not INDEX_ENTRY.stem.lower().startswith("slicer")


@pytest.mark.parametrize("variable", NEEDED_BY_THE_CATALOGUE)
def test_the_catalogue_finds_each_value_as_one_quoted_string(
    root_cmake: str, variable: str
) -> None:
    values = re.findall(rf'set\s*\({variable}\s*"([^"]+)"\)', root_cmake)
    assert len(values) == 1
    assert values[0].strip()
    assert ";" not in values[0], "CMake would cut the value there"


@pytest.mark.parametrize("variable", ["EXTENSION_ICONURL", "EXTENSION_SCREENSHOTURLS"])
def test_picture_addresses_are_of_pictures_that_the_catalogue_accepts(
    extension: dict[str, list[str]], variable: str
) -> None:
    for address in extension[variable][0].split():
        assert urlsplit(address).scheme == "https"
        assert Path(urlsplit(address).path).suffix in {".png", ".jpg", ".jpeg", ".gif"}


def test_every_screenshot_of_the_catalogue_is_in_this_repository(
    extension: dict[str, list[str]], index_entry: dict[str, object]
) -> None:
    repository = urlsplit(index_entry["scm_url"]).path.removesuffix(".git")
    start = f"{repository}/{index_entry['scm_revision']}/"
    for address in extension["EXTENSION_SCREENSHOTURLS"][0].split():
        path = urlsplit(address).path
        assert path.startswith(start)
        assert (ROOT / path.removeprefix(start)).read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_the_icon_address_leads_to_the_icon_of_this_repository(
    extension: dict[str, list[str]], index_entry: dict[str, object]
) -> None:
    repository = urlsplit(index_entry["scm_url"]).path.removesuffix(".git")
    branch = index_entry["scm_revision"]
    address = urlsplit(extension["EXTENSION_ICONURL"][0]).path
    assert address == f"{repository}/{branch}/ExtensionIcon.png"


@pytest.mark.parametrize(
    ("icon", "size"),
    [("ExtensionIcon.png", 128), ("SaliencyExplain/Resources/Icons/SaliencyExplain.png", 64)],
)
def test_icons_are_square_png_pictures_with_transparency(icon: str, size: int) -> None:
    header = (ROOT / icon).read_bytes()[:26]
    assert header[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">IIBB", header[16:26]) == (size, size, 8, 6)  # 6: RGBA


def test_the_index_entry_has_the_keys_of_the_schema_and_no_others(
    index_entry: dict[str, object],
) -> None:
    assert index_entry.keys() >= REQUIRED_KEYS
    assert index_entry.keys() <= REQUIRED_KEYS | OPTIONAL_KEYS
    assert index_entry["$schema"].endswith("slicer-extension-catalog-entry-schema-v1.0.1.json#")
    assert b"\r" not in INDEX_ENTRY.read_bytes()


def test_the_values_of_the_index_entry_are_of_the_types_and_within_the_bounds_of_the_schema(
    index_entry: dict[str, object],
) -> None:
    for key, value in index_entry.items():
        assert type(value) is TYPES.get(key, str), key
    assert all(isinstance(one, str) for one in index_entry["build_dependencies"])
    assert 1 <= index_entry["tier"] <= 5
    assert index_entry["category"] in ACCEPTED_CATEGORIES
    assert urlsplit(index_entry["scm_url"]).scheme in {"https", "git"}


def test_the_checkout_is_smaller_than_the_index_accepts() -> None:
    git = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listing = subprocess.run(git, cwd=ROOT, capture_output=True, text=True)
    if listing.returncode != 0:
        pytest.skip("this is no git checkout")
    paths = [ROOT / name for name in listing.stdout.split("\0") if name]
    assert sum(path.stat().st_size for path in paths if path.is_file()) < MOST_BYTES


def test_the_index_entry_depends_on_the_same_extensions_as_cmake(
    index_entry: dict[str, object], extension: dict[str, list[str]]
) -> None:
    assert index_entry["build_dependencies"] == extension["EXTENSION_DEPENDS"]


def test_the_index_entry_has_the_category_tier_and_home_of_cmake(
    index_entry: dict[str, object], extension: dict[str, list[str]]
) -> None:
    assert [index_entry["category"]] == extension["EXTENSION_CATEGORY"]
    assert [str(index_entry["tier"])] == extension["EXTENSION_TIER"]
    assert [index_entry["scm_url"]] == extension["EXTENSION_HOMEPAGE"]
    assert Path(urlsplit(index_entry["scm_url"]).path).name.startswith("Slicer")


def test_the_licence_is_where_the_catalogue_and_the_package_look_for_it(pyproject: str) -> None:
    assert (ROOT / "LICENSE").read_text(encoding="utf-8").startswith("MIT License\n")
    assert '\nlicense = "MIT"\n' in pyproject


# Versions


def test_the_version_is_that_of_the_first_release_in_the_changelog(version: str) -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    headings = re.findall(r"(?m)^## \[(.+?)\]", changelog)
    assert next(heading for heading in headings if heading != "Unreleased") == version


def test_a_version_that_the_library_states_is_that_of_the_package(version: str) -> None:
    """Inside Slicer there is no installed package to ask, so the library may carry a copy."""
    modules = (ROOT / "SaliencyExplainLib").rglob("*.py")
    assignments = [
        statement
        for module in modules
        for statement in ast.parse(module.read_bytes()).body
        if isinstance(statement, ast.Assign)
    ]
    stated = {
        ast.literal_eval(assignment.value)
        for assignment in assignments
        if ast.unparse(assignment.targets[0]) == "__version__"
        and isinstance(assignment.value, ast.Constant)
    }
    assert stated <= {version}


def test_the_tested_pytorch_is_the_same_for_make_and_for_the_constraints() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    constraints = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    assert re.search(r"(?m)^TORCH \?= (.+)$", makefile)[1] in constraints.splitlines()
