"""How kernels are declared: what other modules of this wing need to know of compiling.

``@kernel``
    for functions, none of which allocates an array. They are compiled without Numba's reference-counting runtime:
    counting references to array arguments between small helpers costs a factor of 17 to 50, and making the runtime a
    twentieth of a short run.
``@inlined_kernel``
    for small helpers of such functions that take a named tuple of arrays by value: passing it costs more than the
    helper does (3 times slower on the buddy allocator), so they are always inlined.
``@natural_kernel``, ``@inlined_natural_kernel``
    likewise, for functions whose indices are natural numbers: none counts from the end of an array, which Numba would
    otherwise look for before every access (a sixth of the time of a conversion).
``@record``
    for named tuples of arrays: they travel as one pointer (:mod:`workbench.kernels.records`).

Python calls a kernel as any function, or its ``direct`` where the types of all arguments are always the same
(:class:`workbench.kernels.dispatch.Kernel`).

All compile lazily (importing compiles nothing) and release the GIL. How they are compiled is in
:mod:`workbench.kernels.dispatch`, where machine code is kept in :mod:`workbench.kernels.code_cache`, compiling ahead in
:mod:`workbench.kernels.warm`, and the first answer before that in :mod:`workbench.kernels.interpreted`; only these and
:mod:`workbench.kernels.records` know Numba.

Environment: ``WORKBENCH_CACHE_DIR`` chooses the cache directory; ``NUMBA_DISABLE_JIT=1`` runs the kernels as
plain Python, ``NUMBA_BOUNDSCHECK=1`` checks every index (the two ways the tests run them besides compiled).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ParamSpec, Protocol, TypeAlias, TypeVar, cast

import numpy as np
from llvmlite import ir
from numba.core import config, types
from numba.extending import intrinsic

from workbench.kernels.code_cache import cache_directory as cache_directory
from workbench.kernels.code_cache import source_digest as source_digest
from workbench.kernels.dispatch import Kernel
from workbench.kernels.interpreted import IN_PYTHON
from workbench.kernels.records import record as record
from workbench.kernels.warm import prepare as prepare

Int: TypeAlias = int | np.integer[Any]
"""What kernels take and return as integers: compiled they are machine words, as plain Python NumPy's or Python's own."""

_Given = ParamSpec("_Given")
_Returned = TypeVar("_Returned")


class Entry(Protocol[_Given, _Returned]):
    """A function that Python and other kernels call, as :class:`workbench.kernels.dispatch.Kernel` has it."""

    direct: Callable[_Given, _Returned]

    def __call__(self, *args: _Given.args, **kwargs: _Given.kwargs) -> _Returned: ...


def _compiled(
    function: Callable[_Given, _Returned], natural: bool = False, **options: object
) -> Entry[_Given, _Returned]:
    made: Any = function
    if config.DISABLE_JIT:
        made.direct = function
    else:
        made = Kernel(function, natural=natural, **options)
    return cast(Entry[_Given, _Returned], made)


def kernel(function: Callable[_Given, _Returned]) -> Entry[_Given, _Returned]:
    """Compile a function that allocates nothing, without the reference-counting runtime."""
    return _compiled(function, _nrt=False)


def inlined_kernel(function: Callable[_Given, _Returned]) -> Entry[_Given, _Returned]:
    """Like :func:`kernel`, and compiled into every caller."""
    return _compiled(function, _nrt=False, forceinline=True)


def natural_kernel(function: Callable[_Given, _Returned]) -> Entry[_Given, _Returned]:
    """Like :func:`kernel`, for a function without negative indices."""
    return _compiled(function, _nrt=False, natural=True)


def inlined_natural_kernel(function: Callable[_Given, _Returned]) -> Entry[_Given, _Returned]:
    """Like :func:`inlined_kernel`, for a function without negative indices."""
    return _compiled(function, _nrt=False, forceinline=True, natural=True)


def _count_in_python(word: Int) -> Int:
    return int(word).bit_count()


def _one_instruction(typing_context: Any, word: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.ctpop(arguments[0])

    return types.int64(types.uint64), generate


popcount: Callable[[Int], Int] = _count_in_python if config.DISABLE_JIT else intrinsic(_one_instruction)
"""Bits set in a uint64."""
IN_PYTHON.append((popcount, _count_in_python))

LANE_BYTES = 16
"""Bytes that :data:`copy_lane` copies, and what the address of its target is a multiple of."""


def _copy_in_python(array: np.ndarray, source: Int, target: Int) -> None:
    entries = LANE_BYTES // array.itemsize
    array[int(target) : int(target) + entries] = array[int(source) : int(source) + entries]


def _one_store(typing_context: Any, array: Any, source: Any, target: Any) -> Any:
    from numba.np import arrayobj  # a twentieth of a short run to import, which compiles nothing

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        lane = ir.VectorType(ir.IntType(64), LANE_BYTES // 8).as_pointer()
        data = arrayobj.make_array(array)(context, builder, arguments[0]).data
        start, end = (builder.bitcast(builder.gep(data, [index]), lane) for index in arguments[1:])
        store = builder.store(builder.load(start, align=1), end, align=LANE_BYTES)
        store.set_metadata("nontemporal", builder.module.add_metadata([ir.Constant(ir.IntType(32), 1)]))
        return context.get_dummy_value()

    return types.void(array, types.uint64, types.uint64), generate


copy_lane: Callable[[np.ndarray, Int, Int], None] = _copy_in_python if config.DISABLE_JIT else intrinsic(_one_store)
"""Copy :data:`LANE_BYTES` of an array from entry ``source`` to entry ``target`` past the caches.

Memory that is written through the caches is read first: a store beside them costs half of it.
"""
IN_PYTHON.append((copy_lane, _copy_in_python))


def reference_count_calls(function: Callable[..., object]) -> int:
    """Number of reference-count calls in the compiled forms of ``function``; must be 0 for a ``@kernel``.

    The function must have been called once, so that there is a compiled form to look at.
    """
    texts = cast(Kernel, function).inspect_llvm().values()
    return sum(text.count("call void @NRT_incref") + text.count("call void @NRT_decref") for text in texts)
