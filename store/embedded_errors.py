"""The one error of the embedded PostgreSQL."""


class EmbeddedServerError(Exception):
    """The embedded PostgreSQL can't run. One line that tells the person at the terminal what to do.

    The cause is chained where there is one.
    """
