"""The command line: each command is a thin call of one public function.

main        the command itself: errors become one line and an exit code, interrupts a message
options     options made of the fields of dataclasses
common      options by hand, completion, groups, colours, printing
bar         progress on a terminal
data, extract, heads, predict, report, manners, ...    the commands, by what they work on
"""
