"""The stub of the compiled part says what there is."""

import ast
import inspect
from pathlib import Path

import zfnet
from zfnet import _zfnet


def parameters(function):
    """Of each its name, whether it must be given by name, and whether it may be left out."""
    all = inspect.signature(function).parameters.values()
    return [(one.name, one.kind is one.KEYWORD_ONLY, one.default is not one.empty) for one in all if one.name != "self"]


def of_stub(function):
    args = function.args
    places = [*args.posonlyargs, *args.args]
    first = len(places) - len(args.defaults)  # that may be left out
    told = [(one.arg, False, place >= first) for place, one in enumerate(places) if one.arg != "self"]
    return told + [(one.arg, True, default is not None) for one, default in zip(args.kwonlyargs, args.kw_defaults)]


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
