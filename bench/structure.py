"""The size of the source, and the number of source files that each command passes through.

A command passes a file if it calls a function of it. What importing runs (a module's body and all it calls) does not
count, nor does an ``__init__.py`` that imports lazily. Each command runs on ``moons`` with tiny settings, through
``advect.cli.run``, in a process of its own under ``sys.setprofile``, which sees the main thread alone.

No name of a function is needed. The loop is the innermost function call that encloses the last two forward passes in
training; what it calls on the way to them is a step. All before the first step is the way to the loop, and one step
lasts from the fifth call to the sixth, where nothing is logged, sampled or saved.

A circle is a strongly connected component of the imports at module level. Those under TYPE_CHECKING, which never run,
are counted apart.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

RUNS = {
    "train": "moons --run-dir run --width 16 --batch-size 64 --max-steps 9 --sample-every 0 --eval-every 0",
    "sample": "run --num-samples 20",
    "eval": "run --num-samples 50 --nfe 2",
    "report": "run --num-samples 50 --nfes 1 2",
}


def documents(tree: ast.AST) -> Iterator[str]:
    """The docstrings of modules, classes, functions and attributes."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield node.value.value


def imports(name: str, path: Path, modules: dict[str, Path], typing: bool) -> set[str]:
    """The modules that ``name`` imports at its top level, with those under TYPE_CHECKING too if ``typing``."""
    found: set[str] = set()
    todo: list[ast.AST] = [ast.parse(path.read_text())]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = name.split(".")[: None if path.name == "__init__.py" else -1]
                base = ".".join([*package[: len(package) - node.level + 1], *([base] if base else [])])
            for alias in node.names:
                part = f"{base}.{alias.name}"
                found.add(part if part in modules else base)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            todo += node.body if typing else node.orelse
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            todo += ast.iter_child_nodes(node)
    return (found & modules.keys()) - {name}


def circles(modules: dict[str, Path], typing: bool) -> list[list[str]]:
    """The groups of modules that reach one another."""
    edges = {name: imports(name, path, modules, typing) for name, path in modules.items()}
    reached: dict[str, set[str]] = {}
    for name in modules:
        seen, todo = set(), [name]
        while todo:
            for other in edges[todo.pop()] - seen:
                seen.add(other)
                todo.append(other)
        reached[name] = seen
    groups = {tuple(sorted(m for m in reached[n] if n in reached[m])) for n in modules if n in reached[n]}
    return [list(group) for group in sorted(groups)]


def trace(src: Path, words: list[str]) -> None:
    """Run one command in this process and print, as the last line, the files it passed and the modules it loaded."""
    import torch

    root = f"{src / 'advect'}{os.sep}"
    events: list[CodeType] = []  # the functions entered, in order
    stack: list[int] = []  # where in events the functions stand that have not returned
    forwards: list[list[int]] = []  # the stacks at each forward pass in training
    importing = depth = 0

    def profile(frame: FrameType, event: str, _: Any) -> None:
        nonlocal importing
        code = frame.f_code
        if event not in ("call", "return") or not code.co_filename.startswith(root):
            return
        change = 1 if event == "call" else -1
        if code.co_name == "<module>":
            importing += change
        elif code.co_flags & inspect.CO_OPTIMIZED and not importing:  # a function, and not the body of a class
            if change > 0:
                stack.append(len(events))
                events.append(code)
            else:
                stack.pop()

    def before(net: torch.nn.Module, _: Any) -> None:
        nonlocal depth
        weight = next(net.parameters(), None)
        if depth == 0 and net.training and torch.is_grad_enabled() and weight is not None and not weight.is_meta:
            forwards.append([*stack, len(events)])
        depth += 1

    def after(*_: Any) -> None:
        nonlocal depth
        depth -= 1

    torch.nn.modules.module.register_module_forward_pre_hook(before)
    torch.nn.modules.module.register_module_forward_hook(after, always_call=True)
    from advect.cli import run

    sys.setprofile(profile)
    run(words)
    sys.setprofile(None)

    spans = {"": (0, len(events))}
    if words[0] == "train":
        last = forwards[-1]
        shared = sum(a == b for a, b in zip(last, forwards[-2], strict=False))
        steps = [positions[shared] for positions in forwards if positions[:shared] == last[:shared]]
        spans = {": to the loop": (0, steps[0]), ": one step": (steps[4], steps[5])}
    passed = {
        name: sorted({code.co_filename for code in events[a:b] if not lazy(code)}) for name, (a, b) in spans.items()
    }
    files = {name: [path.removeprefix(root) for path in paths] for name, paths in passed.items()}
    loaded = sorted(name for name in sys.modules if name.split(".")[0] == "advect")
    print("\n" + json.dumps({"files": files, "modules": loaded}))


