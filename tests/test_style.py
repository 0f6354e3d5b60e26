"""Rules of style that ruff has none for; ``python tests/test_style.py FOLDER`` lists faults."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("kuaisim_gym", "dsrm_agents", "benchmarks")

MAX_LINES = 80
MAX_SHARE = 0.01
PLACEHOLDER = re.compile(
    "_*(anything|asked|both|done|each|every|everything|few|foo|found|given|gone|got|had|held|here|"
    "how|it|its|kept|known|made|many|meant|mine|more|much|nothing|now|ones?|others?|ours|own|parts?|"
    "places?|put|rest|said|same|seen|some|something|stuff|such|taken|temp|that|theirs|them|there|"
    "these|things?|this|those|tmp|told|used|wanted|was|wear|what|when|where|which|who|whoever|whole|"
    "whom|whose|worn)_*",
    re.IGNORECASE,
)
QUESTION = re.compile(r"(What|Who|Whom|Whose|Which|Where|Whether|How)(ever)?\b")
POINTER = re.compile(r"(See|As|Like)( also| the)? (:\w+:)?`[^`]+`( does)?\.?|See [^.]+\.?")

Nodes = Iterable[ast.AST]  # of one module, in any order
Faults = Iterator[tuple[int, str]]  # line and text
Rule = Callable[[Nodes], Faults]


def bound_names(nodes: Nodes) -> Faults:
    """Line and name of whatever gets a name: variables, attributes, arguments, functions."""
    for node in nodes:
        match node:
            case ast.Name(id=name, ctx=ast.Store()) | ast.Attribute(attr=name, ctx=ast.Store()):
                yield node.lineno, name
            case ast.arg(arg=name) | ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                yield node.lineno, name
            case ast.ClassDef(name=name) | ast.ExceptHandler(name=str(name)):
                yield node.lineno, name


def docstrings(nodes: Nodes) -> Faults:
    """Line and text of the docstrings of a module, its classes and its functions."""
    for node in nodes:
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text:
                yield node.body[0].lineno, text


def long_functions(nodes: Nodes) -> Faults:
    """Functions of more than 80 lines, docstring included."""
    for node in nodes:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or 0) - node.lineno + 1
            if lines > MAX_LINES:
                yield node.lineno, f"{node.name} has {lines} lines"


def placeholder_names(nodes: Nodes) -> Faults:
    """Bound names that do not say which value they hold."""
    for line, name in bound_names(nodes):
        if PLACEHOLDER.fullmatch(name):
            yield line, name


def question_docstrings(nodes: Nodes) -> Faults:
    """Docstrings that start with a question word in place of a noun or a verb."""
    for line, text in docstrings(nodes):
        if QUESTION.match(text):
            yield line, text.splitlines()[0]


def pointer_docstrings(nodes: Nodes) -> Faults:
    """Docstrings that only send the reader elsewhere; ``inspect.getdoc`` inherits by itself."""
    for line, text in docstrings(nodes):
        if POINTER.fullmatch(" ".join(text.split())):
            yield line, text.splitlines()[0]


def loaded_pickles(nodes: Nodes) -> Faults:
    """Loads that would run code from a file, or that do not say that they do not."""
    forbidden = re.compile(r"(pickle|_pickle|cloudpickle|dill|joblib|shelve|marshal)(\..*)?")
    safe = {"np": ("allow_pickle", False), "torch": ("weights_only", True)}
    for node in nodes:
        match node:
            case ast.Import(names=names):
                modules = [alias.name for alias in names]
            case ast.ImportFrom(module=str(name)):
                modules = [name]
            case ast.Call(func=ast.Attribute(value=ast.Name(id=name), attr="load")) if name in safe:
                given = {word.arg: getattr(word.value, "value", None) for word in node.keywords}
                option, value = safe[name]
                if given.get(option) is not value:
                    yield node.lineno, f"{name}.load without {option}={value}"
                continue
            case ast.Attribute(attr="read_pickle" | "load_from_pkl" | "load_replay_buffer"):
                yield node.lineno, node.attr
                continue
            case _:
                continue
        yield from ((node.lineno, module) for module in modules if forbidden.fullmatch(module))


RULES: tuple[Rule, ...] = (
    long_functions, question_docstrings, pointer_docstrings, loaded_pickles,
)  # fmt: skip


@cache
def parsed(folder: str) -> dict[Path, list[ast.AST]]:
    """Syntax nodes of a folder's modules."""
    files = sorted((ROOT / folder).rglob("*.py"))
    assert files, f"no Python in {folder}"
    return {file: list(ast.walk(ast.parse(file.read_text(encoding="utf-8")))) for file in files}


def undocumented(package: str) -> Iterator[str]:
    """Public functions, classes and methods for which ``help`` has no text, inherited or not."""
    for module in pkgutil.walk_packages([str(ROOT / package)], f"{package}."):
        if re.search(r"\.(examples|clients)\.|__main__$", module.name):
            continue
        for name, member in vars(importlib.import_module(module.name)).items():
            if getattr(member, "__module__", None) == module.name:
                yield from without_doc(member, f"{module.name}.{name}")


