"""The machine. Imports nothing of the package but errors; every room may import it.

files       small files, written atomically; paths that may be URLs
remote      object stores behind URLs: list, read in ranges, fetch, write
scratch     a temporary folder of this process
claims      locks that say which process extracts which clip
interrupts  Ctrl-C and SIGTERM, never lost
processes   free memory; processes that end with their parent
workers     a pool of processes that may crash, hang or want too much memory at the cost of one task
devices     the one chooser of PyTorch devices
cluster     sessions of Ray
results     how results show themselves: in a terminal, in a notebook, as a DataFrame
progress    callbacks during long work, and the bar on a terminal
"""
