"""Reading wishes: conditions, lines, and what is said about bad ones."""

from pathlib import Path

import numpy as np
import pytest
import z3
from hypothesis import given, settings
from hypothesis import strategies as st

from trapgate.criteria import ContradictionError, SpecError, parse_spec, read_spec, scheme_names
from trapgate.criteria.problems.codes import layout_of, plain_layout
from trapgate.criteria.wishes.condition import condition
from trapgate.criteria.wishes.lines import lines_of
from trapgate.criteria.wishes.spec import DELIVER, EXIT, FREE

PF = layout_of(14)


def chosen(text: str) -> set[int]:
    codes = PF.codes()
    return set(codes[condition(text, PF).holds(codes)].tolist())


def every() -> list[int]:
    return [int(code) for code in PF.codes()]


def test_conditions_mean_what_they_say() -> None:
    assert chosen("write and present and not user") == {c for c in every() if c & 7 == 3}
    assert chosen("p and w and not u") == {c for c in every() if c & 7 == 3}
    assert chosen("shadow-stack or SGX") == {c for c in every() if c & 0x8040}
    assert chosen("code & 0xF == 3 or code >= 0x8000") == {
        c for c in every() if c & 0xF == 3 or c >= 0x8000
    }
    assert chosen("code >> 4 in (1, 2)") == {c for c in every() if c >> 4 in {1, 2}}
    assert chosen("not (code in (0, 1)) and code < 4") == {2, 3}
    assert chosen("all") == set(every())
    assert chosen("none or False") == set()


leaves = st.one_of(
    st.sampled_from(["present", "write", "user", "rsvd", "fetch", "key", "hlat", "all", "none"]),
    st.builds(
        "code & {} {} {}".format,
        st.integers(0, 31),
        st.sampled_from(["==", "!=", "<", "<=", ">", ">="]),
        st.integers(0, 31),
    ),
    st.builds("code not in ({}, {})".format, st.integers(0, 20), st.integers(0, 20)),
)
conditions = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.builds("({}) and ({})".format, inner, inner),
        st.builds("({}) or ({})".format, inner, inner),
        st.builds("not ({})".format, inner),
    ),
    max_leaves=6,
)


@settings(max_examples=60)
@given(conditions)
def test_arrays_and_terms_agree(text: str) -> None:
    read = condition(text, PF)
    codes = np.array([0, 1, 3, 7, 0x15, 0x80, 0x8000, 0x80FF])
    held = read.holds(codes)
    for code, expected in zip(codes.tolist(), held.tolist(), strict=True):
        term = z3.simplify(z3.And(read.term(z3.BitVecVal(code, 32)), True))
        assert z3.is_true(term) == expected, (text, code)


@pytest.mark.parametrize("vector", [14, 13, 21])
def test_what_occurs_is_the_same_for_arrays_and_terms(vector: int) -> None:
    layout = layout_of(vector)
    codes = layout.codes()[:512]
    told = layout.occurs(codes)
    for code, expected in list(zip(codes.tolist(), told.tolist(), strict=True))[::7]:
        assert z3.is_true(z3.simplify(layout.occurs(z3.BitVecVal(code, 32)))) == expected


def test_page_fault_codes_that_occur() -> None:
    # SDM, "Page-Fault Exceptions", in the plainest words.
    for code in every():
        p, w, _u, rsvd, fetch, key, shadow, hlat = (code >> n & 1 for n in range(8))
        sgx = code >> 15 & 1
        expected = not (
            (rsvd and not p)
            or (fetch and (w or key or shadow))
            or (key and (not p or rsvd))
            or (hlat and p and not rsvd)
            or (sgx and (not p or rsvd or key or hlat))
        )
        assert bool(PF.occurs(code)) == expected, hex(code)


