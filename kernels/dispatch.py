"""From a Python function to machine code: one optimisation for everything that an entry point calls.

Numba compiles every function that another one calls to machine code of its own, optimises it, and optimises it again in
each caller. Here a function called by a compiled one is only translated to LLVM's language (its *body*, once in a
process, without the wrapper that Python would call). An *entry*, a function that Python calls, is linked with all bodies
below it and optimised once; its machine code is what :mod:`workbench.kernels.code_cache` keeps.
"""

from __future__ import annotations

import ast
import functools
import gc
import hashlib
import importlib
import logging
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numba.core import compiler, config, serialize, sigutils, types
from numba.core.codegen import CPUCodeLibrary, JITCodeLibrary
from numba.core.compiler_lock import global_compiler_lock
from numba.core.dispatcher import OmittedArg as OmittedArg
from numba.core.errors import NumbaError
from numba.core.registry import CPUDispatcher
from numba.core.targetconfig import ConfigStack
from numba.extending import typeof_impl
from numba.np.numpy_support import from_dtype, map_layout

from workbench.kernels import code_cache
from workbench.kernels.records import Record, mark_pointers

logger = logging.getLogger(__name__)


class _Library(JITCodeLibrary):
    """Code of one function; bodies linked into it bring along what they call."""

    def add_ir_module(self, module: Any) -> None:
        for function in module.functions:
            if not function.is_declaration:
                mark_pointers(function, self._codegen.target_data)
        super().add_ir_module(module)

    def _linked(self) -> list[CPUCodeLibrary]:
        """Every library below this one, callers before what they call: LLVM takes only what is asked for by then."""
        order: list[CPUCodeLibrary] = []
        seen = {self}

        def visit(library: CPUCodeLibrary) -> None:
            for below in library._linking_libraries if isinstance(library, _Library) else ():
                if below not in seen:
                    seen.add(below)
                    visit(below)
            order.append(library)

        visit(self)
        return order[-2::-1]


class _Body(_Library):
    """A function as LLVM's language only: neither optimised as a whole nor made executable."""

    def finalize(self) -> None:
        self._raise_if_finalized()
        self._finalized = True


class _Entry(_Library):
    def finalize(self) -> None:
        self._raise_if_finalized()
        for library in self._linked():
            self._final_module.link_in(library._get_module_for_linking(), preserve=True)
        self._optimize_final_module()
        self._final_module.verify()
        self._finalize_final_module()

    def _optimize_final_module(self) -> None:
        """Once: Numba's first round is there to find reference counts that cancel."""
        manager, builder = self._codegen._module_pass_manager()
        manager.run(self._final_module, builder)


class _Flags(compiler.Flags):
    """Flags of a kind of kernel, one object that is not changed any more: Numba looks up by them at every call it types,
    and comparing them value by value is a tenth of compiling."""

    __slots__ = ()
    __hash__ = object.__hash__

    def __eq__(self, other: object) -> bool:
        return self is other

    def copy(self) -> _Flags:
        return self


class _Typing:
    """Numba's typing context, which remembers what an operator or a built-in function is for given types.

    Numba asks the same for every place where it stands, and tries each of some dozens of implementations.
    """

    def __init__(self, context: Any) -> None:
        self._context = context
        self._found: dict[tuple[Any, ...], Any] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    def resolve_function_type(self, function: Any, arguments: Any, names: Any) -> Any:
        """Signature of a call."""
        if not isinstance(function, types.Function) or names:
            return self._context.resolve_function_type(function, arguments, names)
        key = function, tuple(arguments)
        if key not in self._found:
            self._found[key] = self._context.resolve_function_type(function, arguments, names)
        return self._found[key]


_natural = [False]
"""Whether the function that is being translated has natural numbers for indices; the last entry is the innermost one's."""


@functools.cache
def _let_natural_numbers_be() -> None:
    """Numba adds the length to a negative index, three instructions before every load and store that wait for each other.

    Only who compiles needs what Numba knows of arrays: it is a twentieth of a short run to import.
    """
    from numba.np import arrayobj

    any_index = arrayobj.fix_integer_index

    def index_of(context: Any, builder: Any, index_type: Any, index: Any, size: Any) -> Any:
        if _natural[-1]:
            return context.cast(builder, index, index_type, types.intp)
        return any_index(context, builder, index_type, index, size)

    arrayobj.fix_integer_index = index_of


_type_of_any_array = typeof_impl.dispatch(np.ndarray)


@typeof_impl.register(np.ndarray)
def _type_of_array(value: Any, context: Any) -> Any:
    """Numba looks whether an array is masked, which imports ``numpy.ma``: a fortieth of a short run."""
    if type(value) is not np.ndarray or value.dtype.hasobject:
        return _type_of_any_array(value, context)
    return types.Array(from_dtype(value.dtype), value.ndim, map_layout(value), readonly=not value.flags.writeable)


COMPILED = not config.DISABLE_JIT
"""False where kernels run as plain Python."""


def _nothing(name: str) -> None:
    pass


