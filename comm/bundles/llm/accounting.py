"""What a turn's requests have used and what that costs."""

from typing import Any

from .chunks import Tokens
from .conf import llm_settings


class Ledger:
    """Adds up tokens per purpose; an estimated request makes its whole row an estimate."""

    def __init__(self) -> None:
        self._rows: dict[str, list[Tokens]] = {}

    def add(self, purpose: str, tokens: Tokens) -> None:
        """Add the tokens of one request."""
        self._rows.setdefault(purpose, []).append(tokens)

    def data(self) -> dict[str, Any] | None:
        """Return the data of `accounting.usage`; None when no request was made."""
        if not self._rows:
            return None
        breakdown = [self._row(purpose, requests) for purpose, requests in self._rows.items()]
        return {"breakdown": breakdown, "cost_total_usd": round(sum(row["cost_usd"] for row in breakdown), 8)}

    def markdown(self) -> str:
        """Word the total, and say where it was estimated."""
        requests = [tokens for row in self._rows.values() for tokens in row]
        total = sum(tokens.input for tokens in requests), sum(tokens.output for tokens in requests)
        worded = f"Token usage: {total[0]:,} in / {total[1]:,} out"
        if any(tokens.estimated for tokens in requests):
            return worded + " (estimated: the model server did not count all of it)"
        return worded

    def _row(self, purpose: str, requests: list[Tokens]) -> dict[str, Any]:
        conf = llm_settings()
        tokens_in, tokens_out = (sum(t.input for t in requests), sum(t.output for t in requests))
        cost = (tokens_in * conf.PRICE_INPUT_PER_MILLION + tokens_out * conf.PRICE_OUTPUT_PER_MILLION) / 1e6
        return {
            "service": "llm",
            "purpose": purpose,
            "model": conf.MODEL,
            "requests": len(requests),
            "input_tokens": tokens_in,
            "output_tokens": tokens_out,
            "estimated": any(t.estimated for t in requests),
            "cost_usd": round(cost, 8),
        }