def lazy(code: CodeType) -> bool:
    """Whether this is an ``__init__.py`` that imports on demand."""
    return code.co_filename.endswith("__init__.py") and code.co_name in ("__getattr__", "__dir__")


def passed(src: Path) -> dict[str, list[str]]:
    """The files that each command passes, and the modules that training loads."""
    result: dict[str, list[str]] = {}
    with tempfile.TemporaryDirectory() as folder:
        env = {**os.environ, "PYTHONPATH": str(src), "OMP_NUM_THREADS": "1", "ADVECT_CACHE": f"{folder}/cache"}
        for command, flags in RUNS.items():
            words = [sys.executable, __file__, "--src", str(src), "--trace", command, *flags.split()]
            done = subprocess.run(words, cwd=folder, env=env, capture_output=True, text=True)
            if done.returncode:
                sys.exit(f"advect {command} {flags} failed under the tracer:\n{done.stderr[-2000:]}")
            row = json.loads(done.stdout.splitlines()[-1])
            for name, files in row["files"].items():
                result[f"advect {command}{name}"] = files
            if command == "train":
                result["advect train: modules imported"] = row["modules"]
    return result


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--src", type=Path, default=Path(__file__).parents[1] / "src", help="the folder that holds advect"
    )
    parser.add_argument("--files", action="store_true", help="name the files that each command passes")
    parser.add_argument("--trace", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    args = parser.parse_args()
    src: Path = args.src.resolve()
    if args.trace:
        trace(src, args.trace)
        return
    paths = sorted((src / "advect").rglob("*.py"))
    modules = {".".join(p.relative_to(src).with_suffix("").parts).removesuffix(".__init__"): p for p in paths}
    texts = {path: path.read_text() for path in paths}
    sizes = {path: len(text.splitlines()) for path, text in texts.items()}
    small = [p for p, n in sizes.items() if n < 40]
    words = sum(len(text.split()) for source in texts.values() for text in documents(ast.parse(source)))
    runs = passed(src)
    rows: dict[str, int | float] = {
        "source files": len(sizes),
        "lines": sum(sizes.values()),
        "median lines of a file": statistics.median(sizes.values()),
        "files over 400 lines": sum(n > 400 for n in sizes.values()),
        "files under 40 lines, `__init__.py` apart": sum(p.name != "__init__.py" for p in small),
        "`__init__.py` under 40 lines": sum(p.name == "__init__.py" for p in small),
        "words in docstrings": words,
        **{f"{name}{'' if 'modules' in name else ', files'}": len(files) for name, files in runs.items()},
    }
    groups = {"circles of imports": circles(modules, False), "with those under TYPE_CHECKING": circles(modules, True)}
    print("| | |\n|---|---|")
    for name, number in rows.items():
        print(f"| {name} | {number:,} |")
    for name, found in groups.items():
        print(f"| {name} | {len(found)} |")
    for name, found in groups.items():
        for group in found:
            print(f"\n{name}: {', '.join(group)}")
    for name, files in runs.items() if args.files else []:
        print(f"\n{name} ({len(files)}):\n  " + "\n  ".join(files))


if __name__ == "__main__":
    main()
