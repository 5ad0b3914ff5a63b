"""Running out of memory costs one cell of the table, not the table."""

import contextlib
import gc
import sys
import traceback
from collections.abc import Iterator

import torch

# CUDA and MPS say the first, PyTorch's CPU allocator the next two, cuBLAS and cuDNN the last.
SIGNS = ("out of memory", "can't allocate memory", "not enough memory", "ALLOC_FAILED")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the error says that memory ran out, on whichever device."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in SIGNS)


@contextlib.contextmanager
def empty_if_out_of_memory(what: str) -> Iterator[None]:
    """If the block runs out of memory, print one line and go on after it; other errors pass.

    Args:
        what: the name of the row, or of the row and the side, for the printed line.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        print(f"{what}: out of memory, left empty ({reason[:200]})", file=sys.stderr, flush=True)
        traceback.clear_frames(error.__traceback__)  # whose variables hold tensors
    else:
        return
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
