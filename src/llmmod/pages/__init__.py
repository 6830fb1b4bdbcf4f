"""HTML pages: `page` draws and writes them; style.css, base.html and parts.html are what all of them share."""