before_compiling: Callable[[str], None] = _nothing
"""Called with the name of an entry that Python calls and that is kept nowhere (:mod:`workbench.kernels.warm` sets it)."""


def _compile(kernel: Kernel, values: tuple[Any, ...]) -> None:
    return None


instead_of_compiling: Callable[[Kernel, tuple[Any, ...]], Callable[..., Any] | None] = _compile
"""Called with an entry and its arguments when this process has no machine code for them: gives the function to call this
once instead, or None (:mod:`workbench.kernels.warm` sets it)."""


def code(argument: Any) -> str:
    """Short text for the type of an argument: i8, f8, b1 and so on, i8:2C for an array, a named tuple by its class.

    Fields of a record are in round brackets, those of a named tuple that travels by value in braces.
    """
    if isinstance(argument, types.Array):
        kind = np.dtype(str(argument.dtype)).str[1:]
        return f"{kind}:{argument.ndim}{argument.layout}{'' if argument.mutable else 'r'}"
    if isinstance(argument, (Record, types.BaseNamedTuple)):
        tuple_type, brackets = (argument.tuple_type, "()") if isinstance(argument, Record) else (argument, "{}")
        made, fields = tuple_type.instance_class, ",".join(code(field) for field in tuple_type.types)
        return f"{made.__module__}.{made.__qualname__}{brackets[0]}{fields}{brackets[1]}"
    if isinstance(argument, types.UniTuple):
        return f"{argument.count}*{code(argument.dtype)}"
    if isinstance(argument, types.Omitted):
        return f"={argument.value!r}"
    return np.dtype(str(argument)).str[1:]


def type_of(text: str) -> Any:
    """The type that :func:`code` wrote."""
    if text.startswith("="):
        return types.Omitted(ast.literal_eval(text[1:]))
    if "*" in text and text.split("*")[0].isdigit():
        count, _, rest = text.partition("*")
        return types.UniTuple(type_of(rest), int(count))
    if text.endswith((")", "}")):
        name, _, fields = text[:-1].partition("(" if text.endswith(")") else "{")
        module, _, made = name.rpartition(".")
        field_types = [type_of(field) for field in fields.split(",")]
        named_tuple = getattr(importlib.import_module(module), made)
        if text.endswith(")"):
            return Record(types.NamedTuple(field_types, named_tuple))
        return types.BaseTuple.from_types(field_types, named_tuple)
    kind, _, shape = text.partition(":")
    scalar = from_dtype(np.dtype(kind))
    return types.Array(scalar, int(shape[0]), shape[1], readonly=shape[2:] == "r") if shape else scalar


def path_of(kernel: str, signature: tuple[str, ...]) -> Path | None:
    """File that keeps the machine code of a kernel, named without ``workbench.kernels``, for types given as codes."""
    directory = code_cache.cache_directory()
    key = repr((signature, CPUDispatcher.targetdescr.target_context.codegen().magic_tuple()))
    return None if directory is None else directory / f"{kernel}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"


def compile_entry(kernel: str, signature: tuple[str, ...]) -> None:
    """Compile a kernel of that name for these types and keep it; one that there is no more is passed over."""
    module, _, name = f"workbench.kernels.{kernel}".rpartition(".")
    try:
        function = getattr(importlib.import_module(module), name)
        function.entry(tuple(type_of(text) for text in signature))
    except (ImportError, AttributeError, NumbaError) as error:
        logger.warning("%s was not compiled: %s", kernel, error)


@functools.cache
def _flags_of(options: tuple[tuple[str, object], ...], names: tuple[str, ...]) -> _Flags:
    flags, outside = _Flags(), compiler.Flags()
    outside.nrt = True
    with ConfigStack().enter(outside):  # nothing is inherited from the caller that is being compiled
        CPUDispatcher.targetdescr.options.parse_as_flags(flags, dict(options))
    for name in names:
        setattr(flags, name, True)
    return flags


@functools.cache
def _typing(flags: _Flags) -> _Typing:
    """By flags: what implements a function is compiled with those of its caller."""
    return _Typing(CPUDispatcher.targetdescr.typing_context)


def _widened(argument: Any) -> Any:
    argument = types.unliteral(argument)
    if isinstance(argument, types.Integer) and argument.signed:
        return types.int64
    return argument


