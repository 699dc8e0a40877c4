"""The pages a person opens: the report of a run (`page`), and the index of a lake (`index`)."""
