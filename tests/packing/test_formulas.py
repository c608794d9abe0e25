import pytest

from pipeline.errors import InputError
from pipeline.packing.formulas import LARGEST, Formula


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("ceil(n / 4)", [0, 1, 1, 1, 1, 2]),
        ("(n + 1) // (a * 2) % 2", [(n + 1) // 6 % 2 for n in range(6)]),
        ("max(n, 3) - min(n, 1)", [3, 2, 2, 2, 3, 4]),
        ("floor(n * 0.5) + 7", [7, 7, 8, 8, 9, 9]),
    ],
)
def test_arithmetic(text: str, values: list[int]) -> None:
    formula = Formula(text, {"a": 3})
    assert formula.fields == {"n"}
    assert [formula({"n": n}) for n in range(6)] == values


@pytest.mark.parametrize(
    "text",
    [
        "", "n +", "n ** 9", "__import__('os')", "n.real", "[n]", "'a'", "(lambda: 1)()", "n if n else 1", "ceil",
        "open(n)", "ceil(x=n)", "n << 9", "9999999999", "n == 1", "n @ n", "True and n", "(" * 1000, "f'{n}'", "n\0",
    ],
)  # fmt: skip
def test_anything_else_is_refused(text: str) -> None:
    if text == "ceil":  # a field may be called so; it is only no function then
        assert Formula(text).fields == {"ceil"}
        return
    with pytest.raises(InputError, match="formula "):
        Formula(text)


@pytest.mark.parametrize(
    ("text", "why"),
    [("n / 2", "is 2.5"), ("n - 9", "is -4"), ("1 // (n - 5)", "has no value"), (f"n * {LARGEST}", "n \\* .* is ")],
)
def test_a_value_that_is_no_number_of_a_file(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        Formula(text)({"n": 5})