def without_doc(member: object, path: str) -> Iterator[str]:
    """The path of a public function or class without a docstring, and those of its methods."""
    if path.rsplit(".", 1)[1].startswith("_"):
        return
    if inspect.isroutine(member) and not member.__doc__:
        yield path
    if inspect.isclass(member):
        if not member.__doc__:
            yield path
        for name in vars(member):
            method, *inherited = (getattr(base, name, None) for base in member.__mro__)
            defined = getattr(method, "__qualname__", "") == f"{member.__qualname__}.{name}"
            if defined and not any(map(inspect.getdoc, inherited)):
                yield from without_doc(method, f"{path}.{name}")


def faults(rule: Rule, folder: str) -> list[str]:
    """Lines ``path:line: fault`` of a folder."""
    return [
        f"{file.relative_to(ROOT)}:{line}: {fault}"
        for file, nodes in parsed(folder).items()
        for line, fault in rule(nodes)
    ]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
@pytest.mark.parametrize("package", PACKAGES)
def test_no_fault(package: str, rule: Rule) -> None:
    lines = faults(rule, package)
    assert not lines, "\n".join(["", *lines])


@pytest.mark.parametrize("package", PACKAGES)
def test_help_says_something_of_all_that_is_public(package: str) -> None:
    assert not list(undocumented(package))


@pytest.mark.parametrize("package", PACKAGES)
def test_names_say_which_value_they_hold(package: str) -> None:
    lines = faults(placeholder_names, package)
    total = len(faults(bound_names, package))
    assert len(lines) < MAX_SHARE * total, "\n".join([f"{len(lines)} of {total} names:", *lines])


@pytest.mark.parametrize(
    ("rule", "code", "expected"),
    [
        (long_functions, "def f():\n" + "    x = 1\n" * 80, ["f has 81 lines"]),
        (long_functions, "def f():\n" + "    x = 1\n" * 79, []),
        (
            placeholder_names,
            "def told(one, *, _parts):\n  for found in one:\n    self.kept = (rest, x) = found",
            ["_parts", "found", "kept", "one", "rest", "told"],
        ),
        (
            placeholder_names,
            "agents = [thing for thing in partners]\nwith f() as it: pass",
            ["it", "thing"],
        ),
        (placeholder_names, "other.n_parts = one(found=1)", []),
        (question_docstrings, '"""What a step is."""', ["What a step is."]),
        (question_docstrings, 'class A:\n    """Whoever acts."""', ["Whoever acts."]),
        (question_docstrings, 'async def f():\n    """Whether\n    it ends."""', ["Whether"]),
        (question_docstrings, '"""Whole slates, and what they cost. How?"""', []),
        (pointer_docstrings, 'def f():\n    """See :class:`A`."""', ["See :class:`A`."]),
        (pointer_docstrings, 'def f():\n    """See the base\n    class."""', ["See the base"]),
        (pointer_docstrings, 'def f():\n    """As :meth:`A.f`."""', ["As :meth:`A.f`."]),
        (pointer_docstrings, 'def f():\n    """Slates. See :class:`A`."""', []),
        (pointer_docstrings, 'def f():\n    """As :meth:`A.f`, for one user."""', []),
        (
            loaded_pickles,
            "import pickle, json\nfrom joblib.numpy import load",
            ["joblib.numpy", "pickle"],
        ),
        (loaded_pickles, "np.load(f)", ["np.load without allow_pickle=False"]),
        (loaded_pickles, "np.load(f, allow_pickle=False)\njson.load(f)", []),
        (loaded_pickles, "torch.load(f, weights_only=x)", ["torch.load without weights_only=True"]),
        (loaded_pickles, "torch.load(f, weights_only=True)", []),
        (loaded_pickles, "pd.read_pickle(f)", ["read_pickle"]),
    ],
)
def test_a_rule_sees_what_it_forbids(rule: Rule, code: str, expected: list[str]) -> None:
    assert sorted(fault for _, fault in rule(ast.walk(ast.parse(code)))) == expected


def test_an_inherited_docstring_counts_and_a_missing_one_shows() -> None:
    class Base:
        """Base."""

        def step(self) -> None:
            """Step."""

    class Child(Base):
        """Child."""

        def step(self) -> None: ...

        def reset(self) -> None: ...

        def _hidden(self) -> None: ...

    assert list(without_doc(Child, "module.Child")) == ["module.Child.reset"]


def main(folders: list[str]) -> None:
    """Prints the faults of folders, and their number by rule."""
    for folder in folders or [*PACKAGES, "tests"]:
        total = len(faults(bound_names, folder))
        for rule in (*RULES, placeholder_names):
            lines = faults(rule, folder)
            print(*lines, f"{folder}: {len(lines)} {rule.__name__}", sep="\n")  # noqa: T201
        print(f"{folder}: {len(lines) / total:.1%} of {total} names")  # noqa: T201


if __name__ == "__main__":
    main(sys.argv[1:])
