"""How nbval reads the notebooks: student notebooks are stubs and not run; pictures and tables are not compared."""


def pytest_ignore_collect(collection_path, config):
    """The student notebooks in exercises/ stop at the first stub; their solutions are run instead."""
    if collection_path.suffix == ".ipynb" and collection_path.parent.name in ("exercises", ".ipynb_checkpoints"):
        return True
    return None


def pytest_collectstart(collector):
    """Leave out what is for the eyes: warnings, HTML tables, vector graphics (nbval leaves out PNG by itself)."""
    if collector.nodeid.endswith(".ipynb"):
        collector.skip_compare += ("stderr", "text/html", "image/svg+xml")
