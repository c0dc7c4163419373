"""Named tuples of arrays travel between compiled functions as one pointer.

Numba passes a named tuple by value: every array in it is seven numbers on the stack of every call, and every mention of
the tuple copies all of them in the code that LLVM is given. A :func:`record` is a pointer to the fields instead, which
nobody writes while the call lasts; LLVM is told so and keeps what it has loaded in registers.

It is for tuples that pass through many functions which are not inlined: there it is faster, and quicker to compile. Where
everything is inlined into one loop (:mod:`workbench.kernels.buddy`) a tuple by value is 15 % faster.

For Python a record stays the named tuple that it is. Compiled functions read its fields by name; they neither build
records nor return them.
"""

from __future__ import annotations

import zlib
from typing import Any, TypeVar

from llvmlite import ir
from numba.core import cgutils, config, types
from numba.core.datamodel import models
from numba.core.imputils import impl_ret_borrowed
from numba.core.typing.templates import AttributeTemplate
from numba.extending import NativeValue, infer_getattr, lower_getattr_generic, register_model, typeof_impl, unbox

_Class = TypeVar("_Class", bound=type[tuple[Any, ...]])


class Record(types.Type):
    """Numba's type of a pointer to the fields of a named tuple of ``tuple_type``."""

    def __init__(self, tuple_type: Any) -> None:
        self.tuple_type = tuple_type
        made = tuple_type.instance_class
        fields = zlib.crc32(" ".join(str(field) for field in tuple_type.types).encode())
        super().__init__(name=f"{made.__module__}.{made.__qualname__}.{fields:08x}")  # short: it is in every symbol

    def fields_pointer(self, context: Any) -> Any:
        return context.get_value_type(self.tuple_type).as_pointer()


@register_model(Record)
class _RecordModel(models.PrimitiveModel):
    def __init__(self, manager: Any, record: Record) -> None:
        super().__init__(manager, record, manager.lookup(record.tuple_type).get_value_type().as_pointer())


@infer_getattr
class _RecordFields(AttributeTemplate):
    key = Record

    def generic_resolve(self, record: Record, name: str) -> Any:
        tuple_type = record.tuple_type
        return tuple_type.types[tuple_type.fields.index(name)] if name in tuple_type.fields else None


@lower_getattr_generic(Record)
def _load_field(context: Any, builder: Any, record: Record, pointer: Any, name: str) -> Any:
    index = record.tuple_type.fields.index(name)
    value = _load(builder, cgutils.gep_inbounds(builder, pointer, 0, index))
    return impl_ret_borrowed(context, builder, record.tuple_type.types[index], value)


def _load(builder: Any, pointer: Any) -> Any:
    """Load number by number, each marked as never changing; LLVM drops those that are not used."""
    content = pointer.type.pointee
    if isinstance(content, (ir.ArrayType, ir.LiteralStructType)):
        value = ir.Constant(content, ir.Undefined)
        for index in range(len(content.elements) if isinstance(content, ir.LiteralStructType) else content.count):
            part = _load(builder, cgutils.gep_inbounds(builder, pointer, 0, index))
            value = builder.insert_value(value, part, index)
        return value
    loaded = builder.load(pointer)
    loaded.set_metadata("invariant.load", builder.module.add_metadata([]))
    return loaded


@unbox(Record)
def _unbox(record: Record, named_tuple: Any, c: Any) -> Any:
    """Put the fields on the stack of the wrapper that Python calls."""
    slot = cgutils.alloca_once(c.builder, c.context.get_value_type(record.tuple_type))
    failed = cgutils.alloca_once_value(c.builder, cgutils.false_bit)
    cleanups = []
    for index, field in enumerate(record.tuple_type.types):
        native = c.unbox(field, c.pyapi.tuple_getitem(named_tuple, index))
        c.builder.store(native.value, cgutils.gep_inbounds(c.builder, slot, 0, index))
        with c.builder.if_then(native.is_error, likely=False):
            c.builder.store(cgutils.true_bit, failed)
        if native.cleanup is not None:
            cleanups.append(native.cleanup)

    def clean_up() -> None:
        for cleanup in reversed(cleanups):
            cleanup()

    return NativeValue(slot, cleanup=clean_up, is_error=c.builder.load(failed))


def mark_pointers(function: Any, target_data: Any) -> None:
    """Tell LLVM that the records among a function's arguments may be read at any time and that nothing else is there."""
    for argument in function.args:
        content = getattr(argument.type, "pointee", None)
        if isinstance(content, ir.LiteralStructType) and argument.name.startswith("arg."):
            for attribute in ("noalias", "nonnull"):
                argument.add_attribute(attribute)
            argument.attributes.dereferenceable = content.get_abi_size(target_data)


def record(named_tuple: _Class) -> _Class:
    """Class decorator for a named tuple of arrays: compiled functions get it as one pointer."""
    if not config.DISABLE_JIT:

        @typeof_impl.register(named_tuple)
        def typeof_record(value: Any, context: Any) -> Record | None:
            fields = [typeof_impl(field, context) for field in value]
            if any(field is None for field in fields):
                return None
            return Record(types.NamedTuple(fields, type(value)))

    return named_tuple
