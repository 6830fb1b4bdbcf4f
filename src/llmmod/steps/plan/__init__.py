"""The step `plan`: what a training takes, before it is run and with no weights loaded."""
