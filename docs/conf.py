"""Sphinx's configuration: Markdown pages by MyST, the theme furo, nothing from the network. `make docs` builds the site."""

project = "llmmod"
author = "the llmmod authors"
copyright = "the llmmod authors, Apache-2.0"

extensions = ["myst_parser"]
smartquotes = False  # they would change quotes and dashes of commands
exclude_patterns = ["_build"]
myst_enable_extensions = ["attrs_block"]  # {.name} above a list gives it a class of site.css
myst_heading_anchors = 3  # every heading down to ### can be linked to by its words
myst_links_external_new_tab = False

html_theme = "furo"
html_title = "llmmod"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_copy_source = False
html_theme_options = {"navigation_with_keys": True}