class Kernel(CPUDispatcher):
    """A function that Python and other kernels call; :mod:`workbench.kernels.compile` makes them.

    ``natural``: no index of it is negative, so none is compared with 0. Where indices are checked (``NUMBA_BOUNDSCHECK=1``)
    a negative one raises IndexError.
    """

    def __init__(self, function: Callable[..., object], *, natural: bool = False, **options: object) -> None:
        super().__init__(py_func=function, targetoptions={"nopython": True, "nogil": True, **options})
        self._bodies: dict[tuple[Any, ...], Any] = {}
        self._natural = natural
        self.direct: Callable[..., Any] = self
        """What Python calls instead where the types of all arguments are always the same: once there is machine code for
        them, that itself. Looking at the types of each array takes five times as long as the call of a small kernel. Where
        indices are checked types are, too: TypeError."""

    # What Python calls.

    def add_overload(self, result: Any) -> None:
        super().add_overload(result)
        code = self._of_known_types if config.BOUNDSCHECK else result.entry_point
        self.direct = code if len(self.overloads) == 1 else self

    def _of_known_types(self, *values: Any) -> Any:
        if self.types_of(values) not in self.overloads:
            raise TypeError(f"{self.name}: called directly with arguments of other types")
        return self(*values)

    @global_compiler_lock
    def _compile_for_args(self, *values: Any, **names: Any) -> Any:
        """Numba's dispatcher asks for the machine code for values of types that it sees for the first time."""
        try:
            return instead_of_compiling(self, values) or self.entry(self.types_of(values))
        finally:
            self._types_active_call.clear()

    def types_of(self, values: tuple[Any, ...]) -> tuple[Any, ...]:
        """Numba's types of arguments."""
        return tuple(
            types.Omitted(value.value) if isinstance(value, OmittedArg) else self.typeof_pyval(value)
            for value in values
        )

    def entry(self, signature: tuple[Any, ...]) -> Any:
        """Machine code for arguments of these types: kept by an earlier process, or compiled now and kept."""
        if signature not in self.overloads:
            self.add_overload(self._load_or_compile(signature))
        return self.overloads[signature].entry_point

    @property
    def name(self) -> str:
        """Module below ``workbench.kernels`` and name of the function."""
        return f"{self.py_func.__module__.removeprefix('workbench.kernels.')}.{self.py_func.__qualname__}"

    def _load_or_compile(self, signature: tuple[Any, ...]) -> Any:
        codes = tuple(code(argument) for argument in signature)
        path = path_of(self.name, codes) if self._is_listed_source() else None
        if path is None:
            return self._compile_entry(signature)
        result = self._load(path)
        if result is None:
            before_compiling(self.name)
            with code_cache.only_one(path) as first:
                result = self._load(path)  # another process was quicker
                if result is None:
                    result = self._compile_entry(signature)
                    if first:
                        code_cache.write(path, serialize.dumps((self.name, codes, result._reduce())))
        return result

    def _is_listed_source(self) -> bool:
        """Whether the digest in the directory's name covers the function: one of a test or a notebook is not kept."""
        return self.py_func.__module__.startswith("workbench.kernels.")

    def _load(self, path: Path) -> Any:
        data = code_cache.read(path)
        if data is None:
            return None
        try:
            return compiler.CompileResult._rebuild(self.targetctx, *pickle.loads(data)[2])
        except Exception as error:
            logger.warning("%s is compiled anew: what was kept cannot be loaded (%s)", self.name, error)
            return None

    def _compile_entry(self, signature: tuple[Any, ...]) -> Any:
        self._compilation_chain_init_hook()
        self.targetctx.refresh()
        flags = self._flags("no_cfunc_wrapper")
        collecting = gc.isenabled()
        gc.disable()  # a compiler makes many objects and little garbage
        try:
            return self._compiled(signature, flags, _Entry)
        finally:
            if collecting:
                gc.enable()

    # What other kernels call.

    def get_call_template(self, arguments: Any, names: Any) -> Any:
        """A body serves every constant and every width: few of them, and LLVM puts constants in where it inlines."""
        _, arguments = self._compiler.fold_argument_types(arguments, names)
        return super().get_call_template(tuple(_widened(argument) for argument in arguments), {})

    def compile(self, signature: Any) -> Any:
        arguments, _ = sigutils.normalize_signature(signature)
        arguments = tuple(arguments)
        if arguments not in self._bodies:
            flags = self._flags("no_cpython_wrapper", "no_cfunc_wrapper", "no_compile")
            result = self._compiled(arguments, flags, _Body)
            result = result._replace(entry_point=(self, arguments))
            self.targetctx.insert_user_function(result.entry_point, result.fndesc, [result.library])
            self._bodies[arguments] = result
        return self._bodies[arguments].entry_point

    def get_overload(self, signature: Any) -> Any:
        arguments, _ = sigutils.normalize_signature(signature)
        return self._bodies[tuple(arguments)].entry_point

    @property
    def nopython_signatures(self) -> list[Any]:
        return [result.signature for result in self._bodies.values()]

    def _flags(self, *names: str) -> _Flags:
        """Flags of the kernel's options, with ``names`` set."""
        return _flags_of(tuple(sorted(self.targetoptions.items())), names)

    def _compiled(self, arguments: tuple[Any, ...], flags: _Flags, kind: type[_Library]) -> Any:
        _let_natural_numbers_be()
        library = kind(self.targetctx.codegen(), self.py_func.__qualname__)
        library.enable_object_caching()
        _natural.append(self._natural)
        try:
            return compiler.compile_extra(
                _typing(flags), self.targetctx, self.py_func, args=arguments, return_type=None, flags=flags, locals={},
                library=library,
            )  # fmt: skip
        finally:
            _natural.pop()
