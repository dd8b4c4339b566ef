"""A calculator: arithmetic that a model only guesses, evaluated by walking its syntax tree within bounds."""

import ast
import math
import operator
from collections.abc import Callable
from typing import Annotated

from comm.bundles.llm.tools import ToolError, tool

Number = int | float

LONGEST_EXPRESSION = 500
MOST_NODES = 200
MOST_BITS = 4096
"""Of a whole number: 1,233 digits, which multiply in a microsecond."""
LARGEST_FACTORIAL = 400
MOST_DIGITS = 50
"""To round to; a whole number is rounded by a power of ten that has as many."""

CONSTANTS = {"pi": math.pi, "e": math.e, "tau": math.tau}
OPERATORS: dict[type[ast.operator], Callable[[Number, Number], Number]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
FUNCTIONS: dict[str, Callable[..., Number]] = {
    "abs": abs, "round": round, "min": min, "max": max, "floor": math.floor, "ceil": math.ceil,
    "sqrt": math.sqrt, "exp": math.exp, "log": math.log, "log2": math.log2, "log10": math.log10,
    "sin": math.sin, "cos": math.cos, "tan": math.tan,
    "asin": math.asin, "acos": math.acos, "atan": math.atan, "hypot": math.hypot,
    "degrees": math.degrees, "radians": math.radians,
    "gcd": math.gcd, "lcm": math.lcm, "sum": lambda *numbers: math.fsum(numbers),
}  # fmt: skip


@tool
async def calculate(
    expression: Annotated[str, "As in Python: `(1240 * 1.19) ** 2 / sqrt(2)`; no thousands separators."],
) -> str:
    """Compute an arithmetic expression exactly. Use it for every calculation that is not trivial."""
    return format_number(evaluate(expression))


def evaluate(expression: str) -> Number:
    """Return the value of an arithmetic expression, in bounded time and memory. Errors: ToolError."""
    if len(expression) > LONGEST_EXPRESSION:
        raise ToolError(f"the expression is longer than {LONGEST_EXPRESSION} characters; compute it in parts")
    try:
        tree = ast.parse(expression.strip(), mode="eval")
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        raise ToolError("this is not an arithmetic expression") from None
    if sum(1 for _ in ast.walk(tree)) > MOST_NODES:
        raise ToolError("the expression has too many terms; compute it in parts")
    try:
        return _bounded(_value(tree.body))
    except ZeroDivisionError:
        raise ToolError("division by zero") from None
    except (ValueError, OverflowError, TypeError) as error:
        raise ToolError(f"this cannot be computed: {error}") from None


def format_number(value: Number) -> str:
    """Write a number with 15 significant digits, which hides what binary fractions leave over."""
    return str(value) if isinstance(value, int) else format(value, ".15g")


def _value(node: ast.expr) -> Number:
    match node:
        case ast.Constant(value=int() | float() as number) if not isinstance(number, bool):
            return _bounded(number)
        case ast.Name(id=name) if name in CONSTANTS:
            return CONSTANTS[name]
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_value(operand)
        case ast.UnaryOp(op=ast.UAdd(), operand=operand):
            return _value(operand)
        case ast.BinOp(left=left, op=ast.Pow(), right=right):
            return _bounded(_power(_value(left), _value(right)))
        case ast.BinOp(left=left, op=op, right=right) if type(op) in OPERATORS:
            return _bounded(OPERATORS[type(op)](_value(left), _value(right)))
        case ast.BinOp(op=ast.BitXor()):
            raise ToolError("write powers as **, not ^")
        case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]):
            return _bounded(_call(name, [_value(argument) for argument in arguments]))
        case ast.Tuple():
            raise ToolError("write numbers without thousands separators")
    known = ", ".join([*CONSTANTS, *FUNCTIONS, "factorial", "comb"])
    raise ToolError(f"only numbers, + - * / // % **, parentheses and these names are known: {known}")


def _call(name: str, numbers: list[Number]) -> Number:
    if name in ("factorial", "comb"):
        if not all(isinstance(number, int) and 0 <= number <= LARGEST_FACTORIAL for number in numbers):
            raise ToolError(f"{name}() takes whole numbers from 0 to {LARGEST_FACTORIAL}")
        return math.factorial(*numbers) if name == "factorial" else math.comb(*numbers)  # type: ignore[arg-type]
    if name == "round" and not all(abs(digits) <= MOST_DIGITS for digits in numbers[1:]):
        raise ToolError(f"round() rounds to at most {MOST_DIGITS} digits")
    if name not in FUNCTIONS:
        raise ToolError(f"there is no function {name}(); there are {', '.join(FUNCTIONS)}, factorial, comb")
    return FUNCTIONS[name](*numbers)


def _power(base: Number, exponent: Number) -> Number:
    whole = isinstance(base, int) and isinstance(exponent, int)
    if whole and int(base).bit_length() * abs(exponent) > MOST_BITS:
        raise ToolError("the power is too large")
    result = base**exponent
    if isinstance(result, complex):
        raise ToolError("the result is not a real number")
    return result


def _bounded(value: Number) -> Number:
    if isinstance(value, int) and value.bit_length() > MOST_BITS:
        raise ToolError("the number is too large")
    if isinstance(value, float) and not math.isfinite(value):
        raise ToolError("the number is too large or not defined")
    return value
