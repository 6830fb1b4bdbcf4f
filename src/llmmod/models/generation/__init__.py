"""How completions are generated, and where they end."""
