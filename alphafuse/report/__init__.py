"""Results as people read them.

tables      the one renderer: text, markdown and csv; how figures are written (85.4, p .047)
studies     what fit, table1, sweep, compare and evaluate found: their tables, and their run folders' content
contents    what figures and the page show, as data read from run folders
figures     plots of it
page/       `write_report`: everything on one html page
audit, extract, plan, predict    what the commands of these names print
"""
