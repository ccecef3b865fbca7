"""Does the source keep the rules that no linter of ours knows?"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.architecture.sources import SOURCE, imported_at_once, modules, nodes, tree

MODULES = pytest.mark.parametrize("module", modules(), ids=str)

#: Code that runs what it reads. The one reader of foreign ``.pt`` files goes through torch's ``weights_only``.
RUNS_WHAT_IT_READS = {"cPickle", "_pickle", "dill", "cloudpickle", "marshal", "shelve", "jsonpickle"}
CALLS_THAT_RUN_TEXT = {"eval", "exec", "compile", "os.system", "os.popen", "yaml.load", "yaml.unsafe_load"}

#: The training of the demo is a program of its own: it is copied and started, never imported.
PROGRAMS = {Path("milepost/cli/demo_training.py")}

LONGEST_FILE = 450
LONGEST_FUNCTION = 60


@MODULES
def test_nothing_that_is_read_can_run(module: Path) -> None:
    for node in nodes(module):
        assert not (isinstance(node, ast.ImportFrom) and node.module == "pickle"), f"line {node.lineno}"
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            assert not {name.split(".")[0] for name in names} & RUNS_WHAT_IT_READS, f"line {node.lineno}"
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "pickle":
            assert node.attr == "UnpicklingError", f"line {node.lineno}: what torch raises may be caught, no more"
        if isinstance(node, ast.Call):
            assert ast.unparse(node.func) not in CALLS_THAT_RUN_TEXT, f"line {node.lineno}"
            for keyword in node.keywords:
                value = keyword.value.value if isinstance(keyword.value, ast.Constant) else None
                assert (keyword.arg, value) not in {("shell", True), ("allow_pickle", True), ("weights_only", False)}, (
                    f"line {node.lineno}: {keyword.arg}={value}"
                )


@MODULES
def test_every_torch_load_asks_for_weights_only(module: Path) -> None:
    for node in nodes(module):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
            given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            assert given.get("weights_only") == "True", f"line {node.lineno}"


@MODULES
def test_no_exception_is_swallowed_unnamed(module: Path) -> None:
    for node in nodes(module):
        assert not (isinstance(node, ast.ExceptHandler) and node.type is None), f"line {node.lineno}: bare except"


def constants_classes_functions(name: str) -> tuple[bool, bool, str]:
    return not name.isupper(), name[0].islower(), name


@MODULES
def test_exported_names_are_sorted_and_exist(module: Path) -> None:
    body = tree(module).body
    for node in body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            names = ast.literal_eval(node.value)
            assert names == sorted(set(names), key=constants_classes_functions)
            written = (SOURCE / module).read_text(encoding="utf-8").replace(ast.unparse(node), "")
            assert [name for name in names if name not in written] == []


@MODULES
def test_a_module_opens_with_the_question_it_answers(module: Path) -> None:
    docstring = ast.get_docstring(tree(module)) or ""
    assert docstring, "no docstring"
    if module.name != "__init__.py":
        assert "?" in docstring.split("\n\n")[0], docstring.split("\n\n")[0]


@MODULES
def test_files_and_functions_stay_readable_at_one_sitting(module: Path) -> None:
    assert len((SOURCE / module).read_text(encoding="utf-8").splitlines()) <= LONGEST_FILE
    for node in nodes(module):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length <= LONGEST_FUNCTION, f"{node.name}: {length} lines"


@MODULES
def test_the_guests_packages_are_imported_only_when_used_and_torch_by_what_works_on_models(module: Path) -> None:
    if module not in PROGRAMS:
        late = {"tensorboard", "wandb", "safetensors", "pynvml"}
        late |= set() if module.parts[:2] == ("milepost", "checkpoint") else {"torch"}
        assert not late & set(imported_at_once(module))
