"""Every form in which :mod:`.codings` codes a random matrix, as one strategy."""

from __future__ import annotations

from hypothesis import strategies as st

from .codings import Form
from .forms_float import ct_floats, experts, modelopt, native, whole
from .forms_four import GPT_OSS, mxfp4, nvfp4
from .forms_integer import ct_ints, turned


@st.composite
def v4(draw: st.DrawFn) -> Form:
    """DeepSeek V4: FP8 in blocks beside FP4 experts."""
    dense, experts_ = draw(native()), draw(mxfp4().filter(lambda form: form.id.startswith("v4")))
    return dense._replace(id=f"{dense.id} and {experts_.id}", other=experts_)


FORMS: st.SearchStrategy[Form] = st.one_of(
    native(),
    whole(),
    experts(),
    ct_floats(),
    modelopt(),
    ct_ints(),
    nvfp4(),
    mxfp4(),
    st.just(GPT_OSS),
    turned(),
    v4(),
)
