"""Examples that are kept between runs, under a key made of all that decides them."""
