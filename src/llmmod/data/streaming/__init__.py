"""Examples that are made while training asks for them."""
