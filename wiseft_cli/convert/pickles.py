"""Read a pickle as data: containers, tensors and inert records; nothing in it is ever called.

A pickle is a program for a stack machine, and `pickle.load` runs it: it imports the names and
calls the functions that the file asks for. This module is another machine for the same programs.
It builds lists, dicts and tuples, describes the tensors of torch, and turns every other object
into a `Record` of its class's name and its contents. A program that names functions which run
code is rejected, although the name would stay a name here.

torch's weights-only loader is not used: it rejects whole modules, needs torch, and reads all
tensors into memory. Memory here is bounded by the size of the pickle; tensors stay on the disk.

Source: the comments of the standard library's `pickletools`, and `torch/_utils.py`.
"""

from __future__ import annotations

import pickletools
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, NoReturn

from wiseft_cli.errors import NotACheckpointError, brief

MAX_PICKLE_BYTES = 64 << 20
"""Longest pickle that is read; the tensors of a model lie outside it."""

_CODE_MODULES = re.compile(
    r"os|posix|nt|pty|sys|subprocess|commands|shutil|socket|runpy|ctypes|"
    r"importlib|imp|pkgutil|code|codeop|pdb|bdb|timeit|trace|profile|cProfile|"
    r"doctest|webbrowser|platform|signal|asyncio|http|urllib|requests|ftplib|"
    r"smtplib|pickle|_pickle|cPickle|marshal|shelve|dill|cloudpickle|joblib|"
    r"inspect|gc|operator|_operator|pip|setuptools|linecache"
)
"""Packages that no weights need and that malicious pickles use."""

_BUILTINS = frozenset({"builtins", "__builtin__", "__builtins__"})
_PLAIN_BUILTINS = re.compile(
    r"set|frozenset|list|dict|tuple|str|bytes|bytearray|int|float|bool|complex|"
    r"object|slice|range|unicode|long|xrange"
)
_TORCH_CODE = frozenset({"hub", "package", "utils.cpp_extension", "ops"})
_CODE_FUNCTIONS = frozenset({"io.open", "_io.open", "torch.load", "torch.serialization.load"})
_MAX_SIZE = 1 << 62


@dataclass(eq=False, slots=True)
class Name:
    """A class or function that a pickle names; it is never looked up."""

    module: str
    name: str

    def __str__(self) -> str:
        return brief(f"{self.module}.{self.name}")


@dataclass(eq=False, slots=True)
class Record:
    """An object of a class that is not known here.

    Attributes:
        cls: Name of its class, or of the function that would have made it.
        args: Arguments of that call.
        state: What the object's attributes are set from.
        items: Entries, of a mapping.
        elements: Elements, of a sequence or a set.
    """

    cls: Name
    args: Any = ()
    state: Any = None
    items: dict[Any, Any] = field(default_factory=dict)
    elements: list[Any] = field(default_factory=list)

    @property
    def attributes(self) -> Mapping[Any, Any]:
        """The attributes in the state; empty for a state of another form."""
        state = self.state
        if isinstance(state, tuple) and len(state) == 2 and isinstance(state[0], dict):
            state = state[0]  # with slots
        return state if isinstance(state, dict) else {}


@dataclass(eq=False, slots=True)
class Storage:
    """The bytes that tensors refer to: the name of torch's storage class, key, number of items."""

    kind: str
    key: str
    numel: int


@dataclass(eq=False, slots=True)
class StoredTensor:
    """A view of a storage, as torch describes it: offset, shape and stride count items.

    Attributes:
        dtype: Name of a torch dtype; None for that of the storage.
    """

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: str | None = None


@dataclass(eq=False, slots=True)
class UnsupportedTensor:
    """A tensor without plain values: its kind, for messages, and what it is made of."""

    kind: str
    args: tuple[Any, ...] = ()


