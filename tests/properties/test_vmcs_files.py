from hypothesis import given
from hypothesis import strategies as st

from trapgate.errors import VmcsError
from trapgate.sdm.fields import Field
from trapgate.vmcs.vmcs import Vmcs

writable = st.sampled_from([f for f in Field if not f.read_only])


# Of these a file takes only what means something.
few = {
    Field.FAULT_FILTER: st.integers(0, 3),
    Field.FAULT_FILTER_ORDER: st.integers(0, 3),
    Field.PTBASE: st.integers(0, (1 << 42) - 1).map(lambda n: n << 22),
}


@st.composite
def settings(draw: st.DrawFn) -> dict[Field, int]:
    fields = draw(st.lists(writable, unique=True, max_size=20))
    any_number = {field: st.integers(0, (1 << field.width) - 1) for field in fields}
    return {field: draw(few.get(field, any_number[field])) for field in fields}


@given(values=settings())
def test_what_is_written_is_read_back(values: dict[Field, int]) -> None:
    vmcs = Vmcs()
    for field, value in values.items():
        vmcs[field] = value
    assert all(vmcs[field] == value for field, value in values.items())
    assert all(vmcs.read(field) == value for field, value in values.items())
    assert Vmcs.from_toml(vmcs.to_toml()) == vmcs


def complaint(text: str) -> str:
    try:
        Vmcs.from_toml(text)
    except VmcsError as error:
        return str(error)
    return ""


@given(text=st.text(max_size=200))
def test_any_text_is_settings_or_one_line_of_complaint(text: str) -> None:
    assert len(complaint(text).splitlines()) <= 1


keys = st.sampled_from(["profile", "controls", "fields", "GUEST_RIP", "pin", "exceptions"])
values = st.recursive(
    st.sampled_from(["1", "-1", "true", "1.5", '"0x10"', '"vt-x"', '"PF"', "[]", "nan"]),
    lambda inner: st.one_of(
        inner.map(lambda v: f"[{v}]"),
        st.tuples(keys, inner).map(lambda kv: f"{{ {kv[0]} = {kv[1]} }}"),
    ),
    max_leaves=4,
)


@given(pairs=st.lists(st.tuples(keys, values), max_size=3))
def test_any_toml_is_settings_or_one_line_of_complaint(pairs: list[tuple[str, str]]) -> None:
    text = "\n".join(f"{key} = {value}" for key, value in pairs)
    assert len(complaint(text).splitlines()) <= 1
