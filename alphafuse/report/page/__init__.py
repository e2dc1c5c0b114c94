"""The report page, from run folders to one html file.

build        `write_report`: the steps in order
votes        predictions of trained heads on test clips: contributions, gains per class, confusions, hardest clips
sections     the data of each section, read from run folders, or the line shown instead
sentences    the sentences of the page
html         renders these data with `templates/`
explorer     the alpha explorer: a head that runs in the browser
thumbnails   images of clips
"""
