"""What is kept between runs, under a key made of the content that decides it."""
