"""The stub of the compiled part says what there is."""

import ast
import inspect
from pathlib import Path

import zfnet
from zfnet import _zfnet


def parameters(function):
    """Names, in order, and those that must be given by name."""
    all = inspect.signature(function).parameters.values()
    named = [one.name for one in all if one.kind is one.KEYWORD_ONLY]
    return [one.name for one in all if one.name not in ("self", *named)], named


def of_stub(function):
    args = function.args
    places = [one.arg for one in [*args.posonlyargs, *args.args] if one.arg != "self"]
    return places, [one.arg for one in args.kwonlyargs]


def test_the_stub_is_the_module():
    tree = ast.parse((Path(zfnet.__file__).parent / "_zfnet.pyi").read_text())
    functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    classes = {name: node for name, node in classes.items() if not name.startswith("_")}
    public = {name for name in dir(_zfnet) if not name.startswith("_")}
    assert public == set(functions) | set(classes)
    for name, stub in functions.items():
        assert parameters(getattr(_zfnet, name)) == of_stub(stub), name
    members = {node.name: node for node in classes["Network"].body if isinstance(node, ast.FunctionDef)}
    assert {name for name in vars(_zfnet.Network) if not name.startswith("__")} == set(members)
    for name, stub in members.items():
        if not stub.decorator_list:  # a property has no parameters
            assert parameters(getattr(_zfnet.Network, name)) == of_stub(stub), name


def test_all_that_is_public_is_described():
    assert (Path(zfnet.__file__).parent / "py.typed").exists()
    for name in zfnet.__all__:
        public = getattr(zfnet, name)
        if name != "__version__":
            assert public.__doc__, name
        if inspect.isclass(public):
            for member, value in vars(public).items():
                if not member.startswith("_") and callable(value):
                    assert value.__doc__, f"{name}.{member}"
