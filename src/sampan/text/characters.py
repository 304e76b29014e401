"""Text as code points, and the mark that ends a document in a stream of text.

code_points("né")        # uint32 (2,)
"""

import numpy as np

END = "\udfff"  # stands between documents in a stream of text: half of a surrogate pair, which no text holds


# ---- text as arrays ----


def code_points(text: str) -> np.ndarray:
    """Unicode code points of `text`, uint32 (len(text),)."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)


def is_unicode(text: str) -> bool:
    """Whether it has no half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
