"""The step `plan`: the memory and time that a training needs, without running it or loading weights."""
