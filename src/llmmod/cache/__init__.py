"""Results that are kept between runs, under a key computed from the content of all inputs."""
