"""The report: one or several exports as one HTML page, and the same content as markdown.

`data` gathers what a page shows, `tables` puts it into words, `charts` draws, `html` and `markdown`
write. Nothing here measures.
"""