def load_pickle(file: IO[bytes], path: Path) -> Any:
    """Read one pickle from an open file, up to its end mark.

    Args:
        file: Open at the first byte of the pickle.
        path: Name for messages.
    Returns:
        None, numbers, text, bytes, lists, tuples, dicts, and the classes of this module. Values
        may contain themselves. Keys of a dict that are not text, bytes or numbers are `Record`s.
    Raises:
        NotACheckpointError: The pickle is damaged or longer than `MAX_PICKLE_BYTES`, or asks for
            something that data does not need.
    """
    machine = _Machine(path)
    try:
        limited: Any = _Limited(file)
        for opcode, argument, _ in pickletools.genops(limited):
            if opcode.name == "STOP":
                return machine.pop()
            machine.step(opcode.name, argument)
    except NotACheckpointError:
        raise
    except Exception as error:  # the library's readers raise errors of many types
        fault = brief(str(error) or type(error).__name__)
        raise NotACheckpointError(f"{path}: damaged pickle: {fault}") from None
    raise NotACheckpointError(f"{path}: damaged pickle: no end mark")


class _Limited:
    """A file of which at most `MAX_PICKLE_BYTES` are read, and never more at once than it has."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._rest = MAX_PICKLE_BYTES

    def read(self, size: int) -> bytes:
        if size > self._rest:
            raise ValueError(f"more than {MAX_PICKLE_BYTES} bytes")
        self._rest -= size
        return self._file.read(size)

    def readline(self) -> bytes:
        line = self._file.readline(self._rest)
        self._rest -= len(line)
        return line

    def tell(self) -> int:
        return self._file.tell()


class _Machine:
    """The stack machine of pickle, without imports and without calls."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stack: list[Any] = []
        self._marks: list[list[Any]] = []
        self._memo: dict[int, Any] = {}

    def pop(self) -> Any:
        return self._stack.pop()

    def push(self, value: Any) -> None:
        self._stack.append(value)

    def step(self, opcode: str, argument: Any) -> None:
        if opcode in _CONSTANTS:
            self._stack.append(_CONSTANTS[opcode])
        elif _LITERALS.fullmatch(opcode):
            self._stack.append(argument)
        elif opcode in _HANDLERS:
            _HANDLERS[opcode](self, argument)
        elif opcode not in _IGNORED:
            self._reject(f"uses {opcode}, which files of torch do not")

    def _reject(self, what: str) -> NoReturn:
        raise NotACheckpointError(
            f"{self._path}: {what}, so the file is not read",
            hint="nothing in it was run. A file of weights needs no such thing: get it from a "
            "source that you trust, as safetensors if there is one, and do not load this one with "
            "torch.load(weights_only=False)",
        )

    def _mark(self, _: Any) -> None:
        self._marks.append(self._stack)
        self._stack = []

    def _pop_mark(self) -> list[Any]:
        items = self._stack
        self._stack = self._marks.pop()
        return items

    def _pop_one(self, _: Any) -> None:
        if self._stack:
            self._stack.pop()
        else:
            self._pop_mark()

    def _put(self, index: int) -> None:
        self._memo[index] = self._stack[-1]

    def _memoize(self, _: Any) -> None:
        self._memo[len(self._memo)] = self._stack[-1]

    def _get(self, index: int) -> None:
        self._stack.append(self._memo[index])

    def _tuple(self, size: int) -> None:
        items = tuple(self._stack[-size:])
        if len(items) < size:
            raise ValueError("stack underflow")
        self._stack[-size:] = [items]

    def _append(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if isinstance(target, list):
            target.extend(items)
        elif isinstance(target, Record):
            target.elements.extend(items)
        else:
            raise ValueError("elements for an object that has none")

    def _set(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if isinstance(target, dict):
            target.update(_as_dict(items))
        elif isinstance(target, Record):
            target.items.update(_as_dict(items))
        else:
            raise ValueError("entries for an object that has none")

    def _global(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        self._stack.append(self._named(module, name))

    def _stack_global(self, _: Any) -> None:
        name, module = self._stack.pop(), self._stack.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise ValueError("a name that is not text")
        self._stack.append(self._named(module, name))

    def _named(self, module: str, name: str) -> Name:
        root, _, rest = module.partition(".")
        runs_code = _CODE_MODULES.fullmatch(root) or (
            root in _BUILTINS and not _PLAIN_BUILTINS.fullmatch(name)
        )
        in_torch = root == "torch" and any(
            rest == part or rest.startswith(f"{part}.") for part in _TORCH_CODE
        )
        if runs_code or in_torch or f"{module}.{name}" in _CODE_FUNCTIONS:
            self._reject(f"asks for {brief(f'{module}.{name}')}, which can run code")
        return Name(module, name)

    def _reduce(self, _: Any) -> None:
        args, function = self._stack.pop(), self._stack.pop()
        self._stack.append(self._make(function, args))

    def _newobj_ex(self, _: Any) -> None:
        kwargs, args, cls = self._stack.pop(), self._stack.pop(), self._stack.pop()
        self._stack.append(self._make(cls, (*args, kwargs) if kwargs else args))

    def _obj(self, _: Any) -> None:
        cls, *args = self._pop_mark()
        self._stack.append(self._make(cls, tuple(args)))

    def _inst(self, argument: str) -> None:
        args = tuple(self._pop_mark())
        self._global(argument)
        self._stack.append(self._make(self._stack.pop(), args))

    def _make(self, function: Any, args: Any) -> Any:
        """Return what stands for the result of a call."""
        if not isinstance(function, Name):
            self._reject("calls something that is not a class")
        if not isinstance(args, tuple):
            raise ValueError("arguments that are not a tuple")
        known = _KNOWN.get((function.module, function.name))
        if known is not None:
            return known(*args)
        if function.module == "torch._utils" and function.name.startswith("_rebuild_"):
            kind = function.name.removeprefix("_rebuild_").replace("_", " ")
            return UnsupportedTensor(_TENSOR_KINDS.get(function.name, kind), args)
        return Record(function, args)

    def _build(self, _: Any) -> None:
        state = self._stack.pop()
        target = self._stack[-1]
        if isinstance(target, Name):
            self._reject(f"changes {target}")
        if isinstance(target, Record):
            target.state = state

    def _persistent(self, _: Any) -> None:
        match self._stack.pop():
            case ("storage", Name(name=kind), str(key), _, int(numel), *view):
                if any(at is not None for at in view):
                    raise ValueError(f"storage {key!r} is a view of another one")
                self._stack.append(Storage(kind, key, _size(numel)))
            case ("module", Name() as cls, *_):  # before torch 1.6, with the class's source code
                self._stack.append(cls)
            case _:
                self._reject("refers to something outside the file that is not a storage")


def _as_dict(items: list[Any]) -> dict[Any, Any]:
    if len(items) % 2:
        raise ValueError("a key without a value")
    return {_key(key): value for key, value in zip(items[::2], items[1::2], strict=True)}


def _key(value: Any) -> Any:
    """Return a key that is cheap to hash: the hash of nested tuples can take forever."""
    simple = value is None or isinstance(value, str | bytes | int | float | Name | Record)
    return value if simple else Record(Name("builtins", type(value).__name__), (value,))


def _size(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < _MAX_SIZE:
        raise ValueError("a size that is not a number from 0")
    return value


def _sizes(values: Any) -> tuple[int, ...]:
    values = values.args[0] if isinstance(values, Record) and values.args else values
    return tuple(map(_size, values))


def _tensor(
    storage: Any, offset: Any, shape: Any, stride: Any, *rest: Any
) -> StoredTensor | UnsupportedTensor:
    if not isinstance(storage, Storage):
        return UnsupportedTensor("stored inside the pickle (by pickle.dump, not torch.save)")
    tensor = StoredTensor(storage, _size(offset), _sizes(shape), _sizes(stride))
    if len(tensor.shape) != len(tensor.stride):
        raise ValueError("a tensor whose stride does not fit its shape")
    return tensor


def _tensor_with_dtype(
    storage: Any, offset: Any, shape: Any, stride: Any, grad: Any, hooks: Any, dtype: Any, *_: Any
) -> StoredTensor | UnsupportedTensor:
    tensor = _tensor(storage, offset, shape, stride)
    if isinstance(tensor, StoredTensor):
        tensor.dtype = dtype.name if isinstance(dtype, Name) else str(dtype)
    return tensor


def _first(value: Any, *_: Any) -> Any:
    return value


def _subclass(function: Any, cls: Any, args: Any, *_: Any) -> Any:
    """Return the tensor of a subclass, such as a parameter with attributes of its own."""
    known = _KNOWN.get((function.module, function.name)) if isinstance(function, Name) else None
    if known not in (_tensor, _tensor_with_dtype):
        return UnsupportedTensor(f"of the class {cls}", (args,))
    return known(*args)


def _mapping(*args: Any) -> dict[Any, Any]:
    """Return the dict of an OrderedDict; protocols 0 and 1 store its entries as pairs."""
    pairs = args[-1] if args and isinstance(args[-1], list) else []
    return {_key(key): value for key, value in pairs}


def _encoded(text: Any = "", encoding: Any = "latin1") -> bytes:
    if not isinstance(text, str) or encoding != "latin1":
        raise ValueError("bytes in an unknown encoding")
    return text.encode("latin1")


def _reconstructed(cls: Any, base: Any = None, state: Any = None) -> Any:
    if not isinstance(cls, Name):
        raise ValueError("an object whose class is not named")
    return Record(cls)


_KNOWN: dict[tuple[str, str], Callable[..., Any]] = {
    ("collections", "OrderedDict"): _mapping,
    ("collections", "defaultdict"): _mapping,
    ("collections", "Counter"): _mapping,
    ("_codecs", "encode"): _encoded,
    ("__builtin__", "bytes"): _encoded,
    ("copyreg", "_reconstructor"): _reconstructed,
    ("copy_reg", "_reconstructor"): _reconstructed,
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_tensor_v3"): _tensor_with_dtype,
    ("torch._utils", "_rebuild_parameter"): _first,
    ("torch._utils", "_rebuild_parameter_with_state"): _first,
    ("torch._utils", "_rebuild_device_tensor_from_cpu_tensor"): _first,
    ("torch._tensor", "_rebuild_from_type_v2"): _subclass,
}
"""Calls whose result is known without making them; these functions are given data alone."""

_TENSOR_KINDS = {
    "_rebuild_qtensor": "quantized",
    "_rebuild_sparse_tensor": "sparse",
    "_rebuild_nested_tensor": "nested",
    "_rebuild_meta_tensor_no_storage": "on the meta device, without values",
    "_rebuild_wrapper_subclass": "of a tensor subclass, as DTensor is",
}

_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_LITERALS = re.compile(
    r"(BIN)?INT1?|BININT2|LONG[14]?|(SHORT_)?BINSTRING|STRING|(SHORT_)?BINBYTES8?|"
    r"BYTEARRAY8|UNICODE|(SHORT_)?BINUNICODE8?|(BIN)?FLOAT"
)
_IGNORED = frozenset({"PROTO", "FRAME"})
_HANDLERS: dict[str, Callable[[_Machine, Any], None]] = {
    "MARK": _Machine._mark,
    "POP": _Machine._pop_one,
    "POP_MARK": lambda m, _: m._pop_mark().clear(),
    "DUP": lambda m, _: m.push(m._stack[-1]),
    "PUT": _Machine._put,
    "BINPUT": _Machine._put,
    "LONG_BINPUT": _Machine._put,
    "MEMOIZE": _Machine._memoize,
    "GET": _Machine._get,
    "BINGET": _Machine._get,
    "LONG_BINGET": _Machine._get,
    "EMPTY_LIST": lambda m, _: m.push([]),
    "EMPTY_DICT": lambda m, _: m.push({}),
    "EMPTY_TUPLE": lambda m, _: m.push(()),
    "EMPTY_SET": lambda m, _: m.push(Record(Name("builtins", "set"))),
    "LIST": lambda m, _: m.push(m._pop_mark()),
    "DICT": lambda m, _: m.push(_as_dict(m._pop_mark())),
    "TUPLE": lambda m, _: m.push(tuple(m._pop_mark())),
    "FROZENSET": lambda m, _: m.push(Record(Name("builtins", "frozenset"), (m._pop_mark(),))),
    "TUPLE1": lambda m, _: m._tuple(1),
    "TUPLE2": lambda m, _: m._tuple(2),
    "TUPLE3": lambda m, _: m._tuple(3),
    "APPEND": lambda m, _: m._append([m._stack.pop()]),
    "APPENDS": lambda m, _: m._append(m._pop_mark()),
    "ADDITEMS": lambda m, _: m._append(m._pop_mark()),
    "SETITEM": lambda m, _: m._set([m._stack.pop(-2), m._stack.pop()]),
    "SETITEMS": lambda m, _: m._set(m._pop_mark()),
    "GLOBAL": _Machine._global,
    "STACK_GLOBAL": _Machine._stack_global,
    "REDUCE": _Machine._reduce,
    "NEWOBJ": _Machine._reduce,
    "NEWOBJ_EX": _Machine._newobj_ex,
    "OBJ": _Machine._obj,
    "INST": _Machine._inst,
    "BUILD": _Machine._build,
    "BINPERSID": _Machine._persistent,
}
