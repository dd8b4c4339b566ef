"""The tools that ship, called as a model calls them."""

import json
import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from comm.bundles import HistoryMessage, TurnAttachment
from comm.bundles.llm.toolkit import query_table
from comm.bundles.llm.toolkit.calculator import evaluate, format_number
from comm.bundles.llm.tools import ToolError
from tests.comm.bundles.llm.conversing import LlmTalk

MakeLlmTalk = Callable[..., LlmTalk]
Attach = Callable[..., TurnAttachment]

SALES = b"""date,region,product,price,quantity
2026-01-01,North,Chair,12.50,3
2026-01-02,South,Table,99.90,1
2026-01-03,North,Lamp,20,2
2026-01-04,East,Chair,12.50,7
2026-01-05,South,Lamp,19.50,
"""


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("1 + 2 * 3", "7"),
        ("(1240 * 1.19) ** 2", "2177395.36"),
        ("0.1 + 0.2", "0.3"),
        ("2 ** 200", str(2**200)),
        ("-7 // 2 % 3", "2"),
        ("sqrt(2) * pi", "4.44288293815837"),
        ("max(1, 2.5, round(3.14159, 2))", "3.14"),
        ("factorial(20) / comb(10, 3)", "2.0274183401472e+16"),
        ("sum(0.1, 0.1, 0.1)", "0.3"),
        (" +log(e) ", "1"),
    ],
)
def test_calculator_computes(expression: str, value: str) -> None:
    assert format_number(evaluate(expression)) == value


@pytest.mark.parametrize(
    "expression",
    [
        "", "1 +", "a", "__import__('os')", "().__class__", "[1]*9", "'a'*3", "True + 1", "1 if 1 else 2",
        "lambda: 1", "f(1)", "abs(x=1)", "abs", "1j", "2^3", "1,000", "9**9**9", "2**99999", "10.0**400",
        "factorial(100000)", "factorial(-1)", "comb(3, 0.5)", "(-8)**0.5", "sqrt(-1)", "log(0)", "1/0",
        "0**-1", "1e308*10", "1" * 600, "+".join(["1"] * 200), "-" * 400 + "1", "(" * 240 + "1" + ")" * 240,
        "1\x00", "round(1, -10**9)", "sum('ab')", "min()", "9" * 450 + "**9",
    ],
)  # fmt: skip
def test_calculator_refuses_what_is_no_arithmetic_or_has_no_end(expression: str) -> None:
    with pytest.raises(ToolError):
        evaluate(expression)


@hypothesis_settings(max_examples=300, deadline=500)
@given(st.text(alphabet="0123456789+-*/%() .,e^pimaxsqrtfactorial", max_size=80))
def test_calculator_answers_or_refuses_whatever_it_is_given(expression: str) -> None:
    try:
        value = evaluate(expression)
    except ToolError:
        return
    assert math.isfinite(value) if isinstance(value, float) else isinstance(value, int)
    assert len(format_number(value)) < 1300


async def ask(talk: LlmTalk, **arguments: Any) -> str:
    """Call query_table with the JSON of these arguments."""
    return await query_table.run(talk.turn, json.dumps(arguments))


async def test_first_rows_are_listed_without_arguments(talk: MakeLlmTalk, attach: Attach) -> None:
    result = await ask(talk(attachments=[attach("sales.csv", SALES, "text/csv")]), limit=2)

    assert result == (
        "5 of 5 rows, the first 2 shown\ndate,region,product,price,quantity\n"
        "2026-01-01,North,Chair,12.50,3\n2026-01-02,South,Table,99.90,1\n"
    )


@pytest.mark.parametrize(
    ("arguments", "result"),
    [
        ({"function": "sum", "of": "Quantity"}, "5 of 5 rows\nrows,sum of Quantity\nall rows,13\n"),
        ({"function": "mean", "of": "price", "group_by": "region", "descending": True},
         "5 of 5 rows\nregion,mean of price\nSouth,59.7\nNorth,16.25\nEast,12.5\n"),
        ({"function": "count", "of": "quantity", "group_by": "product"},
         "5 of 5 rows\nproduct,count of quantity\nTable,1\nLamp,1\nChair,2\n"),
        ({"group_by": "region", "limit": 1, "descending": True}, "5 of 5 rows\nregion,count\nNorth,2\n"),
        ({"where": [{"column": "price", "operator": "<", "value": "20"},
                    {"column": "product", "operator": "!=", "value": "lamp"}], "columns": ["date", "price"]},
         "2 of 5 rows\ndate,price\n2026-01-01,12.50\n2026-01-04,12.50\n"),
        ({"where": [{"column": "product", "operator": "contains", "value": "A"}],
          "function": "max", "of": "price"},
         "5 of 5 rows\nrows,max of price\nall rows,99.9\n"),
        ({"where": [{"column": "date", "operator": ">=", "value": "2026-01-04"}], "columns": ["date"]},
         "2 of 5 rows\ndate\n2026-01-04\n2026-01-05\n"),
        ({"where": [{"column": "quantity", "operator": "=", "value": ""}], "columns": ["date"]},
         "1 of 5 rows\ndate\n2026-01-05\n"),
        ({"where": [{"column": "quantity", "operator": "!=", "value": 7}], "columns": ["quantity"]},
         "4 of 5 rows\nquantity\n3\n1\n2\n\"\"\n"),
        ({"sort_by": "quantity", "descending": True, "columns": ["quantity"], "limit": 2},
         "5 of 5 rows, the first 2 shown\nquantity\n7\n3\n"),
        ({"where": [{"column": "region", "operator": "=", "value": "West"}],
          "function": "mean", "of": "price"},
         "0 of 5 rows\nrows,mean of price\n"),
    ],
)  # fmt: skip
async def test_table_is_queried(
    talk: MakeLlmTalk, attach: Attach, arguments: dict[str, Any], result: str
) -> None:
    assert await ask(talk(attachments=[attach("sales.csv", SALES, "text/csv")]), **arguments) == result


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"file": "other.csv"}, "there is no file 'other.csv'; attached: sales.csv"),
        ({"sort_by": "colour"}, "there is no column 'colour'; there are date, region"),
        ({"function": "sum", "of": "region"}, "holds no numbers"),
        ({"function": "sum"}, "there is no column ''"),
        ({"function": "drop"}, "do not fit"),
        ({"limit": 5000}, "do not fit"),
    ],
)
async def test_query_that_makes_no_sense_says_why(
    talk: MakeLlmTalk, attach: Attach, arguments: dict[str, Any], problem: str
) -> None:
    with pytest.raises(ToolError, match=problem):
        await ask(talk(attachments=[attach("sales.csv", SALES, "text/csv")]), **arguments)


async def test_no_table_is_told(talk: MakeLlmTalk, attach: Attach) -> None:
    with pytest.raises(ToolError, match="no table"):
        await ask(talk(attachments=[attach("note.txt", b"One line.", "text/plain")]))
    two = [attach("a.csv", SALES, "text/csv"), attach("b.csv", SALES, "text/csv")]
    with pytest.raises(ToolError, match=r"say which file: a\.csv, b\.csv"):
        await ask(talk(attachments=two))
    assert await ask(talk(attachments=two), file="B.csv", columns=["date"], limit=1)


@pytest.mark.django_db(transaction=True)
async def test_table_of_an_earlier_message_is_found(
    talk: MakeLlmTalk, earlier_file: Callable[..., Any]
) -> None:
    await earlier_file("sales.csv", SALES, "text/csv")

    result = await ask(talk(history=[HistoryMessage("user", "Look")]), function="sum", of="quantity")

    assert result.endswith("all rows,13\n")
