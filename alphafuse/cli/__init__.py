"""The command line: each command is a thin call of one public function.

main        the command itself: errors become one line and an exit code
common      options by hand, names offered by completion, groups of commands, colours, printing
options     options made from the fields of dataclasses
data        make, audit and split dataset roots
extract     run the encoders; plan a run
store       look into embedding stores, check, merge and export them
convert     original checkpoints -> HuggingFace folders
heads       fit, table1, sweep, compare, evaluate
predict     label clips; export a run
report      the html page
doctor      does this installation work, and what fixes what doesn't
completion  scripts for the shell
"""
