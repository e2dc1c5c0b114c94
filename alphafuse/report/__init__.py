"""Results as text, tables, figures and an html page.

tables      the one renderer: text, markdown, html and csv; formats of numbers (85.4, p .047)
studies     results of fit, table1, sweep, compare and evaluate: their tables, and the files of their run folders
curve       results of curve: what they say in words, their tables and files
looks       streams in words, colours and markers: sight and sound, told apart within a medium
contents    the data of the figures and the page, read from run folders
figures     plots of these data
page/       `write_report`: everything on one html page
notebook    any result as text, html or a table for pandas
audit, extract, plan, predict    the output of the commands of these names
"""
