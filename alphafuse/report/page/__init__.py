"""The report page, from run folders to one html file.

build        `write_report`: the steps in order
votes        predictions of trained heads on test clips: contributions, confusions, hardest clips and their shares
sections     the data of each section, read from run folders, or what is missing
sentences    the sentences of the page
html         renders these data with `templates/`
explorer     a head that runs in the browser
excerpts     pictures and sounds of clips
"""
