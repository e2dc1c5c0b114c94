"""The command line: each command is a thin call of one public function.

main        the command itself: errors become one line and an exit code
common      shared options, completion, groups of commands, colours, printing
options     generates options from the fields of dataclasses
data        make, audit and split dataset roots
streams     options for a root's streams; list and change them; embeddings of one's own
extract     run the encoders; plan a run
store       inspect, verify, pack and export embedding stores
convert     convert original checkpoints to HuggingFace folders
heads       weigh, contribute, fit, table1, sweep, compare, curve, evaluate
predict     label clips; export a run
report      write the html page
doctor      check this installation; name the command that fixes each problem
completion  print the completion script of a shell
"""
