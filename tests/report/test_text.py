from __future__ import annotations

from riemann_unlearn.report.text import Row, Table, columns_text, markdown, tables_text


def test_tables_under_each_other_share_the_width_of_their_labels() -> None:
    text = tables_text(
        [
            Table("a", ("x",), (Row("short", ("1",)),)),
            Table("b", ("y",), (Row("a longer label", ("123456789",)),)),
        ]
    )
    assert text.splitlines() == [
        "",
        f"{'a':15}{'x':>8}",
        f"{'short':15}{'1':>8}",
        "",
        f"{'b':15}{'y':>11}",
        f"{'a longer label':15}  123456789",
    ]


def test_spans_stand_over_their_columns_and_remarks_behind_the_row() -> None:
    table = Table(
        "seen",
        ("before", "after") * 2,
        (Row("recall", ("1", "2", "3", "4"), "chance 5"), Row("other", ("1", "2", "3", "4"))),
        spans=("forget", "retain"),
        corner="%",
    )
    assert tables_text([table]).splitlines()[1:] == [
        f"{'seen':7}{'forget':^16}{'retain':^16}".rstrip(),
        f"{'%':7}" + f"{'before':>8}{'after':>8}" * 2,
        f"{'recall':7}" + "".join(f"{n:>8}" for n in range(1, 5)) + "   chance 5",
        f"{'other':7}" + "".join(f"{n:>8}" for n in range(1, 5)),
    ]


def test_names_from_anywhere_cannot_steer_the_terminal_nor_break_the_columns() -> None:
    names = [
        "🍎",
        "苹果",
        "e\N{COMBINING ACUTE ACCENT}",
        "a\x1b[31mb",
        "x\ny",
        "\N{RIGHT-TO-LEFT OVERRIDE}abc",
    ]
    lines = columns_text([(name, "end") for name in names]).splitlines()
    assert len(lines) == len(names)
    bad = "\N{REPLACEMENT CHARACTER}"
    assert lines == [
        "🍎       end",
        "苹果     end",
        "e\N{COMBINING ACUTE ACCENT}        end",
        f"a{bad}[31mb  end",
        f"x{bad}y      end",
        f"{bad}abc     end",
    ]


def test_nothing_is_no_table() -> None:
    assert columns_text([]) == ""
    assert tables_text([]) == ""
    assert tables_text([Table("empty", ("x",), ())]).split() == ["empty", "x"]


def test_markdown_escapes_what_parts_its_cells() -> None:
    assert markdown(["a", "b"], [("x|y", 1)]) == "| a | b |\n| --- | --- |\n| x\\|y | 1 |"