def test_goals_and_precedence() -> None:
    spec = parse_spec(
        '[PF]\nexit = [3, {from = 4, to = 5}]\nfree = ["all"]\ndeliver = [0, 7]\n'
        'default = "exit"\n[vectors]\nBP = "exit"\n"#GP" = "deliver"\n'
    )
    codes, goals = spec.vectors[14].goals()
    told = dict(zip(codes.tolist(), goals.tolist(), strict=True))
    assert [told[c] for c in (3, 4, 5, 0, 7, 1)] == [EXIT] * 3 + [DELIVER] * 2 + [FREE]
    assert set(spec.vectors) == {3, 13, 14}
    assert told[8] == FREE, "a reserved bit in an absent page cannot be"
    kept = parse_spec('impossible = "kept"\nPF = "exit"')
    assert (kept.vectors[14].goals()[1] == EXIT).all()


@pytest.mark.parametrize(
    ("bits", "count"),
    [('"sdm"', 512), ('"seed"', 16), ("5", 32), ('["P", "shadow-stack"]', 4)],
)
def test_which_bits_count(bits: str, count: int) -> None:
    spec = parse_spec(f'bits = {bits}\nPF = "exit"')
    assert len(spec.vectors[14].goals()[0]) == count


def test_contradictions_name_codes_and_lines() -> None:
    text = '[PF]\nexit = [\n  "reserved",\n  "write and user",\n]\ndeliver = [\n  0x6, "key"]\n'
    with pytest.raises(ContradictionError) as caught:
        parse_spec(text, "w.toml")
    error = caught.value
    assert error.codes == tuple(
        c for c in every() if PF.occurs(c) and (c & 6 == 6) and (c == 6 or c & 0x20)
    )
    assert error.lines == (4, 7)
    message = str(error)
    assert message.startswith("w.toml:4: PF: contradiction about 0x6, ")
    assert "'write and user' (line 4)" in message
    assert "'0x6' (line 7)" in message
    assert "\n" not in message


BAD = [
    ("[PG]\nexit = [1]", "w.toml:1: PG: no such vector; did you mean PF?"),
    (
        '[PF]\nexit = ["wrte"]',
        "w.toml:2: PF.exit: column 1: nothing is called wrte; did you mean write?",
    ),
    ('bits = ["U", "wite"]\nPF = "exit"', "w.toml:1: bits: no bit is called 'wite'; did you mean"),
    ("[PF]\nexit = [\n0x100]", "w.toml:3: PF.exit: 0x100 has bits that the error code lacks"),
    ("[PF]\nexit = [-1]", "w.toml:2: PF.exit: -0x1 is negative"),
    ("[PF]\nexit = [true]", "w.toml:2: PF.exit: True is not a wish"),
    ("[PF]\nexit = [{from = 9, to = 3}]", "no code lies from 0x9 to 0x3"),
    ("[PF]\nexitt = [1]", "w.toml:2: PF.exitt: unknown key; did you mean exit?"),
    ('PF = "exot"', "w.toml:1: PF: 'exot' is not a goal; did you mean exit?"),
    ("[BP]\nexit = [1]", 'w.toml:1: BP: #BP has no error code; write it as BP = "exit"'),
    ("[BP]\ndefault = 3", "w.toml:2: BP.default: 3 is not a goal"),
    ('NMI = "exit"', "NMI_EXITING"),
    ('"200" = "exit"', "vectors 0 to 31 only"),
    ('PF = "exit"\n"#PF" = "exit"', "w.toml:2: #PF: #PF has wishes already"),
    ("foo = 1", "w.toml:1: foo: unknown key"),
    ("scheme = 3\nPF = 'exit'", "w.toml:1: scheme: must be text"),
    ("impossible = 'fre'\nPF = 'exit'", "w.toml:1: impossible: 'fre' is not known; did you mean"),
    ("bits = 17\nPF = 'exit'", "w.toml:1: bits: 17 bits; choose from 1 to 16"),
    ("bits = 1.5\nPF = 'exit'", "w.toml:1: bits: 1.5 is not known"),
    ("", "w.toml: wishes nothing"),
    ("PF = 1979-05-27", 'w.toml:1: PF: must be a table, or one of "exit"'),
    ('PF = "exit"\n' + "a." * 40 + "b = 1", "w.toml: has a key of more than 32 parts"),
    (f"[PF]\nexit = [{'3, ' * 5001}]", "w.toml:2: PF.exit: has 5001 wishes, more than 5000"),
    ("[PF", "w.toml: is not TOML"),
    ('[PF]\nexit = ["open(1)"]', "column 1: open(...) is unknown"),
    ('[PF]\nexit = ["cpl == 3"]', "column 1: cpl cannot be used in this condition; compare code"),
    ('[PF]\nexit = ["write +"]', "is not a condition"),
    ('[PF]\nexit = ["code < 4 < 5"]', "column 8: '4' is not a value"),
    ('[PF]\nexit = ["code in 4"]', "column 9: write in (1, 2)"),
    ('[PF]\nexit = ["code == -4"]', "column 9: '-4' is not an unsigned number"),
    ('[PF]\nexit = ["code == 0x100000000"]', "column 9: 0x100000000 is too wide: code has 32 bits"),
    ('[PF]\nexit = ["code >> 30 == 4"]', "0x4 is too wide: code has 2 bits left after >> 30"),
    ('[PF]\nexit = ["write == 1"]', "column 1: write is a bit"),
    (f'[PF]\nexit = ["{"not " * 400}write"]', "nested too deeply"),
    (f'[PF]\nexit = ["{"(" * 400}write{")" * 400}"]', "is not a condition"),
    (f'[PF]\nexit = ["{"write or " * 4000}write"]', "keep a condition below"),
]


