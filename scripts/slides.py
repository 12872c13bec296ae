"""stub"""
def write_decks(paths, folder):
    folder.mkdir(parents=True)
