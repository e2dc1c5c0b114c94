"""The report page, from run folders to one html file.

build        `write_report`: the order of what follows
votes        asks trained heads about the test clips: contributions, gains per class, confusions, hardest clips
sections     what each section shows, read from the runs' files, or the line that stands in its place
sentences    the page's sentences
html         all of it as html, with `templates/`
explorer     the alpha explorer, a head that runs inside the page
thumbnails   pictures of clips
"""
