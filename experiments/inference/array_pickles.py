"""Read pickles of arrays and plain containers without running foreign code."""

import pickle
import pickletools
import re
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, Literal

import numpy as np

from experiments.console import UserError

#: operations of a pickle, and values of its content: a million images with ids have fewer
MAX_OPERATIONS = 5_000_000
#: nesting of containers
MAX_DEPTH = 20


def unpickle_arrays(path: Path) -> Any:
    """Read a pickle of arrays, dictionaries, lists, tuples, strings and numbers.

    No name in the file is imported or called. The number of operations and values is limited. For
    the few names that NumPy 1 and 2 write for an array, harmless classes are used. Raises UserError
    for any other name, and for a file that is not a pickle.
    """
    try:
        with path.open("rb") as file:
            _check_operations(file)
            file.seek(0)
            return _Resolver().resolve(_ArrayUnpickler(file, encoding="bytes").load())
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except Exception as error:  # its class depends on the file's bytes
        reason = str(error) or type(error).__name__
        raise UserError(
            f"{path} is neither a picture nor a pickle of arrays and plain containers: {reason}"
        ) from None


def _check_operations(file: BinaryIO) -> None:
    """Raise UnpicklingError for too many operations, or for a memo with gaps.

    The unpickler would allocate the whole memo for a single large index.
    """
    for count, (code, argument, _) in enumerate(pickletools.genops(file), 1):
        if count > MAX_OPERATIONS:
            raise pickle.UnpicklingError(f"it has more than {MAX_OPERATIONS:,} operations")
        if "PUT" in code.name and argument is not None and argument > count:
            raise pickle.UnpicklingError(f"its memo has the index {argument:,}")


class _Resolver:
    """Puts arrays in place of `_Array` objects."""

    def __init__(self) -> None:
        self._values = 0

    def resolve(self, value: Any, depth: int = 0) -> Any:
        self._values += 1
        # A list that contains another list twice, which contains a third one twice, ...
        if self._values > MAX_OPERATIONS or depth > MAX_DEPTH:
            raise pickle.UnpicklingError("its lists contain each other too often")
        if isinstance(value, _Array):
            return value.array
        if isinstance(value, dict):
            return {key: self.resolve(item, depth + 1) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.resolve(item, depth + 1) for item in value]
        return value


class _Replacement:
    """Takes the place of a NumPy object."""

    def __setstate__(self, state: Any) -> None:
        # Without this method, a file could set attributes of the classes below.
        raise pickle.UnpicklingError("it sets the state of an object without a state")


class _Bytes(_Replacement):
    """`_codecs.encode(text, "latin1")`: bytes in protocols below 3."""

    def __new__(cls, text: str, encoding: str) -> Any:
        return text.encode("latin1")


class _Dtype(_Replacement):
    """`numpy.dtype`: numbers and fixed-size strings, no pointers."""

    def __init__(self, code: str | bytes, *_: Any) -> None:
        self.code = code.decode() if isinstance(code, bytes) else code
        self.order = "="

    def __setstate__(self, state: Any) -> None:
        order = state[1].decode() if isinstance(state[1], bytes) else state[1]
        self.order = "=" if order == "|" else order

    def resolve(self) -> np.dtype:
        if not re.fullmatch(r"[biuf][1248]|[SU]\d{1,4}", self.code) or self.order not in "<>=":
            raise pickle.UnpicklingError(f"it has an array of type {self.code!r}")
        return np.dtype(self.order + self.code)


class _Array(_Replacement):
    """`_reconstruct(ndarray, (0,), "b")`: an array whose content follows as a state."""

    def __init__(self, *_: Any) -> None:
        self.array = np.empty(0, np.uint8)

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, data = state
        order: Literal["F", "C"] = "F" if fortran else "C"
        self.array = np.frombuffer(data, dtype.resolve()).reshape(shape, order=order)


class _FromBuffer(_Array):
    """`_frombuffer(data, dtype, shape, order)`: an array in protocol 5."""

    def __init__(self, data: Any, dtype: Any, shape: Any, order: Any) -> None:
        super().__init__()
        self.__setstate__((1, shape, dtype, order == "F", data))


class _ArrayUnpickler(pickle.Unpickler):
    admitted: ClassVar[dict[tuple[str, str], type[_Replacement]]] = {
        ("_codecs", "encode"): _Bytes,
        ("numpy", "dtype"): _Dtype,
        ("numpy", "ndarray"): _Array,
        ("numpy.core.multiarray", "_reconstruct"): _Array,
        ("numpy._core.multiarray", "_reconstruct"): _Array,
        ("numpy.core.numeric", "_frombuffer"): _FromBuffer,
        ("numpy._core.numeric", "_frombuffer"): _FromBuffer,
    }

    def find_class(self, module: str, name: str) -> type[_Replacement]:
        try:
            return self.admitted[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}") from None
