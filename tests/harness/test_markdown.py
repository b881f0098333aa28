from harness.figures import escaped, markdown_table


def test_a_table_has_a_line_a_row_and_takes_its_cells_as_markdown():
    rows = [("a", "**1**"), ("b \\| c", "2")]
    assert markdown_table(("name", "figure"), iter(rows)).splitlines() == [
        "| name | figure |",
        "| --- | --- |",
        "| a | **1** |",
        "| b \\| c | 2 |",
    ]


def test_a_table_without_rows_is_its_header():
    assert markdown_table(["name"], []) == "| name |\n| --- |"


def test_escaped_text_stays_in_its_cell_and_on_its_line():
    assert escaped("a|b\n<i> *c* d_e") == "a\\|b &lt;i&gt; \\*c\\* d_e"