@pytest.mark.parametrize(("text", "message"), BAD)
def test_bad_wishes_get_one_line(text: str, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse_spec(text, "w.toml")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    binary = tmp_path / "w.toml"
    binary.write_bytes(b"\xff\xfe")
    for path, message in (
        (tmp_path, "cannot be read"),
        (tmp_path / "none", "No such file"),
        (binary, "is not UTF-8"),
    ):
        with pytest.raises(SpecError, match=message):
            read_spec(path)
    with pytest.raises(SpecError, match="larger than 4 MiB"):
        read_spec(Path("/dev/zero"))
    binary.write_bytes(b"#" * (5 << 20))
    with pytest.raises(SpecError, match="larger than 4 MiB"):
        read_spec(binary)


def complaint(document: str) -> str:
    """What is said about a SPEC; nothing if it is one."""
    try:
        parse_spec(document)
    except SpecError as error:
        return str(error)
    return ""


@settings(max_examples=80)
@given(st.text(max_size=80))
def test_any_text_is_read_or_refused(text: str) -> None:
    for document in (text, f"[PF]\nexit = ['''{text}''']", f'PF = "exit"\n{text}'):
        assert "\n" not in complaint(document)


def test_lines_of_every_kind_of_value() -> None:
    text = (
        '# a comment [x]\na.b = 1\n"c d" = [1, # one\n  "]",\n [2,\n 3]]\n'
        '[t.\'u\']  # table\nx = {p = 1, q = "}"}\ny = \'\'\'two\nlines\'\'\'\nz = """a\\"\n""""\n'
        "[[r]]\nlast = 1979-05-27T07:32:00Z\n"
    )
    lines = lines_of(text)
    expected: dict[tuple[str | int, ...], int] = {
        ("a", "b"): 2,
        ("c d",): 3,
        ("c d", 0): 3,
        ("c d", 1): 4,
        ("c d", 2): 5,
        ("c d", 2, 1): 6,
        ("t", "u"): 7,
        ("t", "u", "x", "q"): 8,
        ("t", "u", "y"): 9,
        ("t", "u", "z"): 11,
        ("r", "last"): 14,
    }
    assert {path: lines[path] for path in expected} == expected


def test_plain_layouts_have_all_codes() -> None:
    layout = plain_layout(5)
    assert layout.codes().tolist() == list(range(32))
    assert np.all(layout.occurs(layout.codes()))
    assert layout.words(0b101, 0b001) == "bit_0 and not bit_2"


def test_the_guide_says_what_is_so() -> None:
    guide = (Path(__file__).parents[2] / "docs" / "guide" / "criteria.md").read_text("utf-8")
    blocks = [part.split("\n", 1) for part in guide.split("```")[1::2]]
    (spec,) = [text for kind, text in blocks if kind == "toml"]
    assert set(parse_spec(spec).vectors) == {3, 13, 14}
    (code,) = [text for kind, text in blocks if kind == "python"]
    exec(code, {})
    for name in scheme_names():
        assert f"`{name}`" in guide
