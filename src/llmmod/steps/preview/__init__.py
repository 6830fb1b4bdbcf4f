"""The step `preview`: what training will see, before it trains."""
